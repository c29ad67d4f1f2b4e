// Products and embeddings: a file of their own, so that two compilers work at the same time.
#include "dense.h"
#include "quantised.h"

static void tiled(const Weight& w, int64_t t0, int64_t t1, const char* x, int64_t rows, const Out& out) {
  if (!w.quantised())
    return (w.tile_parts() == 2 ? by_tiles<2, 1, decltype(turn)> : by_tiles<1, 1, decltype(turn)>)(
        w, t0, t1, x, rows, out, turn);
  of_form(w, [&](auto form) { by_tiles<2, 2>(w, t0, t1, x, rows, out, expand<form()>); });
}

void product(Pool& pool, const Weight& w, const Rows& in, int64_t rows, const Out& out) {
  const bool is_many = !w.few(in.like);
  const int64_t count = out.half ? w.tiles() / 2 : w.tiles(), most = grain(pool, w, in.like);
  pool.run(count, out.half ? std::max<int64_t>(most / 2, PANEL / TILE) : most, [&](int64_t t0, int64_t t1) {
    if (w.tiled(in.like)) return tiled(w, t0, t1, in.tiles, rows, out);
    auto dense = [&](auto* p, int64_t cols) {
      const int64_t r0 = t0 * TILE, r1 = std::min(t1 * TILE, out.half ? out.half : w.rows);
      if (is_many) return many(w, p, cols, r0, r1, in, rows, out);
      few(p, cols, r0, r1, in.x, in.stride, rows, in.like <= 2, out);
    };
    if (w.paired(in.like)) return dense((const pair*)w.values, w.cols / 2);
    if (!w.quantised()) return typed(w.kind, w.values, [&](auto* p) { dense(p, w.cols); });
    of_form(w, [&](auto form) { tiles<form()>(w, t0, t1, in.blocks, rows, is_many, out); });
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
