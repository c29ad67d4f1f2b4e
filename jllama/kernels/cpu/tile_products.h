// Many rows of activations meet weights in tile registers.
#pragma once
#include "products.h"

// The sums of MT tiles of activations with NT of a weight over some columns: all products of their PA and PB parts
// but those of two second parts, which are below the last place. The tiles of either lie `next` bytes apart.
template <int MT, int NT, int PA, int PB>
static void multiply_tiles(const char* a, int64_t next_a, const char* b, int64_t next_b, int64_t columns,
                           char* sums, int64_t next_sums, bool fresh) {
  char* far = sums + (MT - 1) * next_sums;
  if (fresh) {
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  } else {
    tile_load<0>(sums), tile_load<2>(far);
    if (NT == 2) tile_load<1>(sums + TILE_BYTES), tile_load<3>(far + TILE_BYTES);
  }
  auto all = [] {
    tile_dot<0, 4, 6>();
    if (NT == 2) tile_dot<1, 4, 7>();
    if (MT == 2) tile_dot<2, 5, 6>();
    if (MT == 2 && NT == 2) tile_dot<3, 5, 7>();
  };
  auto load_a = [&](const char* p) {
    tile_load<4>(p);
    if (MT == 2) tile_load<5>(p + next_a);
  };
  auto load_b = [&](const char* p) {
    tile_load<6>(p);
    if (NT == 2) tile_load<7>(p + next_b);
  };
  for (int64_t k = 0; k < columns; k++, a += PA * TILE_BYTES, b += PB * TILE_BYTES) {
    load_b(b);
    if (PA == 2) load_a(a + TILE_BYTES), all();
    load_a(a), all();
    if (PB == 2) load_b(b + TILE_BYTES), all();
  }
  tile_store<0>(sums);
  if (NT == 2) tile_store<1>(sums + TILE_BYTES);
  if (MT == 2) tile_store<2>(far);
  if (MT == 2 && NT == 2) tile_store<3>(far + TILE_BYTES);
}
// A thread expands up to MOST_TILES tiles of the weight, STEP tiles of columns at a time, into its second-level
// cache, and the activations pass by them, at most SUMMED rows whose sums stay there too.
constexpr int64_t SUMMED = 512, STEP = 8;
struct Scratch {
  Room<char> panel{MOST_TILES * STEP * 2 * TILE_BYTES}, sums{SUMMED / TILE * MOST_TILES * TILE_BYTES};
};
template <int PA, int PB, class Fill>
static void by_tiles(const Weight& w, int64_t t0, int64_t t1, const char* x, int64_t rows, const Out& out,
                     const Fill& fill) {
  static thread_local Scratch scratch;
  char *panel = scratch.panel.data(), *sums = scratch.sums.data();
  const int64_t columns = w.tile_columns(), next_a = columns * PA * TILE_BYTES,
                next_sums = MOST_TILES * TILE_BYTES;
  UseTiles use;
  for (int64_t t = t0; t < t1; t += MOST_TILES) {
    const int64_t some = min(MOST_TILES, t1 - t);
    for (int64_t m0 = 0; m0 < rows; m0 += SUMMED) {
      const int64_t m1 = min(rows, m0 + SUMMED), high = (m1 - m0 + TILE - 1) / TILE;
      for (int64_t c = 0; c < columns; c += STEP) {
        const int64_t deep = min(STEP, columns - c), next_b = deep * PB * TILE_BYTES;
        for (int64_t i = 0; i < some; i++) fill(w, t + i, c, deep, panel + i * next_b);
        by_rows<2, 1>(0, high, [&](auto M, int64_t m) {
          const char* a = x + (m0 / TILE + m) * next_a + c * PA * TILE_BYTES;
          by_rows<2, 1>(0, some, [&](auto N, int64_t n) {
            multiply_tiles<M(), N(), PA, PB>(a, next_a, panel + n * next_b, next_b, deep,
                                             sums + m * next_sums + n * TILE_BYTES, next_sums, c == 0);
          });
        });
      }
      for (int64_t m = 0; m < high; m++)
        for (int64_t n = 0; n < some; n++) {
          const int64_t row = (t + n) * TILE, first = m0 + m * TILE;
          store_rows(out, first, min(m1, first + TILE), row, min<int64_t>(TILE, w.rows - row),
                     (const float*)(sums + m * next_sums + n * TILE_BYTES), TILE);
        }
    }
  }
}
