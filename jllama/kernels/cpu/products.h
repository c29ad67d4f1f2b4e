// Weights of every format times rows of activations.
#pragma once
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "simd.h"
#include "tiles.h"

constexpr int VECTORS = TILE == LANES ? 2 : PARTS, PANEL = VECTORS * LANES;  // rows of a weight side by side
constexpr int64_t FEW_ROWS = 16;   // up to which activations meet weights as dot products
// Whether bytes of two tiles are multiplied at a time: up to 8 rows wait for the weights, which one tile after the
// other reads faster.
constexpr bool by_pairs(int64_t m) { return SPLIT && LANES == 16 && m > 8; }
// The same for quantised weights. An AMD core starts as many products of bytes in a cycle as of 16 bits, so widening
// weights brings nothing. Measured up to 32 rows on Zen 4, which like those before has 32 KB of first-level cache.
inline int64_t few_quantised() {
#if defined(__linux__)
  static const bool amd = SPLIT && AMD, old = sysconf(_SC_LEVEL1_DCACHE_SIZE) == 32 << 10;
  return !amd ? FEW_ROWS : old ? 32 : LANES == 16 ? INT64_MAX : FEW_ROWS;
#else
  return FEW_ROWS;
#endif
}
constexpr int64_t SOME_ROWS = 64;  // up to which expanding a quantised weight for tile registers does not pay
constexpr int64_t MOST_TILES = 8;  // of a weight that are expanded at a time
// Memory that is not set to anything, at a multiple of a large page's size: one thread does not wait until the
// system has cleared all of it.
template <class T>
class Room {
 public:
  explicit Room(int64_t n) {
    constexpr size_t PAGE = 2 << 20;
    const size_t bytes = n * sizeof(T), align = bytes < PAGE ? 64 : PAGE;
    at_ = (T*)aligned_alloc(align, (bytes + align) / align * align);
    if (!at_) abort();
#if defined(__linux__)
    if (align == PAGE) madvise(at_, bytes, MADV_HUGEPAGE);
#endif
  }
  Room() = default;
  Room(Room&& other) { swap(at_, other.at_); }
  Room& operator=(Room&& other) { return swap(at_, other.at_), *this; }
  ~Room() { free(at_); }
  T* data() const { return at_; }
  T& operator[](int64_t i) const { return at_[i]; }

