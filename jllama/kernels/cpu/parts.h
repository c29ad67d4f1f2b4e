// What is compiled apart, for one kind of weights or caches each, and loaded where a model needs it.
//
// Their numbers are the places of the names in compiling.py `PARTS`.
#pragma once
#include "products.h"

// Which quantised weights a kernel is compiled for.
enum Form { EIGHT_BITS, FOUR_BITS, OF_LEVELS, SIX_BITS, HALVES, SIX_HALVES };  // halves: groups of half a block
inline Form form_of(const Weight& w) {
  if (w.kind == Q4) return FOUR_BITS;
  if (w.kind == Q4_LEVELS) return OF_LEVELS;
  if (w.kind == Q6) return w.halves() ? SIX_HALVES : SIX_BITS;
  return w.halves() ? HALVES : EIGHT_BITS;
}
constexpr int OF_ATTENTION = 0, OF_DENSE = 3, OF_QUANTISED = 6, PARTS_MOST = 12;  // F32, BF16, F16, twice; forms
inline int part_of(const Weight& w) { return w.quantised() ? OF_QUANTISED + form_of(w) : OF_DENSE + int(w.kind); }

// Products of tiles t0 to t1 of a weight, or as many of its gates and of what these let pass.
using Product = void(const Weight& w, int64_t t0, int64_t t1, const Rows& in, int64_t rows, const Out& out);

struct Rule {
  float scale, cap;
};  // products of queries and keys times a scale are scores, none beyond a cap that is not 0
// Attention of a layer, in B * K * parts tasks: queries of a text that share a key-value head, up to `most`.
struct Attention {
  int64_t B, T, K, G, H, S, window;
  Rule rule;
  int64_t most, parts;
  const void *keys, *values;                   // [rows, K, S, H], of what the part is for
  const int32_t *length, *cache_row;           // of each text
  const int64_t *begins, *place;               // see class Step
  const float* qkv;                            // [rows, K, G + 2, H]
  float* out;                                  // [rows, stride], the first K * G * H of each
  int64_t stride;
};
using Attend = void(const Attention& call, int64_t task);
