// jllama on a CPU: the whole model in one call, and single products. Compiled for the machine it runs on.
//
// Shapes use the letters of jllama/layers/__init__.py; M = B * T rows of activations, which stay in float32
// (the cache is in the run dtype).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <vector>

#include "attention.h"
#include "xla/ffi/api/c_api.h"

// What Python sends along: sizes, then the weights, then where each operand is. See __init__.py `_spec`.
struct Spec {
  int64_t L, B, T, D, K, G, H, F, V, S, window, act, eps, dtype, cache, last_only;
};
struct Layer {
  Weight qkv, o, gate_up, down;
  const float *norm1, *norm2, *qkv_bias, *o_bias, *gate_up_bias, *down_bias;
};

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
  Weight weight() {
    Weight w;
    w.kind = next();
    w.rows = next();
    w.cols = next();
    w.group = next();
    w.half_scales = next();
    w.values = arg(next());
    w.scales = arg(next());
    w.offsets = arg(next());
    return w;
  }
  const float* vector(int64_t dtype, std::vector<std::vector<float>>& keep) {  // as float32
    int64_t i = next();
    if (i < 0) return nullptr;
    auto* b = (XLA_FFI_Buffer*)call_->args.args[i];
    if (dtype == F32) return (const float*)b->data;
    int64_t n = 1;
    for (int64_t d = 0; d < b->rank; d++) n *= b->dims[d];
    keep.emplace_back(n);
    float* out = keep.back().data();
    typed(dtype, b->data, [&](auto* p) {
      for (int64_t c = 0; c < n; c++) out[c] = one(p[c]);
    });
    return out;
  }

 private:
  XLA_FFI_CallFrame* call_;
  const int64_t* at_;
};

static int thread_count = 1;
static std::mutex pool_mutex;  // one call has the helpers; another at the same time goes on alone
struct Turn {
  std::unique_lock<std::mutex> lock{pool_mutex, std::try_to_lock};
  Pool& pool() {
    static Pool *all = new Pool(thread_count), *alone = new Pool(1);  // never destroyed: helpers outlive main
    return lock ? *all : *alone;
  }
};

struct Step : Spec {
  Pool& pool;
  Reader& in;
  std::vector<Layer> layers;
  Weight table, head;
  const float* final_norm;
  std::vector<std::vector<float>> keep;
  int64_t M = B * T;
  std::vector<float> x, a, wide;
  std::vector<Block> blocks;

  Step(Pool& p, Reader& r) : Spec(r.sizes<Spec>()), pool(p), in(r), layers(L) {
    table = in.weight();
    for (auto& l : layers)
      l.qkv = in.weight(), l.o = in.weight(), l.gate_up = in.weight(), l.down = in.weight();
    for (auto& l : layers) l.qkv.exact = true;  // the error of a key that most queries look at is everywhere
    head = in.weight();
    for (auto& l : layers)
      for (auto* v : {&l.norm1, &l.norm2, &l.qkv_bias, &l.o_bias, &l.gate_up_bias, &l.down_bias})
        *v = in.vector(dtype, keep);
    final_norm = in.vector(dtype, keep);
    const int64_t most = std::max({D, K * G * H, F});
    x.resize(M * D);
    a.resize(M * padded(most));
    wide.resize(M * std::max(K * (G + 2) * H, 2 * F));
    blocks.resize(M * (most / BLOCK + 1));
  }
  // Rows a power of two apart would fight for the same lines of the first-level cache.
  static int64_t padded(int64_t n) { return n + 16; }
  float epsilon() const {
    float e;
    uint32_t u = uint32_t(eps);
    memcpy(&e, &u, 4);
    return e;
  }
  template <class Work>
  void each_row(int64_t rows, const Work& work) {
    pool.run(rows, 1, [&](int64_t m, int64_t end) {
      for (; m < end; m++) work(m);
    });
  }
  // Readies row m of `a` for w.
  void ready(const Weight& w, int64_t m, int64_t rows) {
    if (w.paired(rows)) to_pairs(&a[m * padded(w.cols)], w.cols);
    if (w.quantised()) quantise(&a[m * padded(w.cols)], w.cols, w.bias(), &blocks[m * (w.cols / BLOCK)]);
  }
  void apply(const Weight& w, int64_t rows, float* y, const float* bias, bool add, const Weight& next) {
    pool.expect(next.values, next.tiles(), grain(pool, next, rows), next.tile_bytes());
    product(pool, w, {a.data(), padded(w.cols), blocks.data()}, rows, {y, w.rows, bias, add});
  }

