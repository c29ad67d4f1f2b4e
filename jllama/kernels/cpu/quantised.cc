// The part for weights of the form JLLAMA_FORM.
#include "quantised.h"

extern "C" void JLLAMA_PART(const Weight& w, int64_t t0, int64_t t1, const Rows& in, int64_t rows, const Out& out) {
  if constexpr (TILES)
    if (w.tiled(in.like)) return by_tiles<2, 2>(w, t0, t1, in.tiles, rows, out, expand<JLLAMA_FORM>);
  tiles<JLLAMA_FORM>(w, t0, t1, in, rows, out);
}
