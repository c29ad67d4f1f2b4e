// Products and embeddings, by the parts that know the weights.
#pragma once
#include "parts.h"
#include "pool.h"

static std::atomic<void*> parts[PARTS_MOST];     // those that are loaded
static std::atomic<void (*)(int)> load_part{};  // puts one there if it can
static bool has_part(int i) {
  auto* load = load_part.load();
  if (!parts[i] && load) load(i);
  return parts[i];
}
template <class F>
static F* part(int i) { return (F*)parts[i].load(std::memory_order_relaxed); }

// Tiles of a weight that a thread multiplies at a time: the more, the less often it reads the activations; so
// many that all threads end together.
static int64_t tiled_grain(int64_t tiles, int64_t threads) {
  int64_t best = 0, least = INT64_MAX;
  for (int64_t grain = MOST_TILES; grain >= 2; grain -= 2) {
    const int64_t turns = (tiles + grain * threads - 1) / (grain * threads), time = turns * (8 * grain + 4);
    if (time < least) least = time, best = grain;
  }
  return best;
}
// The same for a dense weight and many rows: tiles of whole panels.
static int64_t panels_grain(int64_t tiles, int64_t threads) {
  int64_t best = 0, least = INT64_MAX;
  for (int64_t grain = 4 * PANEL / TILE; grain >= PANEL / TILE; grain /= 2) {
    const int64_t turns = (tiles + grain * threads - 1) / (grain * threads), time = turns * (16 * grain + 1);
    if (time < least) least = time, best = grain;
  }
  return best;
}
// Tiles that a thread takes at a time: long runs read faster, short ones end together; `few` takes three rows
// at once, `many` a panel.
static int64_t grain(const Pool& pool, const Weight& w, int64_t rows) {
  if (w.tiled(rows)) return tiled_grain(w.tiles(), pool.threads());
  if (!w.few(rows) && !w.quantised()) return panels_grain(w.tiles(), pool.threads());
  const bool wide = !w.few(rows) || (w.quantised() && by_pairs(rows));
  const int64_t even = wide ? PANEL / TILE : w.quantised() || rows <= 2 ? 1 : 3;
  return max(even, min((64 << 10) / w.tile_bytes(), w.tiles() / pool.threads() / 8) / even * even);
}
static void product(Pool& pool, const Weight& w, const Rows& in, int64_t rows, const Out& out) {
  constexpr int64_t EVEN = PANEL / TILE;
  const int64_t count = out.half ? w.tiles() / 2 : w.tiles(), most = grain(pool, w, in.like);
  pool.run(count, out.half ? max(most / 2 / EVEN * EVEN, EVEN) : most,
           [&](int64_t t0, int64_t t1) { part<Product>(part_of(w))(w, t0, t1, in, rows, out); });
}

// One row; NaN for a token outside the vocabulary.
static void embed(const Weight& w, int32_t token, float* x) {
  if (token < 0 || token >= w.rows) {
    fill(x, x + w.cols, NOT_A_NUMBER);
    return;
  }
  if (!w.quantised())
    return typed(w.kind, w.values, [&](auto* p) {
      for (int64_t c = 0; c < w.cols; c++) x[c] = one(p[token * w.cols + c]);
    });
  const int64_t t = token / TILE, lane = token % TILE, groups = w.cols / w.group,
                words = w.kind == Q8 ? 8 : w.kind == Q6 ? 6 : 4;
  auto at = [&](const void* p, const void* units, int64_t c) {
    const int64_t i = (t * groups + c / w.group) * TILE + lane;
    const int64_t u = (t * (w.cols / UNIT) + c / UNIT) * TILE + lane;
    return w.scale_kind == UNITS  ? ((const int8_t*)p)[i] * one(((const half*)units)[u])
           : w.scale_kind == HALF ? one(((const half*)p)[i])
                                  : ((const float*)p)[i];
  };
  for (int64_t c = 0; c < w.cols; c++) {
    const int64_t in = c % BLOCK, byte = w.kind == Q8 ? in : in % (BLOCK / 2);
    const char* block = (const char*)w.values + (t * (w.cols / BLOCK) + c / BLOCK) * words * TILE * 4 + lane * 4;
    auto stored = [&](int64_t i) { return int(((const int8_t*)block)[i / 4 * TILE * 4 + i % 4]); };
    const int v = stored(byte), nibble = in < BLOCK / 2 ? v & 15 : (v >> 4) & 15;
    const int high = w.kind == Q6 ? stored(16 + in / 16 * 4 + in % 4) >> in / 4 % 4 * 2 & 3 : 0;
    const float value = w.kind == Q8   ? v
                        : w.kind == Q6 ? (high << 4 | nibble) - 32
                        : w.kind == Q4_LEVELS ? LEVELS[nibble]
                                       : nibble - (w.offsets ? 0 : 8);
    x[c] = value * at(w.scales, w.scale_units, c) + (w.offsets ? at(w.offsets, w.offset_units, c) : 0.f);
  }
}