  void run() {
    const int32_t *tokens = (int32_t*)in.arg(0), *length = (int32_t*)in.arg(1), *n_valid = (int32_t*)in.arg(2);
    each_row(M, [&](int64_t m) {  // NaN for a token that finds the cache full
      const int64_t b = m / T, t = m % T;
      const bool lost = t < n_valid[b] && length[b] + t >= S;
      embed(table, lost ? -1 : tokens[m], &x[m * D]);
    });
    for (int64_t l = 0; l < L; l++) {
      Layer& p = layers[l];
      each_row(M, [&](int64_t m) {
        rms_norm(&x[m * D], p.norm1, D, epsilon(), &a[m * padded(D)]);
        ready(p.qkv, m, M);
      });
      apply(p.qkv, M, wide.data(), p.qkv_bias, false, p.o);
      typed(cache, in.ret(1 + l), [&](auto* keys) {
        attention(const_cast<std::remove_const_t<std::remove_pointer_t<decltype(keys)>>*>(keys), l);
      });
      each_row(M, [&](int64_t m) { ready(p.o, m, M); });
      apply(p.o, M, x.data(), p.o_bias, true, p.gate_up);
      each_row(M, [&](int64_t m) {
        rms_norm(&x[m * D], p.norm2, D, epsilon(), &a[m * padded(D)]);
        ready(p.gate_up, m, M);
      });
      apply(p.gate_up, M, wide.data(), p.gate_up_bias, false, p.down);
      each_row(M, [&](int64_t m) {
        gated(act, &wide[m * 2 * F], &wide[m * 2 * F + F], F, &a[m * padded(F)]);
        ready(p.down, m, M);
      });
      apply(p.down, M, x.data(), p.down_bias, true, l + 1 < L ? layers[l + 1].qkv : head);
    }
    const int64_t rows = last_only ? B : M;
    each_row(rows, [&](int64_t m) {
      const int64_t from = last_only ? m * T + std::min<int64_t>(std::max(n_valid[m] - 1, 0), T - 1) : m;
      rms_norm(&x[from * D], final_norm, D, epsilon(), &a[m * padded(D)]);
      ready(head, m, rows);
    });
    apply(head, rows, (float*)in.ret(0), nullptr, false, layers[0].qkv);
  }

