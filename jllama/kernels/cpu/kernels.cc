// jllama on a CPU: the whole model in one call, and single products. Compiled for the machine it runs on.
//
// Shapes use the letters of jllama/layers/__init__.py; M = B * T rows of activations, which stay in float32
// (the cache is in the run dtype).
#include <vector>

#include "norms.h"
#include "pieces.h"
#include "xla/ffi/api/c_api.h"

// What Python sends along: sizes and factors, then the weights, then where each operand is. See step.py
// `_operands`.
struct Spec {
  int64_t L, B, T, D, K, G, H, F, V, S, act, dtype, cache, last_only;
  // Factors of embeddings, of what a layer adds, of scores, of logits; a cap of 0: none.
  double eps, norm_offset, embedding, residual, score_scale, score_cap, logit_scale, logit_cap;
};
struct Layer {
  Weight qkv, o, gate_up, down;
  int64_t window, all_heads;  // positions seen (0: all); whether norms of q and k are of all heads together
  int64_t half;               // pairs of a head that are rotated: cosines and sines are [M, half]
  const float *cosines, *sines, *query_scale;  // of queries, [M]
  const float *norm1, *post1, *norm2, *post2, *q_norm, *k_norm, *qkv_bias, *o_bias, *gate_up_bias, *down_bias;
};

#define ONCE_COMPILED __attribute__((noinline))  // however many call it: inlined it would take the compiler seconds
class Reader {  // walks the spec and the operands
 public:
  Reader(XLA_FFI_CallFrame* call) : call_(call) {
    auto* list = (XLA_FFI_Array*)call->attrs.attrs[0];
    at_ = (const int64_t*)list->data;
  }
  template <class T>
  T sizes() {
    T t;
    memcpy(&t, at_, sizeof t);
    at_ += sizeof t / 8;
    return t;
  }
  void* arg(int64_t i) { return i < 0 ? nullptr : ((XLA_FFI_Buffer*)call_->args.args[i])->data; }
  void* ret(int64_t i) { return ((XLA_FFI_Buffer*)call_->rets.rets[i])->data; }
  int64_t next() { return *at_++; }
  ONCE_COMPILED Weight weight() {
    Weight w;
    w.kind = next();
    w.rows = next();
    w.cols = next();
    w.group = next();
    w.scale_kind = next();
    for (auto* p : {&w.values, &w.scales, &w.offsets, &w.scale_units, &w.offset_units}) *p = arg(next());
    return w;
  }
  const float* table(int64_t* columns) {  // [..., columns]
    const int64_t i = next();
    auto* b = i < 0 ? nullptr : (XLA_FFI_Buffer*)call_->args.args[i];
    *columns = b ? b->dims[b->rank - 1] : 0;
    return b ? (const float*)b->data : nullptr;
  }
  // As float32.
  ONCE_COMPILED const float* vector(int64_t dtype, std::vector<std::vector<float>>& keep, float offset = 0) {
    int64_t i = next();
    if (i < 0) return nullptr;
    auto* b = (XLA_FFI_Buffer*)call_->args.args[i];
    if (dtype == F32 && !offset) return (const float*)b->data;
    int64_t n = 1;
    for (int64_t d = 0; d < b->rank; d++) n *= b->dims[d];
    keep.emplace_back(n);
    float* out = keep.back().data();
    typed(dtype, b->data, [&](auto* p) {
      for (int64_t c = 0; c < n; c++) out[c] = one(p[c]) + offset;
    });
    return out;
  }

 private:
  XLA_FFI_CallFrame* call_;
  const int64_t* at_;
};

static int thread_count = 1;
static pthread_mutex_t pool_mutex = PTHREAD_MUTEX_INITIALIZER;
struct Turn {  // one call has the helpers; another at the same time goes on alone
  const bool first = pthread_mutex_trylock(&pool_mutex) == 0;
  Turn() = default;
  Turn(const Turn&) = delete;
  ~Turn() {
    if (first) pthread_mutex_unlock(&pool_mutex);
  }
  Pool& pool() {
    static Pool *all = new Pool(thread_count), *alone = new Pool(1);  // never destroyed: helpers outlive main
    return first ? *all : *alone;
  }
};

