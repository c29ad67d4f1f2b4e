// Products and embeddings: a file of their own, so that two compilers work at the same time.
#include "products.h"

// Which weights `tile` is compiled for.
enum Form { EIGHT_BITS, FOUR_BITS, HALVES };  // the last: 8 bits, groups of half a block

// Adds up the products of block b for LANES rows from v on: M rows of x times words k.
template <Form FORM, int M>
INLINE void block(const Weight& w, const I (&k)[8], int64_t g, int64_t u, const Block* x, int64_t blocks,
                  F (*acc)[PARTS], int v) {
  const auto at = [&](const void* p, const void* units, int64_t group) {
    return w.scale(p, units, group * TILE + v * LANES, u * TILE + v * LANES);
  };
  const F s = at(w.scales, w.scale_units, g), o = w.offsets ? at(w.offsets, w.offset_units, g) : F{};
  if (FORM != HALVES) {
    UNROLL for (int i = 0; i < M; i++) {
      const Block& xb = x[i * blocks];
      I d = I{} + xb.start;
      UNROLL for (int j = 0; j < 8; j++) d = dot4(d, k[j], xb.q[j]);
      acc[i][v] += __builtin_convertvector(d, F) * (s * xb.scale);
      if (w.offsets) acc[i][v] += o * xb.scaled_sum;
    }
    return;
  }
  const F s2 = at(w.scales, w.scale_units, g + 1),
          o2 = w.offsets ? at(w.offsets, w.offset_units, g + 1) : F{};
  UNROLL for (int i = 0; i < M; i++) {
    const Block& xb = x[i * blocks];
    const int32_t start = -FLIP * xb.first_sum;
    I d = I{} + start, d2 = I{} + (xb.start - start);
    UNROLL for (int j = 0; j < 4; j++) d = dot4(d, k[j], xb.q[j]), d2 = dot4(d2, k[j + 4], xb.q[j + 4]);
    acc[i][v] += (__builtin_convertvector(d, F) * s + __builtin_convertvector(d2, F) * s2) * xb.scale;
    const float first = xb.scale * xb.first_sum;
    if (w.offsets) acc[i][v] += o * first + o2 * (xb.scaled_sum - first);
  }
}

// M rows of x times the 16 rows of one tile.
template <Form FORM, int M>
static void tile(const Weight& w, int64_t t, const Block* x, int64_t m, const Out& out) {
  constexpr int words = FORM == FOUR_BITS ? 4 : 8, per_block = FORM == HALVES ? 2 : 1;
  const int64_t blocks = w.cols / BLOCK, groups = w.cols / w.group, per = w.group / BLOCK,
                units = w.cols / UNIT;
  const char* p = (const char*)w.values + t * blocks * words * TILE * 4;
  F acc[M][PARTS] = {};
  for (int64_t b = 0, g = t * groups, left = per; b < blocks; b++, p += words * TILE * 4) {
    UNROLL for (int v = 0; v < PARTS; v++) {
      I k[8];
      if (FORM != FOUR_BITS) {
        UNROLL for (int j = 0; j < 8; j++) k[j] =
            loadi(p + (j * TILE + v * LANES) * 4) ^ int32_t(FLIP * 0x01010101u);
      } else {
        UNROLL for (int j = 0; j < 4; j++) {
          I raw = loadi(p + (j * TILE + v * LANES) * 4);
          k[j] = raw & 0x0f0f0f0f;
          k[j + 4] = (raw >> 4) & 0x0f0f0f0f;
        }
      }
      UNROLL for (int j = 0; j < words; j++)
          __builtin_prefetch(p + 4096 + j * TILE * 4 + v * LANES * 4, 0, M == 1 ? 0 : 3);
      block<FORM, M>(w, k, g, t * units + b / (UNIT / BLOCK), x + m * blocks + b, blocks, acc, v);
    }
    if (FORM == HALVES || --left == 0) {
      left = per;
      g += per_block;
    }
  }
  for (int i = 0; i < M; i++)
    for (int r = 0; r < TILE && t * TILE + r < w.rows; r++)
      store(out, m + i, t * TILE + r, acc[i][r / LANES][r % LANES]);
}

constexpr int MANY = LANES == 16 ? 8 : 2, FEW = LANES == 16 ? 8 : 4;  // as the registers allow

// Few rows of activations: for one or two, one row of the weight at a time, the order in which memory reads
// fastest; for more, as many accumulators as there are registers.
template <class T>
static void few(const T* w, int64_t n, int64_t r0, int64_t r1, const float* x, int64_t stride, int64_t rows,
                const Out& out) {
  auto by = [&](auto R, auto M, auto U, int64_t r, int64_t m) {
    float y[R()][M()];
    dots<T, R(), M(), U()>(w + r * n, n, x + m * stride, stride, y);
    for (int k = 0; k < R(); k++)
      for (int i = 0; i < M(); i++) store(out, m + i, r + k, y[k][i]);
  };
  if (rows <= 2) {
    for (int64_t r = r0; r < r1; r++)
      by_rows<2, 1>(0, rows, [&](auto M, int64_t m) { by(Int<1>(), M, Int<M() == 1 ? 4 : 2>(), r, m); });
  } else {
    by_rows<3, 1>(r0, r1, [&](auto R, int64_t r) {
      by_rows<FEW, 4, 1>(0, rows, [&](auto M, int64_t m) { by(R, M, Int<1>(), r, m); });
    });
  }
}

