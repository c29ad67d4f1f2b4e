// The part for weights of JLLAMA_TYPE.
#include "dense.h"
#include "parts.h"

extern "C" void JLLAMA_PART(const Weight& w, int64_t t0, int64_t t1, const Rows& in, int64_t rows, const Out& out) {
  constexpr bool BFLOATS = same<JLLAMA_TYPE, bf16>;
  if constexpr (TILES && BFLOATS)
    if (w.tiled(in.like))
      return (w.tile_parts() == 2 ? by_tiles<2, 1, decltype(turn)> : by_tiles<1, 1, decltype(turn)>)(
          w, t0, t1, in.tiles, rows, out, turn);
  auto dense = [&](auto* p, int64_t cols) {
    const int64_t r0 = t0 * TILE, r1 = min(t1 * TILE, out.half ? out.half : w.rows);
    if (!w.few(in.like)) return many(w, p, cols, r0, r1, in, rows, out);
    few(p, cols, r0, r1, in.x, in.stride, rows, in.like <= 2, out);
  };
  if constexpr (PAIRS && BFLOATS)
    if (w.paired(in.like)) return dense((const pair*)w.values, w.cols / 2);
  dense((const JLLAMA_TYPE*)w.values, w.cols);
}