struct Step : Spec {
  Pool& pool;
  Reader& in;
  std::vector<Layer> layers;
  Weight table, head;
  const float* final_norm;
  std::vector<std::vector<float>> keep;
  int64_t M = B * T;             // all rows, which say how a product goes
  std::vector<int64_t> begins;   // [B + 1]: where each text's rows begin among those that are computed
  std::vector<int64_t> place;    // of a row that is computed among all, b * T + t
  std::vector<int64_t> lasts;    // texts whose last logits are computed
  const int64_t widest = padded(max(D, max(K * G * H, F)));
  Room<float> x{M * D}, a{M * widest};
  Room<float> wide{M * max(K * (G + 2) * H, max(2 * F, D))};
  Room<Block> blocks;
  Room<char> tiles;
  Room<float> passed;  // as `a`, and as `blocks`: of layers whose products gate
  Room<Block> passed_blocks;
  std::vector<Run> runs;  // see `looked_at`

  Step(Pool& p, Reader& r) : Spec(r.sizes<Spec>()), pool(p), in(r), layers(L) {
    table = in.weight();
    for (auto& l : layers)
      l.qkv = in.weight(), l.o = in.weight(), l.gate_up = in.weight(), l.down = in.weight();
    // The error of a key that most queries look at is everywhere; that of a query is its own row's.
    for (auto& l : layers) l.qkv.exact = true, l.qkv.period = (G + 2) * H, l.qkv.loose = G * H;
    head = in.weight();
    for (auto& l : layers) {
      l.window = in.next();
      l.all_heads = in.next();
      l.cosines = in.table(&l.half);
      l.sines = in.table(&l.half);
      l.query_scale = (const float*)in.arg(in.next());
      for (auto* v : {&l.norm1, &l.post1, &l.norm2, &l.post2, &l.q_norm, &l.k_norm})
        *v = in.vector(dtype, keep, norm_offset);
      for (auto* v : {&l.qkv_bias, &l.o_bias, &l.gate_up_bias, &l.down_bias}) *v = in.vector(dtype, keep);
    }
    final_norm = in.vector(dtype, keep, norm_offset);
    take((const int32_t*)in.arg(2));
    int64_t most_blocks = head.room_in_blocks(like_head()), most_bytes = head.room_in_tiles(like_head());
    for (const Layer& l : layers)
      for (const Weight* w : {&l.qkv, &l.o, &l.gate_up, &l.down}) {
        most_blocks = max(most_blocks, w->room_in_blocks(M));
        most_bytes = max(most_bytes, w->room_in_tiles(M));
      }
    blocks = Room<Block>(most_blocks);
    tiles = Room<char>(most_bytes);
    bool any[2] = {};  // of dense weights, of quantised ones
    for (const Layer& l : layers) any[l.gate_up.quantised()] |= gates(l);
    if (any[0]) passed = Room<float>(M * widest);
    if (any[1]) passed_blocks = Room<Block>(most_blocks);
  }
  // Where last logits alone are asked for, tokens that count: the padding is not computed, nor a text without any.
  void take(const int32_t* n_valid) {
    begins = {0};
    for (int64_t b = 0; b < B; b++) {
      const int64_t count = last_only ? min<int64_t>(max(n_valid[b], 0), T) : T;
      for (int64_t t = 0; t < count; t++) place.push_back(b * T + t);
      begins.push_back(begins.back() + count);
      if (count && last_only) lasts.push_back(b);
    }
  }
  int64_t taken() const { return begins[B]; }
  int64_t head_rows() const { return last_only ? lasts.size() : M; }
  int64_t like_head() const { return last_only ? B : M; }
  // Logits of the texts that have any, from the first ones' places to their own; zeros for the others.
  void spread(float* logits) const {
    if (!last_only) return;
    const int64_t V = head.rows;
    for (int64_t b = B - 1, i = lasts.size() - 1; b >= 0 && b > i; b--) {
      if (i >= 0 && lasts[i] == b)
        copy(logits + i-- * V, V, logits + b * V);
      else
        fill(logits + b * V, logits + (b + 1) * V, 0.f);
    }
  }
  // Rows a power of two apart would fight for the same lines of the first-level cache.
  static int64_t padded(int64_t n) { return n + 16; }
  template <class Work>
  void each_row(int64_t rows, const Work& work) {
    pool.run(rows, 1, [&](int64_t m, int64_t end) {
      for (; m < end; m++) work(m);
    });
  }
  // Readies row m of `a` for w.
  void ready(const Weight& w, int64_t m, int64_t rows) {
    if (w.tiled(rows)) return to_tiles(w, &a[m * padded(w.cols)], m, tiles.data());
    if (w.paired(rows)) to_pairs(w, &a[m * padded(w.cols)]);
    if (w.quantised()) quantise(w, &a[m * padded(w.cols)], rows, &blocks[m * (w.cols / BLOCK)]);
  }
  void apply(const Weight& w, int64_t rows, int64_t like, float* y, const float* bias, bool add,
             const Weight& next) {
    pool.expect(next.values, next.tiles(), grain(pool, next, like), next.tile_bytes());
    const Rows ready{a.data(), padded(w.cols), blocks.data(), tiles.data(), like};
    product(pool, w, ready, rows, {y, w.rows, bias, add});
  }