 private:
  T* at_ = nullptr;
};
enum Kind : int64_t { F32, BF16, F16, Q8, Q4, Q6, Q4_LEVELS };
enum Scales : int64_t { WIDE, HALF, UNITS };  // float32, float16, int8 times a float16 for UNIT weights
// [rows, cols]; quantised ones interleaved by TILE rows, scales [rows / TILE, groups, TILE]
struct Weight {
  int64_t kind, rows, cols, group, scale_kind;
  const void *values, *scales, *offsets, *scale_units, *offset_units;
  bool exact = false;              // activations are not rounded to bfloat16, nor are two of it taken for less
  int64_t period = 0, loose = 0;  // but where pairs are multiplied, for the first `loose` of each `period` rows
  bool quantised() const { return kind >= Q8; }
  // Scales or offsets of LANES rows: place i among them, u among their units.
  F scale(const void* p, const void* units, int64_t i, int64_t u) const {
    return scale_kind == UNITS  ? load((const int8_t*)p + i) * load((const half*)units + u)
           : scale_kind == HALF ? load((const half*)p + i)
                                : load((const float*)p + i);
  }
  bool few(int64_t m) const { return m <= (quantised() ? few_quantised() : FEW_ROWS); }
  // Whether m rows of activations meet these weights in halves of 8 bits.
  bool split(int64_t m) const { return few(m) && (SPLIT || (NIBBLES && kind == Q4)); }
  bool halves() const { return group == BLOCK / 2; }
  // Whether 6 bits or levels become bytes before m rows of activations meet them; with wide registers up to 8 rows
  // wait for memory as they are.
  bool unpacked(int64_t m) const { return kind >= Q6 && (by_pairs(m) || (LANES < 16 && m > 2)); }
  int bias(int64_t m) const {  // what m rows of activations meet is so much larger than the weight
    return kind == Q4 ? (offsets ? 0 : 8) : kind == Q6 && !unpacked(m) ? 32 : FLIP;
  }
  // Many rows of activations meet these weights in tile registers.
  bool tiled(int64_t m) const {
    return TILES && (kind == BF16 ? !few(m) : quantised() && m > SOME_ROWS) && tiles_allowed();
  }
  // There, activations and quantised weights are sums of two bfloat16 each, together 16 bits, but activations
  // that may be rounded.
  int tile_parts() const { return exact || quantised() ? 2 : 1; }
  int64_t tile_columns() const { return (cols + TILE_COLUMNS - 1) / TILE_COLUMNS; }  // beside one another
  int64_t room_in_tiles(int64_t m) const {  // bytes of m rows of activations, those that are none included
    return tiled(m) ? (m + TILE - 1) / TILE * tile_columns() * tile_parts() * TILE_BYTES : 0;
  }
  int64_t room_in_blocks(int64_t m) const { return quantised() && !tiled(m) ? m * (cols / BLOCK) : 0; }
  // Elsewhere they are rounded to bfloat16 too where an instruction multiplies pairs of them; exact ones are two.
  bool paired(int64_t m) const {
    return PAIRS && kind == BF16 && !few(m) && cols % 2 == 0 && !tiled(m);
  }
  // Whether a product of `made` rows, by the way of m, can gate what it makes: a gate and what it gates are made side
  // by side.
  bool gates(int64_t m, int64_t made) const {
    const bool beside = quantised() ? PANEL == 2 * TILE && (!few(m) || by_pairs(made)) : !few(m);
    return beside && !tiled(m) && rows % (2 * TILE) == 0;
  }
  // Whether some of these rows meet what rounding activations left as well, a second bfloat16 of each.
  bool rests(int64_t r0, int64_t r1) const { return exact && !(period && r0 % period + (r1 - r0) <= loose); }
  int64_t tiles() const { return (rows + TILE - 1) / TILE; }
  int64_t tile_bytes() const {
    return cols * TILE / 4 * (kind == F32 ? 16 : kind == Q8 ? 4 : kind == Q6 ? 3 : kind >= Q4 ? 2 : 8);
  }
};
template <class Work>
static auto typed(int64_t kind, const void* p, const Work& work) {
  return kind == F32 ? work((const float*)p) : kind == F16 ? work((const half*)p) : work((const bf16*)p);
}
// 32 activations in 16 bits: as words that meet words of four weights. In pairs: word j of the weights meets
// activations 4j and 4j + 2, then 4j + 1 and 4j + 3. Split (`split`): first the high bytes of all, then the low ones.
struct Block {
  int32_t q[BLOCK / 2];
  float scale, scaled_sum, scaled_first;  // the sum of all, and of the first half
  int32_t start, start_first;             // -bias times the sums
};
constexpr float TOP = 32639;  // 127 * 256 + 127: both bytes are signed

