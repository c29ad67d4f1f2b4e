// Weights of every format times rows of activations.
#pragma once
#include <algorithm>
#include <vector>

#include "pool.h"
#include "simd.h"

constexpr int64_t FEW_ROWS = 16;  // up to which activations meet weights as dot products
enum Kind : int64_t { F32, BF16, F16, Q8, Q4 };
enum Scales : int64_t { WIDE, HALF, UNITS };  // float32, float16, int8 times a float16 for UNIT weights
// [rows, cols]; quantised ones interleaved by TILE rows, scales [rows / TILE, groups, TILE]
struct Weight {
  int64_t kind, rows, cols, group, scale_kind;
  const void *values, *scales, *offsets, *scale_units, *offset_units;
  bool exact = false;  // activations are never rounded to bfloat16
  bool quantised() const { return kind >= Q8; }
  // Scales or offsets of LANES rows: place i among them, u among their units.
  F scale(const void* p, const void* units, int64_t i, int64_t u) const {
    return scale_kind == UNITS  ? load((const int8_t*)p + i) * load((const half*)units + u)
           : scale_kind == HALF ? load((const half*)p + i)
                                : load((const float*)p + i);
  }
  bool halves() const { return group == BLOCK / 2; }
  int bias() const { return kind == Q8 ? FLIP : offsets ? 0 : 8; }
  // Many rows of activations are rounded to bfloat16 too where an instruction multiplies pairs of them.
  bool paired(int64_t m) const { return PAIRS && !exact && kind == BF16 && m > FEW_ROWS && cols % 2 == 0; }
  int64_t tiles() const { return (rows + TILE - 1) / TILE; }
  int64_t tile_bytes() const {
    return cols * TILE / 2 * (kind == F32 ? 8 : kind == Q8 ? 2 : kind == Q4 ? 1 : 4);
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
// One row of x as one of `rows` rows meets w.
static void quantise(const Weight& w, const float* x, int64_t rows, Block* out) {
  const bool split = SPLIT && rows <= FEW_ROWS;
  const int bias = w.bias();
  for (int64_t c = 0; c < w.cols; c += BLOCK, out++) {
    I top = {};  // the largest magnitude, compared as bits: a NaN is larger than any number
    UNROLL for (int i = 0; i < BLOCK; i += LANES) { top = imax(top, (I)load(x + c + i) & 0x7fffffff); }
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
      const I q = (I)(load(x + c + i) * inverse + 12582912.f) << 16 >> 16;  // rounds; the low half is the result
      split ? put_split(q, i, out) : put_pairs(q, i, out);
      total += q;
    }
    const int32_t s = fold(total, add);
    out->scaled_sum = out->scale * s, out->scaled_first = out->scale * first;
    out->start = -bias * s, out->start_first = -bias * first;
  }
}

static void to_pairs(float* x, int64_t n) {  // in place: n numbers in the first half of their memory
  bf16 out[LANES];
  for (int64_t c = 0; c < n; c += LANES) {
    const int64_t some = std::min<int64_t>(LANES, n - c);
    for (int64_t i = 0; i < some; i++) put(out + i, x[c + i]);
    memcpy((char*)x + 2 * c, out, 2 * some);
  }
}

struct Out {
  float* y;
  int64_t stride;
  const float* bias;
  bool add;
};  // y (+)= product + bias
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

constexpr int VECTORS = TILE == LANES ? 2 : PARTS, PANEL = VECTORS * LANES, DEPTH = 256,
              MANY_DENSE = LANES == 16 ? 12 : 4;
// y[m][i] += the sum over c of x[m][c] * w[c][i]. Pairs of bfloat16 travel as if each were one float32.
template <int M, class T = float>
static void panel(const float* w, int64_t depth, const float* x, int64_t stride, int64_t next, float* y,
                  int64_t ldy) {
  F acc[M][VECTORS];
  for (int i = 0; i < M; i++)
    UNROLL for (int v = 0; v < VECTORS; v++) acc[i][v] = load(y + i * ldy + v * LANES);
  for (int64_t c = 0; c < depth; c++) {
    F k[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++) k[v] = load(w + c * PANEL + v * LANES);
    UNROLL for (int i = 0; i < M; i++) {
      F b = F{} + x[i * stride + c * next];
      IN_REGISTER(b);
      UNROLL for (int v = 0; v < VECTORS; v++) acc[i][v] =
          std::is_same_v<T, pair> ? dot2(acc[i][v], k[v], b) : acc[i][v] + k[v] * b;
    }
  }
  for (int i = 0; i < M; i++)
    UNROLL for (int v = 0; v < VECTORS; v++) * (F*)(y + i * ldy + v * LANES) = acc[i][v];
}
struct Rows {
  const float* x;
  int64_t stride;
  const Block* blocks;
};  // activations [M, cols], also quantised where needed
// Tiles that a thread takes at a time: long runs read faster, short ones end together; `few` takes three rows
// at once, `many` a panel.
static int64_t grain(const Pool& pool, const Weight& w, int64_t rows) {
  const int64_t even = rows > FEW_ROWS ? PANEL / TILE : w.quantised() || rows <= 2 ? 1 : 3;
  return std::max(even, std::min((64 << 10) / w.tile_bytes(), w.tiles() / pool.threads() / 8) / even * even);
}
void product(Pool& pool, const Weight& w, const Rows& in, int64_t rows, const Out& out);
void embed(const Weight& w, int32_t token, float* x);  // one row; NaN for a token outside the vocabulary