  // Row m of the residual stream on its way into a product.
  void normed(int64_t m, const float* norm, float* y) const {
    norm ? rms_norm(&x[m * D], norm, D, eps, y) : copy(&x[m * D], D, y);
  }
  // What half a layer adds to the residual stream: the product adds it itself, or leaves it in `wide` for
  // `settle` to normalise and scale.
  bool direct(const float* post) const { return !post && residual == 1; }
  void add(const Weight& w, const float* bias, const float* post, const Weight& next) {
    apply(w, taken(), M, direct(post) ? x.data() : wide.data(), bias, direct(post), next);
  }
  void settle(int64_t m, const float* post) {
    if (direct(post)) return;
    float *made = &wide[m * D], *sum = &x[m * D];
    const float factor = residual;
    if (post) rms_norm(made, post, D, eps, made);
    for (int64_t c = 0; c < D; c++) sum[c] += made[c] * factor;
  }

  bool has_parts() const {
    bool all = has_part(OF_ATTENTION + int(cache)) && has_part(part_of(head));
    for (const Layer& l : layers)
      for (const Weight* w : {&l.qkv, &l.o, &l.gate_up, &l.down}) all = all && has_part(part_of(*w));
    return all;
  }
  void run() {
    const int32_t *tokens = (int32_t*)in.arg(0), *length = (int32_t*)in.arg(1), *n_valid = (int32_t*)in.arg(2);
    each_row(taken(), [&](int64_t m) {  // NaN for a token that finds the cache full; padding may be any id
      const int64_t b = place[m] / T, t = place[m] % T;
      const bool lost = length[b] + t >= S;
      embed(table, t >= n_valid[b] ? 0 : lost ? -1 : tokens[place[m]], &x[m * D]);
      if (embedding != 1) multiply(&x[m * D], D, embedding);
    });
    for (int64_t l = 0; l < L; l++) {
      const Layer& p = layers[l];
      each_row(taken(), [&](int64_t m) {
        if (l) settle(m, layers[l - 1].post2);
        normed(m, p.norm1, &a[m * padded(D)]);
        ready(p.qkv, m, M);
      });
      apply(p.qkv, taken(), M, wide.data(), p.qkv_bias, false, p.o);
      typed(cache, in.ret(1 + l), [&](auto* keys) {
        append(keys, l, p);
        if (l + 1 == L && last_only) narrow();
      });
      const Attention call = attention(in.ret(1 + l), l, p);
      each_row(B * K * call.parts, [&](int64_t task) { part<Attend>(OF_ATTENTION + int(cache))(call, task); });
      each_row(taken(), [&](int64_t m) { ready(p.o, m, M); });
      add(p.o, p.o_bias, p.post1, p.gate_up);
      each_row(taken(), [&](int64_t m) {
        settle(m, p.post1);
        normed(m, p.norm2, &a[m * padded(D)]);
        ready(p.gate_up, m, M);
      });
      gate(l);
      add(p.down, p.down_bias, p.post2, l + 1 < L ? layers[l + 1].qkv : head);
    }
    const int64_t rows = head_rows(), like = like_head();
    each_row(rows, [&](int64_t m) {
      settle(m, layers[L - 1].post2);
      normed(m, final_norm, &a[m * padded(D)]);
      ready(head, m, like);
    });
    float* logits = (float*)in.ret(0);
    apply(head, rows, like, logits, nullptr, false, layers[0].qkv);
    if (logit_scale != 1 || logit_cap) finish(logits, rows * head.rows);
    spread(logits);
  }
  // Whether the product gates: a quantised one makes the next one's blocks, too.
  bool gates(const Layer& l) const {
    return l.gate_up.gates(M, taken()) && !l.gate_up_bias &&
           (!l.gate_up.quantised() || (l.down.quantised() && !l.down.tiled(M)));
  }
  // `a` or `blocks` become what the gates let pass, ready for `down`: the product gates it, or writes both to `wide`.
  void gate(int64_t l) {
    const Layer& p = layers[l];
    if (!gates(p)) {
      apply(p.gate_up, taken(), M, wide.data(), p.gate_up_bias, false, p.down);
      return each_row(taken(), [&](int64_t m) {
        gated(act, &wide[m * 2 * F], &wide[m * 2 * F + F], F, &a[m * padded(F)]);
        ready(p.down, m, M);
      });
    }
    const bool pairs = p.down.paired(M), quantised = p.gate_up.quantised();
    const Rows ready{a.data(), padded(D), blocks.data(), nullptr, M};
    const Meeting meeting(p.down, M);
    pool.expect(p.down.values, p.down.tiles(), grain(pool, p.down, M), p.down.tile_bytes());
    const Soon soon = quantised && T == 1 && l + 1 < L ? looked_at(l + 1) : Soon{};
    const Out out{quantised ? nullptr : passed.data(), padded(F), nullptr, false, F, act, pairs,
                  quantised ? passed_blocks.data() : nullptr, &meeting, &soon};
    product(pool, p.gate_up, ready, taken(), out);
    if (quantised) return swap(blocks, passed_blocks);
    swap(a, passed);
    if (!pairs) each_row(taken(), [&](int64_t m) { this->ready(p.down, m, M); });
  }
  void finish(float* logits, int64_t n) {
    constexpr int64_t PIECE = 4096;  // that a thread takes at a time
    each_row((n + PIECE - 1) / PIECE, [&](int64_t i) {
      float* piece = logits + i * PIECE;
      const int64_t some = min(PIECE, n - i * PIECE);
      logit_cap ? soft_cap(piece, some, logit_scale, logit_cap) : multiply(piece, some, logit_scale);
    });
  }