INLINE void transpose(F (&r)[LANES]) {
  UNROLL for (int s = 1; s < LANES; s *= 2) {
    I low, high;
    for (int j = 0; j < LANES; j++) low[j] = j & s ? LANES + (j ^ s) : j, high[j] = j & s ? LANES + j : j ^ s;
    UNROLL for (int i = 0; i < LANES; i++) if (!(i & s)) {
      F a = r[i], b = r[i | s];
      r[i] = shuffled(a, b, low);
      r[i | s] = shuffled(a, b, high);
    }
  }
}
template <class T>
static void pack(const T* w, int64_t n, int64_t rows, int64_t depth,
                 float* out) {  // [rows, depth] -> [depth, PANEL]
  int64_t c = 0;
  for (; rows == PANEL && c + LANES <= depth; c += LANES)
    for (int v = 0; v < VECTORS; v++) {
      F block[LANES];
      UNROLL for (int i = 0; i < LANES; i++) {
        block[i] = load(w + (v * LANES + i) * n + c);
        __builtin_prefetch(w + (v * LANES + i) * n + c + DEPTH);
      }
      transpose(block);
      UNROLL for (int i = 0; i < LANES; i++) * (F*)(out + (c + i) * PANEL + v * LANES) = block[i];
    }
  for (; c < depth; c++)
    for (int64_t i = 0; i < PANEL; i++) out[c * PANEL + i] = i < rows ? one(w[i * n + c]) : 0.f;
}
// Many rows: PANEL rows of the weight, DEPTH columns at a time, are turned into float32 [DEPTH, PANEL] that
// stays in the first-level cache, and all activations pass by it. y holds the sums so far.
template <class T>
static void many(const T* w, int64_t n, int64_t r0, int64_t r1, const float* x, int64_t stride, int64_t rows,
                 const Out& out) {
  static thread_local std::vector<float> packed, sums;
  packed.resize(PANEL * DEPTH);
  sums.assign(rows * PANEL, 0.f);
  for (int64_t r = r0; r < r1; r += PANEL) {
    const int64_t wide = std::min<int64_t>(PANEL, r1 - r);
    const bool direct = wide == PANEL;
    float* y = direct ? out.y + r : sums.data();
    const int64_t ldy = direct ? out.stride : PANEL;
    if (direct && (out.bias || !out.add))
      for (int64_t m = 0; m < rows; m++)
        for (int64_t i = 0; i < PANEL; i++) {
          float& v = y[m * ldy + i];
          v = (out.add ? v : 0.f) + (out.bias ? out.bias[r + i] : 0.f);
        }
    for (int64_t c0 = 0; c0 < n; c0 += DEPTH) {
      const int64_t depth = std::min<int64_t>(DEPTH, n - c0);
      pack(w + r * n + c0, n, wide, depth, packed.data());
      by_rows<MANY_DENSE, 4, 1>(0, rows, [&](auto M, int64_t m) {
        panel<M(), T>(packed.data(), depth, x + m * stride + c0, stride, 1, y + m * ldy, ldy);
      });
    }
    if (!direct)
      for (int64_t m = 0; m < rows; m++)
        for (int64_t i = 0; i < wide; i++) store(out, m, r + i, sums[m * PANEL + i]);
  }
}

void product(Pool& pool, const Weight& w, const Rows& in, int64_t rows, const Out& out) {
  pool.run(w.tiles(), grain(pool, w, rows), [&](int64_t t0, int64_t t1) {
    auto dense = [&](auto* p, int64_t cols) {
      using T = std::remove_cv_t<std::remove_pointer_t<decltype(p)>>;
      const int64_t r0 = t0 * TILE, r1 = std::min(t1 * TILE, w.rows);
      (rows <= FEW_ROWS ? few<T> : many<T>)(p, cols, r0, r1, in.x, in.stride, rows, out);
    };
    if (w.paired(rows)) return dense((const pair*)w.values, w.cols / 2);
    if (!w.quantised()) return typed(w.kind, w.values, [&](auto* p) { dense(p, w.cols); });
    for (int64_t t = t0; t < t1; t++)
      by_rows<MANY, 4, 1>(0, rows, [&](auto M, int64_t m) {
        (w.halves()      ? tile<HALVES, M()>
         : w.kind == Q8 ? tile<EIGHT_BITS, M()>
                        : tile<FOUR_BITS, M()>)(w, t, in.blocks, m, out);
      });
  });
}

void embed(const Weight& w, int32_t token, float* x) {
  if (token < 0 || token >= w.rows) {
    std::fill(x, x + w.cols, NAN);
    return;
  }
  if (!w.quantised())
    return typed(w.kind, w.values, [&](auto* p) {
      for (int64_t c = 0; c < w.cols; c++) x[c] = one(p[token * w.cols + c]);
    });
  const int64_t t = token / TILE, lane = token % TILE, groups = w.cols / w.group,
                words = w.kind == Q8 ? 8 : 4;
  auto at = [&](const void* p, const void* units, int64_t c) {
    const int64_t i = (t * groups + c / w.group) * TILE + lane;
    const int64_t u = (t * (w.cols / UNIT) + c / UNIT) * TILE + lane;
    return w.scale_kind == UNITS  ? ((const int8_t*)p)[i] * one(((const half*)units)[u])
           : w.scale_kind == HALF ? one(((const half*)p)[i])
                                  : ((const float*)p)[i];
  };
  for (int64_t c = 0; c < w.cols; c++) {
    const int64_t in = c % BLOCK, byte = w.kind == Q8 ? in : in % (BLOCK / 2);
    const int8_t v =
        ((const int8_t*)w.values)[((t * (w.cols / BLOCK) + c / BLOCK) * words + byte / 4) * TILE * 4 +
                                  lane * 4 + byte % 4];
    const float value = w.kind == Q8 ? v : (in < BLOCK / 2 ? v & 15 : (v >> 4) & 15) - (w.offsets ? 0 : 8);
    x[c] = value * at(w.scales, w.scale_units, c) + (w.offsets ? at(w.offsets, w.offset_units, c) : 0.f);
  }
}
