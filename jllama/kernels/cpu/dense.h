// Weights as the checkpoint has them times rows of activations.
#pragma once
#include "tile_products.h"

constexpr int FEW = LANES == 16 ? 8 : 4;  // as the registers allow

// Few rows of activations: for one or two, one row of the weight at a time, the order in which memory reads
// fastest; for more, as many accumulators as there are registers.
template <class T>
static void few(const T* w, int64_t n, int64_t r0, int64_t r1, const float* x, int64_t stride, int64_t rows,
                bool by_row, const Out& out) {
  auto by = [&](auto R, auto M, auto U, int64_t r, int64_t m) {
    float y[R()][M()];
    dots<T, R(), M(), U()>(w + r * n, n, x + m * stride, stride, y);
    for (int k = 0; k < R(); k++)
      for (int i = 0; i < M(); i++) store(out, m + i, r + k, y[k][i]);
  };
  if (by_row) {
    for (int64_t r = r0; r < r1; r++)
      by_rows<2, 1>(0, rows, [&](auto M, int64_t m) { by(Int<1>(), M, Int<M() == 1 ? 4 : 2>(), r, m); });
  } else {
    by_rows<3, 1>(r0, r1, [&](auto R, int64_t r) {
      by_rows<FEW, 4, 1>(0, rows, [&](auto M, int64_t m) { by(R, M, Int<1>(), r, m); });
    });
  }
}

template <class T>
static void pack(const T* w, int64_t n, int64_t rows, int64_t depth,
                 float* out) {  // [rows, depth] -> [depth, PANEL]
  int64_t c = 0;
  for (; rows == PANEL && c + LANES <= depth; c += LANES)
    for (int v = 0; v < VECTORS; v++) {
      F block[LANES];
      UNROLL for (int i = 0; i < LANES; i++) block[i] = load(w + (v * LANES + i) * n + c);
      transpose(block);
      UNROLL for (int i = 0; i < LANES; i++) * (F*)(out + (c + i) * PANEL + v * LANES) = block[i];
    }
  for (; c < depth; c++)
    for (int64_t i = 0; i < PANEL; i++) out[c * PANEL + i] = i < rows ? one(w[i * n + c]) : 0.f;
}
// Many rows: PANEL rows of the weight, DEPTH columns at a time, are turned into float32 [DEPTH, PANEL] that
// stays in the first-level cache, and all activations pass by it: these columns of theirs stay in the second
// level for all panels of a piece. The sums so far lie close together: rows of y a power of two apart would fight
// for the same lines. What is packed next, and where sums go, is fetched bit by bit meanwhile. Panels of gates
// and of what they let pass take turns.
template <class T>
static void many(const Weight& whole, const T* w, int64_t n, int64_t r0, int64_t r1, const Rows& in,
                 int64_t rows, const Out& out) {
  static thread_local Buffer<float> panels_room, sums_room;  // [DEPTH, PANEL], [panels, rows, PANEL]
  constexpr int64_t WIDE = DEPTH * sizeof(T) / 64, LINES = PANEL * WIDE;
  const int64_t halves = out.half ? 2 : 1, panels = (r1 - r0 + PANEL - 1) / PANEL * halves;
  auto row = [&](int64_t p) { return r0 + p / halves * PANEL + p % halves * out.half; };
  float *packed = panels_room.of(PANEL * DEPTH), *sums = sums_room.of(panels * rows * PANEL);
  for (int64_t c = 0; c < n; c += DEPTH)
    for (int64_t p = 0; p < panels; p++) {
      const int64_t r = row(p), wide = min<int64_t>(PANEL, r1 - row(p / halves * halves));
      const int64_t depth = min<int64_t>(DEPTH, n - c);
      const bool last = c + DEPTH >= n, rests = same<T, pair> && whole.rests(r, r + wide);
      const char* next = (const char*)(p + 1 < panels ? w + row(p + 1) * n + c
                                       : last         ? w + r1 * n
                                                      : w + r0 * n + c + DEPTH);
      float* y = &sums[p * rows * PANEL];
      pack(w + r * n + c, n, wide, depth, packed);
      by_rows<MANY_DENSE, SOME_DENSE, 4, 1>(0, rows, [&](auto M, int64_t m) {
        for (int64_t i = m * LINES / rows; i < (m + M()) * LINES / rows; i++)
          __builtin_prefetch(next + i / WIDE * n * sizeof(T) + i % WIDE * 64, 0, 2);
        for (int64_t i = m + M(); last && !out.half && i < min(rows, m + 2 * M()); i++)
          for (int64_t k = 0; k < PANEL; k += 16) __builtin_prefetch(out.y + i * out.stride + r + k, 1);
        const float* x = in.x + m * in.stride + c;
        float* to = y + m * PANEL;
        panel<M(), T>(packed, depth, x, in.stride, 1, to, c == 0);
        if (rests) panel<M(), T>(packed, depth, x + n, in.stride, 1, to, false);
        if (last && !out.half) store_rows(out, m, m + M(), r, wide, to, PANEL);
        if (last && p % halves) store_gated(out, m, m + M(), r - out.half, wide, to - rows * PANEL, to);
      });
    }
}

static void turn(const Weight& w, int64_t t, int64_t first, int64_t columns, char* out) {  // bfloat16
  const bf16* from = (const bf16*)w.values + t * TILE * w.cols + first * TILE_COLUMNS;
  const int64_t rows = min<int64_t>(TILE, w.rows - t * TILE);
  for (int64_t b = 0; b < columns; b++, from += TILE_COLUMNS, out += TILE_BYTES) {
    const int64_t some = min<int64_t>(TILE_COLUMNS, w.cols - (first + b) * TILE_COLUMNS);
    const bool whole = rows == TILE && some == TILE_COLUMNS;
    if (!whole) {
      memset(out, 0, TILE_BYTES);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < some; c++)
          memcpy(out + c / 2 * 64 + r * 4 + c % 2 * 2, from + r * w.cols + c, 2);
      continue;
    }
    UNROLL for (int c = 0; c < PARTS; c++) UNROLL for (int v = 0; v < PARTS; v++) {
      F square[LANES];
      UNROLL for (int i = 0; i < LANES; i++) {
        const char* p = (const char*)(from + (v * LANES + i) * w.cols) + c * LANES * 4;
        square[i] = (F)loadi(p);
        __builtin_prefetch(p + 1024);
      }
      transpose(square);
      UNROLL for (int i = 0; i < LANES; i++) *(F*)(out + (c * LANES + i) * 64 + v * LANES * 4) = square[i];
    }
  }
}