  // Row m of q, k and v on its way into the cache and the scores: queries and keys normalised and rotated.
  void turn(int64_t m, const Layer& p) {
    const int64_t half = p.half, per_head = (G + 2) * H;
    float* row = &wide[m * K * per_head];
    if (p.q_norm && p.all_heads) {
      rms_norm_together(row, K, per_head, p.q_norm, G * H, eps);
      rms_norm_together(row + G * H, K, per_head, p.k_norm, H, eps);
    }
    const float *cos = p.cosines + place[m] * half, *sin = p.sines + place[m] * half;
    for (int64_t k = 0; k < K; k++) {
      float* head = row + k * per_head;
      for (int64_t j = 0; j <= G; j++, head += H) {
        if (p.q_norm && !p.all_heads) rms_norm(head, j < G ? p.q_norm : p.k_norm, H, eps, head);
        if (p.query_scale && j < G) multiply(head, H, p.query_scale[place[m]]);
        for (int64_t i = 0; i < half; i++) {
          const float f = head[i], s = head[i + half];
          head[i] = f * cos[i] - s * sin[i];
          head[i + half] = s * cos[i] + f * sin[i];
        }
      }
    }
  }

  // Of the last layer only keys and values are wanted of all tokens: behind them each text's last row goes on alone.
  void narrow() {
    const int64_t width = K * (G + 2) * H;
    for (int64_t i = 0; i < (int64_t)lasts.size(); i++) {
      const int64_t from = begins[lasts[i] + 1] - 1;  // never before i
      if (from == i) continue;
      copy(&x[from * D], D, &x[i * D]);
      copy(&wide[from * width], width, &wide[i * width]);
      place[i] = place[from];
    }
    for (int64_t& begin : begins) begin = 0;
    for (int64_t b : lasts) begins[b + 1] = 1;
    for (int64_t b = 0; b < B; b++) begins[b + 1] += begins[b];
  }