constexpr auto add = [](I a, I b) { return a + b; };
INLINE void put_split(I q, int at, Block* out) {
  using Bytes = typename Vec<int8_t>::type;
  const Bytes high = __builtin_convertvector((q + 128) >> 8, Bytes), low = __builtin_convertvector(q, Bytes);
  memcpy((char*)out->q + at, &high, LANES);
  memcpy((char*)out->q + BLOCK + at, &low, LANES);
}
INLINE void put_pairs(I q, int at, Block* out) {
  I ahead;
  for (int j = 0; j < LANES; j++) ahead[j] = (j + 2) % LANES;
  q = (q & 0xffff) | shuffled(q, q, ahead) << 16;
  UNROLL for (int j = 0; j < LANES; j += 4) memcpy(out->q + (at + j) / 2, (char*)&q + 4 * j, 8);
}
// How the blocks of `rows` rows of activations meet w.
struct Meeting {
  bool split;
  int bias;
  Meeting(const Weight& w, int64_t rows) : split(w.split(rows)), bias(w.bias(rows)) {}
};
INLINE void quantise(const Meeting& how, const float* x, Block* out) {  // one block
  I top = {};  // the largest magnitude, compared as bits: a NaN is larger than any number
  UNROLL for (int i = 0; i < BLOCK; i += LANES) { top = imax(top, (I)load(x + i) & 0x7fffffff); }
  const int32_t most = fold(top, imax);
  float largest;
  memcpy(&largest, &most, 4);
  bool zero = largest < 1e-30f;
  out->scale = zero ? 0 : largest / TOP;
  float inverse = zero ? 0 : TOP / largest;
  I total = {};
  int32_t first = 0;
  UNROLL for (int i = 0; i < BLOCK; i += LANES) {
    if (i == BLOCK / 2) first = fold(total, add);
    const I q = (I)(load(x + i) * inverse + 12582912.f) << 16 >> 16;  // rounds; the low half is the result
    how.split ? put_split(q, i, out) : put_pairs(q, i, out);
    total += q;
  }
  const int32_t s = fold(total, add);
  out->scaled_sum = out->scale * s, out->scaled_first = out->scale * first;
  out->start = -how.bias * s, out->start_first = -how.bias * first;
}
// One row of x as one of `rows` rows meets w.
static void quantise(const Weight& w, const float* x, int64_t rows, Block* out) {
  const Meeting how(w, rows);
  for (int64_t c = 0; c < w.cols; c += BLOCK, out++) quantise(how, x + c, out);
}

// Numbers as sums of two bfloat16, each in the upper half of its word: what the first leaves is the second.
INLINE I rounded(F x) {  // to nearest, ties to even; a NaN stays one
  const I bits = (I)x;
  return x == x ? (bits + 0x7fff + (bits >> 16 & 1)) & ~0xffff : I{} + 0x7fc00000;
}
INLINE I rest(F x, I first) { return rounded(x - (F)first); }
// Row m of many on its way into tiles: [rows / 16, columns, parts, 16, 32] bfloat16, zeros behind the last.
static void to_tiles(const Weight& w, const float* x, int64_t m, char* out) {
  const int64_t columns = w.tile_columns(), parts = w.tile_parts();
  out += m / TILE * columns * parts * TILE_BYTES + m % TILE * 64;
  for (int64_t k = 0; k < columns; k++, out += parts * TILE_BYTES) {
    const float* from = x + k * TILE_COLUMNS;
    float last[TILE_COLUMNS] = {};
    if ((k + 1) * TILE_COLUMNS > w.cols) copy(from, x + w.cols - from, last), from = last;
    UNROLL for (int i = 0; i < TILE_COLUMNS; i += LANES) {
      const F v = load(from + i);
      const I first = rounded(v);
      const U16 high = __builtin_convertvector(first >> 16, U16);
      memcpy(out + 2 * i, &high, sizeof high);
      if (parts == 1) continue;
      const U16 low = __builtin_convertvector(rest(v, first) >> 16, U16);
      memcpy(out + TILE_BYTES + 2 * i, &low, sizeof low);
    }
  }
}
// In place: the row's numbers in the first half of their memory, what rounding left of them in the second.
static void to_pairs(const Weight& w, float* x) {
  static thread_local Buffer<uint16_t> left;
  uint16_t *firsts = (uint16_t*)x, *rests = left.of(w.cols + LANES);
  auto some = [&](F v, int64_t c) {
    const I first = rounded(v);
    if (w.exact) *(U16*)(rests + c) = __builtin_convertvector(rest(v, first) >> 16, U16);
    return __builtin_convertvector(first >> 16, U16);
  };
  int64_t c = 0;
  for (; c + LANES <= w.cols; c += LANES) *(U16*)(firsts + c) = some(load(x + c), c);
  if (c < w.cols) {
    F last{};
    memcpy(&last, x + c, 4 * (w.cols - c));
    const U16 high = some(last, c);
    memcpy(firsts + c, &high, 2 * (w.cols - c));
  }
  if (w.exact) memcpy(firsts + w.cols, rests, 2 * w.cols);
}