  template <class C>
  void attention(C* keys, int64_t l) {
    C* values = (C*)in.ret(1 + L + l);
    const int32_t *length = (int32_t*)in.arg(1), *cache_row = (int32_t*)in.arg(3);
    const float *cosines = (float*)in.arg(4), *sines = (float*)in.arg(5);
    const int64_t per_head = (G + 2) * H, width = K * per_head, half_width = H / 2;
    each_row(M, [&](int64_t m) {  // rotate, append; positions past the end are dropped
      const int64_t b = m / T, at = length[b] + m % T;
      const float *cos = cosines + m * half_width, *sin = sines + m * half_width;
      for (int64_t k = 0; k < K; k++) {
        float* head = &wide[m * width + k * per_head];
        for (int64_t j = 0; j <= G; j++, head += H)
          for (int64_t i = 0; i < half_width; i++) {
            const float f = head[i], s = head[i + half_width];
            head[i] = f * cos[i] - s * sin[i];
            head[i + half_width] = s * cos[i] + f * sin[i];
          }
        if (at < 0 || at >= S) continue;
        const int64_t place = ((cache_row[b] * K + k) * S + at) * H;
        C *key = keys + place, *value = values + place;
        for (int64_t i = 0; i < H; i++) put(key + i, head[i - H]), put(value + i, head[i]);
      }
    });
    const int64_t queries = T * G;
    const int64_t most = queries >= PANEL / 2 ? PANEL
                         : queries % 4 == 0   ? 4
                         : queries % 2 == 0   ? 2
                                              : 1,
                  parts = (queries + most - 1) / most;
    each_row(B * K * parts, [&](int64_t task) {
      static thread_local std::vector<float> q, out, scratch;
      q.resize(PANEL * H);
      out.resize(PANEL * H);
      const int64_t bk = task / parts, b = bk / K, k = bk % K, begin = task % parts * most,
                    end = std::min(begin + most, queries);
      const int64_t own = (cache_row[b] * K + k) * S * H;
      const C *own_keys = keys + own, *own_values = values + own;
      auto query = [&](int64_t i) { return &wide[(b * T + i / G) * width + k * per_head + i % G * H]; };
      auto result = [&](int64_t i) { return &a[(b * T + i / G) * padded(K * G * H) + (k * G + i % G) * H]; };
      auto range = [&](int64_t i, auto* first, auto* last) {
        const int64_t at = length[b] + i / G;
        *last = std::min(at, S - 1);
        *first = window ? std::min(std::max<int64_t>(at - window + 1, 0), std::min(at, S - 1)) : 0;
      };
      if (most == PANEL) {
        int32_t first[PANEL], last[PANEL];
        for (int64_t j = 0; j < PANEL; j++) {
          const int64_t i = std::min(begin + j, end - 1);
          range(i, &first[j], &last[j]);
          for (int64_t h = 0; h < H; h++) q[h * PANEL + j] = query(i)[h];
        }
        attend_many(q.data(), own_keys, own_values, H, first, last, scratch, out.data());
        for (int64_t i = begin; i < end; i++)
          for (int64_t h = 0; h < H; h++) result(i)[h] = out[h * PANEL + i - begin];
        return;
      }
      by_rows<4, 2, 1>(begin, end, [&](auto N, int64_t i) {
        int64_t first[N()], last[N()];
        for (int64_t j = 0; j < N(); j++)
          memcpy(&q[j * H], query(i + j), H * 4), range(i + j, &first[j], &last[j]);
        attend<C, N()>(q.data(), own_keys, own_values, H, first, last, scratch, out.data());
        for (int64_t j = 0; j < N(); j++) memcpy(result(i + j), &out[j * H], H * 4);
      });
    });
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

extern "C" XLA_FFI_Error* jllama_forward(XLA_FFI_CallFrame* call) {
  if (metadata(call)) return nullptr;
  Turn turn;
  Reader in(call);
  Step(turn.pool(), in).run();
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
  const float* x = (const float*)in.arg(0);
  std::vector<float> pairs;
  if (w.paired(rows)) {
    pairs.assign(x, x + rows * w.cols);
    x = pairs.data();
    for (int64_t m = 0; m < rows; m++) to_pairs(&pairs[m * w.cols], w.cols);
  }
  std::vector<Block> blocks(w.quantised() ? rows * (w.cols / BLOCK) : 0);
  if (w.quantised())
    pool.run(rows, 1, [&](int64_t m, int64_t end) {
      for (; m < end; m++) quantise(x + m * w.cols, w.cols, w.bias(), &blocks[m * (w.cols / BLOCK)]);
    });
  product(pool, w, {x, w.cols, blocks.data()}, rows, {(float*)in.ret(0), w.rows, nullptr, false});
  return nullptr;
}

extern "C" void jllama_threads(int n) { thread_count = n; }
extern "C" int jllama_pairs() { return PAIRS; }  // for the tests