  template <class C>
  void append(const C* kept, int64_t l, const Layer& p) {
    C *keys = const_cast<C*>(kept), *values = (C*)in.ret(1 + L + l);
    const int32_t *length = (int32_t*)in.arg(1), *cache_row = (int32_t*)in.arg(3);
    const int64_t per_head = (G + 2) * H, width = K * per_head;
    each_row(taken(), [&](int64_t m) {  // positions past the end are dropped
      turn(m, p);
      const int64_t b = place[m] / T, at = length[b] + place[m] % T;
      if (at < 0 || at >= S) return;
      for (int64_t k = 0; k < K; k++) {
        const float *key = &wide[m * width + k * per_head + G * H], *value = key + H;
        const int64_t place = ((cache_row[b] * K + k) * S + at) * H;
        for (int64_t i = 0; i < H; i++) put(keys + place + i, key[i]), put(values + place + i, value[i]);
      }
    });
  }
  // Keys and values that a step looks at in a layer, in the order of attention's tasks. They are more than a core's own
  // caches hold, but what falls out of these lies in the third level.
  Soon looked_at(int64_t l) {
    const int32_t *length = (int32_t*)in.arg(1), *cache_row = (int32_t*)in.arg(3);
    const int64_t item = cache == F32 ? 4 : 2, window = layers[l].window;
    runs.clear();
    for (int64_t b = 0; b < B; b++) {
      const int64_t end = min<int64_t>(length[b], S), first = window ? max<int64_t>(end - window, 0) : 0;
      for (int64_t k = 0; k < K; k++)
        for (int64_t i : {l, L + l}) {
          const int64_t at = ((cache_row[b] * K + k) * S + first) * H * item;
          const int64_t lines = begins[b + 1] > begins[b] ? (end - first) * H * item / 64 : 0;
          runs.push_back({(const char*)in.ret(1 + i) + at, lines});
        }
    }
    return {runs.data(), (int64_t)runs.size()};
  }
  // Of so many queries that share keys, how many look at these together: of many texts' all, up to 4, for each takes
  // a share of reading and widening the keys; of few texts' as many as leave each thread some tasks.
  int64_t together(int64_t queries) const {
    if (queries >= PANEL / 2) return PANEL;
    const int64_t parts = (queries + 3) / 4;
    if (LANES == 16 && B * K * parts >= 4 * pool.threads()) return (queries + parts - 1) / parts;
    return queries % 4 == 0 ? 4 : queries % 2 == 0 ? 2 : 1;
  }
  Attention attention(const void* keys, int64_t l, const Layer& p) {
    const int64_t most = together(T * G);
    return {B, T, K, G, H, S, p.window, {float(score_scale), float(score_cap)}, most, (T * G + most - 1) / most, keys,
            in.ret(1 + L + l), (int32_t*)in.arg(1), (int32_t*)in.arg(3), begins.data(), place.data(), wide.data(),
            a.data(), padded(K * G * H)};
  }
};

static bool metadata(XLA_FFI_CallFrame* call) {  // XLA asks for the interface's version at registration
  auto* e = call->extension_start;
  if (!e || e->type != XLA_FFI_Extension_Metadata) return false;
  auto* m = ((XLA_FFI_Metadata_Extension*)e)->metadata;
  m->api_version.major_version = XLA_FFI_API_MAJOR;
  m->api_version.minor_version = XLA_FFI_API_MINOR;
  return true;
}

static XLA_FFI_Error* lacking(XLA_FFI_CallFrame* call) {
  XLA_FFI_Error_Create_Args error{};
  error.struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE;
  error.message = "a part of the CPU kernels can't be compiled or loaded";
  error.errc = XLA_FFI_Error_Code_FAILED_PRECONDITION;
  return call->api->XLA_FFI_Error_Create(&error);
}

extern "C" XLA_FFI_Error* jllama_forward(XLA_FFI_CallFrame* call) {
  if (metadata(call)) return nullptr;
  Turn turn;
  Reader in(call);
  Step step(turn.pool(), in);
  if (!step.has_parts()) return lacking(call);
  step.run();
  return nullptr;
}