enum Act : int64_t { SILU, GELU, GELU_TANH, RELU };
static void gated(int64_t act, const float* gate, const float* up, int64_t n, float* y) {
  int64_t c = 0;
  if (act == SILU)
    for (; c + LANES <= n; c += LANES) {
      F g = load(gate + c);
      *(F*)(y + c) = g / (vexp(-g) + 1.f) * load(up + c);
    }
  if (act == GELU_TANH)
    for (; c + LANES <= n; c += LANES) {
      F g = load(gate + c);
      *(F*)(y + c) = g * 0.5f * (vtanh((g * g * g * 0.044715f + g) * 0.79788456f) + 1.f) * load(up + c);
    }
  for (; c < n; c++) {
    const float g = gate[c];
    y[c] = up[c] * (act == SILU   ? g / (1 + __builtin_expf(-g))
                    : act == RELU ? (g < 0 ? 0 : g)
                    : act == GELU ? g * 0.5f * __builtin_erfcf(g * -0.70710678f)
                                  : 0.5f * g * (1 + __builtin_tanhf(0.79788456f * (g + 0.044715f * g * g * g))));
  }
}

// Memory that is read behind a product, in runs of lines: threads share the runs as they share the tiles.
struct Run {
  const char* at;
  int64_t lines;
};
struct Soon {
  const Run* runs;
  int64_t count;
};
// What `some` of `parts` of a product fetch of it, in so many steps, each of so many lines: the part of a run.
static Run share_of(const Soon& soon, int64_t part, int64_t some, int64_t parts, int64_t steps) {
  const int64_t n = soon.count, i = part * n / parts, within = part * n - i * parts;
  if (i >= n) return {};
  const int64_t from = soon.runs[i].lines * within / parts,
                to = min(soon.runs[i].lines, soon.runs[i].lines * (within + some * n) / parts);
  return {soon.runs[i].at + from * 64, (to - from + steps - 1) / steps};
}

// y (+)= product + bias. Or, of a weight whose rows are `half` gates and as many others: what gates let pass, as
// float32; `pairs`: as bfloat16 in the first half of a row's memory; of a quantised weight: as `blocks` [M, half / BLOCK]
// that the next one meets.
struct Out {
  float* y;
  int64_t stride;
  const float* bias;
  bool add;
  int64_t half = 0, act = SILU;
  bool pairs = false;
  Block* blocks = nullptr;
  const Meeting* meeting = nullptr;
  const Soon* soon = nullptr;  // fetched meanwhile, where few rows meet a quantised weight
};
INLINE void store(const Out& o, int64_t m, int64_t row, float v) {
  float* y = o.y + m * o.stride + row;
  *y = (o.add ? *y : 0.f) + (o.bias ? v + o.bias[row] : v);
}

// M rows of x times R rows of a weight [rows, n]: dot products along the rows.
template <class T, int R, int M, int U>
INLINE void dots(const T* w, int64_t n, const float* x, int64_t stride, float (&y)[R][M]) {
  F acc[R][M][U] = {};
  int64_t c = 0;
  for (; c + LANES * U <= n; c += LANES * U) UNROLL for (int u = 0; u < U; u++) {
      F k[R];
      UNROLL for (int r = 0; r < R; r++) k[r] = load(w + r * n + c + u * LANES);
      UNROLL for (int r = 0; r < R; r++) __builtin_prefetch(
          R == 1 ? (const char*)(w + c + u * LANES) + 4096 : (const char*)(w + (R + r) * n + c), 0,
          M == 1 ? ONCE : 3);
      UNROLL for (int i = 0; i < M; i++) {
        F v = load(x + i * stride + c + u * LANES);
        if (R > 1) IN_REGISTER(v);
        UNROLL for (int r = 0; r < R; r++) acc[r][i][u] += k[r] * v;
      }
    }
  for (; U > 1 && c + LANES <= n; c += LANES) UNROLL for (int i = 0; i < M; i++) {
      UNROLL for (int r = 0; r < R; r++) acc[r][i][0] += load(w + r * n + c) * load(x + i * stride + c);
    }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int i = 0; i < M; i++) {
    UNROLL for (int u = 1; u < U; u++) acc[r][i][0] += acc[r][i][u];
    y[r][i] = sum(acc[r][i][0]);
    for (int64_t j = c; j < n; j++) y[r][i] += one(w[r * n + j]) * x[i * stride + j];
  }
}