extern "C" XLA_FFI_Error* jllama_product(
    XLA_FFI_CallFrame* call) {  // x [M, cols] float32 -> [M, rows] float32
  if (metadata(call)) return nullptr;
  Turn turn;
  Reader in(call);
  Pool& pool = turn.pool();
  const int64_t rows = in.next();
  Weight w = in.weight();
  if (!has_part(part_of(w))) return lacking(call);
  const float* x = (const float*)in.arg(0);
  std::vector<float> pairs;
  if (w.paired(rows)) {
    pairs.assign(x, x + rows * w.cols);
    x = pairs.data();
    for (int64_t m = 0; m < rows; m++) to_pairs(w, &pairs[m * w.cols]);
  }
  Room<Block> blocks(w.room_in_blocks(rows));
  Room<char> tiles(w.room_in_tiles(rows));
  if (w.tiled(rows))
    pool.run(rows, 1, [&](int64_t m, int64_t end) {
      for (; m < end; m++) to_tiles(w, x + m * w.cols, m, tiles.data());
    });
  else if (w.quantised())
    pool.run(rows, 1, [&](int64_t m, int64_t end) {
      for (; m < end; m++) quantise(w, x + m * w.cols, rows, &blocks[m * (w.cols / BLOCK)]);
    });
  const Rows ready{x, w.cols, blocks.data(), tiles.data(), rows};
  product(pool, w, ready, rows, {(float*)in.ret(0), w.rows, nullptr, false});
  return nullptr;
}

// Memory that reads as zeros. Its pages are given back to the system, which clears those that are written or read,
// large ones where it can: by then several threads write, and of a cache of many rows much never is.
static void clear(char* p, int64_t bytes) {
#if defined(__linux__)
  const int64_t page = sysconf(_SC_PAGESIZE), before = min(-int64_t(p) & (page - 1), bytes),
                whole = (bytes - before) & -page;
  if (whole && madvise(p + before, whole, MADV_DONTNEED) == 0) {
    madvise(p + before, whole, MADV_HUGEPAGE);
    memset(p, 0, before), memset(p + before + whole, 0, bytes - before - whole);
    return;
  }
#endif
  memset(p, 0, bytes);
}
extern "C" XLA_FFI_Error* jllama_zeros(XLA_FFI_CallFrame* call) {  // results of so many bytes each
  if (metadata(call)) return nullptr;
  Reader in(call);
  const int64_t bytes = in.next();
  for (int64_t i = 0; i < call->rets.size; i++) clear((char*)in.ret(i), bytes);
  return nullptr;
}

// numbers [source, to], caches [B, K, S, H] -> the same memory: row `to` begins with so many positions of row `source`; with
// zeros if that is -1.
extern "C" XLA_FFI_Error* jllama_copy_row(XLA_FFI_CallFrame* call) {
  if (metadata(call)) return nullptr;
  Reader in(call);
  const int64_t positions = in.next(), item = in.next();
  const int32_t *numbers = (const int32_t*)in.arg(0), source = numbers[0], to = numbers[1];
  for (int64_t i = 0; i < call->rets.size; i++) {
    const int64_t* dims = ((XLA_FFI_Buffer*)call->rets.rets[i])->dims;
    const int64_t K = dims[1], head = dims[2] * dims[3] * item, bytes = positions * dims[3] * item;
    for (int64_t k = 0; k < K; k++) {
      char *all = (char*)in.ret(i), *there = all + (to * K + k) * head;
      if (source < 0)
        memset(there, 0, bytes);
      else
        memmove(there, all + (source * K + k) * head, bytes);
    }
  }
  return nullptr;
}

extern "C" void jllama_threads(int n) { thread_count = n; }
extern "C" void jllama_part(int i, void* function) { parts[i] = function; }
extern "C" void jllama_load_part(void (*load)(int)) { load_part = load; }
extern "C" int jllama_looks_up() { return LOOKS_UP; }              // sixteen bytes in one instruction
extern "C" int jllama_pairs() { return PAIRS; }                     // for the tests
extern "C" int jllama_tiles() { return TILES && tiles_allowed(); }  // likewise