constexpr int DEPTH = 256, MANY_DENSE = LANES == 16 ? 12 : LANES == 8 ? 6 : 4, SOME_DENSE = LANES == 16 ? 8 : 4;
// y[m][i] = the sum over c of x[m][c] * w[c][i], added to what was there unless `fresh`; y is [M, PANEL]. Pairs of
// bfloat16 travel as if each were one float32.
template <int M, class T = float>
static __attribute__((noinline)) void panel(const float* w, int64_t depth, const float* x, int64_t stride,
                                            int64_t next, float* y, bool fresh) {
  F acc[M][VECTORS] = {};
  if (!fresh) UNROLL for (int i = 0; i < M; i++)
    UNROLL for (int v = 0; v < VECTORS; v++) acc[i][v] = load(y + i * PANEL + v * LANES);
  for (int64_t c = 0; c < depth; c++) {
    F k[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++) {
      k[v] = load(w + c * PANEL + v * LANES);
      if (LANES == 8) IN_REGISTER(k[v]);
    }
    UNROLL for (int i = 0; i < M; i++) {
      F b = in_all(x + i * stride + c * next);
      IN_REGISTER(b);
      UNROLL for (int v = 0; v < VECTORS; v++) acc[i][v] =
          same<T, pair> ? dot2(acc[i][v], k[v], b) : acc[i][v] + k[v] * b;
    }
  }
  UNROLL for (int i = 0; i < M; i++)
    UNROLL for (int v = 0; v < VECTORS; v++) *(F*)(y + i * PANEL + v * LANES) = acc[i][v];
}
// Sums [m1 - m0, stride] of `wide` rows of a weight from `row` on, for rows m0 to m1 of activations.
static void store_rows(const Out& out, int64_t m0, int64_t m1, int64_t row, int64_t wide, const float* sums,
                       int64_t stride) {
  for (int64_t m = m0; m < m1; m++, sums += stride) {
    float* y = out.y + m * out.stride + row;
    int64_t i = 0;
    for (; i + LANES <= wide; i += LANES) {
      const F v = load(sums + i), old = out.add ? load(y + i) : F{};
      *(F*)(y + i) = old + (out.bias ? v + load(out.bias + row + i) : v);
    }
    for (; i < wide; i++) store(out, m, row + i, sums[i]);
  }
}

// Likewise what gates [m1 - m0, PANEL] let pass of others.
static void store_gated(const Out& out, int64_t m0, int64_t m1, int64_t row, int64_t wide, const float* gates,
                        const float* others) {
  for (int64_t m = m0; m < m1; m++, gates += PANEL, others += PANEL) {
    float* y = out.y + m * out.stride;
    if (!out.pairs) {
      gated(out.act, gates, others, wide, y + row);
      continue;
    }
    float passed[PANEL];
    gated(out.act, gates, others, wide, passed);
    for (int64_t i = 0; i < wide; i += LANES) {
      const U16 high = __builtin_convertvector(rounded(load(passed + i)) >> 16, U16);
      memcpy((uint16_t*)y + row + i, &high, sizeof high);
    }
  }
}

struct Rows {
  const float* x;
  int64_t stride;
  const Block* blocks;
  const char* tiles;
  int64_t like;  // the way is chosen as for so many rows: those that pad a chunk are not computed, but count here
};  // activations [M, cols], also quantised or in tiles where needed
