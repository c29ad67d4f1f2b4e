// Weights of 8, 6 and 4 bits times rows of activations that are quantised (`Block`).
#pragma once
#include "parts.h"
#include "tile_products.h"

constexpr int spans(Form form) { return form >= HALVES ? 2 : 1; }    // scales of a block
constexpr bool six(Form form) { return form == SIX_BITS || form == SIX_HALVES; }
constexpr bool packed(Form form) { return six(form) || form == OF_LEVELS; }  // bytes with signs in less room
constexpr Form as_bytes(Form form) {
  return form == SIX_HALVES ? HALVES : packed(form) ? EIGHT_BITS : form;
}
constexpr int words(Form form) {  // of a block in memory
  return form == FOUR_BITS || form == OF_LEVELS ? 4 : six(form) ? 6 : 8;
}
template <Form FORM>
using Of = Constant<Form, FORM>;
template <Form FORM>
INLINE I word(const char* p, int j) {  // word j of a block's eight: four weights of each row, see `dot4`
  if (six(FORM)) {  // the two high bits of four words lie in one
    const I low = loadi(p + j % 4 * TILE * 4), high = loadi(p + (4 + j / 4) * TILE * 4);
    const I placed = j % 4 == 0 ? high << 4 : j % 4 == 1 ? high << 2 : j % 4 == 2 ? high : high >> 2;
    return ((j < 4 ? low : low >> 4) & 0x0f0f0f0f) | (placed & 0x30303030);
  }
  const I raw = loadi(p + j % words(FORM) * TILE * 4), nibbles = (j < 4 ? raw : raw >> 4) & 0x0f0f0f0f;
  return FORM == FOUR_BITS ? nibbles : (FORM == OF_LEVELS ? levels(nibbles) : raw) ^ int32_t(FLIP * 0x01010101u);
}
template <Form FORM>
INLINE I with_signs(const char* p, int j) {  // the same of a packed form, as 8 bits have it in memory
  const I k = word<FORM>(p, j);
  return six(FORM) ? (k + 0x60606060) ^ int32_t(0x80808080u) : k ^ int32_t(FLIP * 0x01010101u);
}
template <Form FORM>
INLINE I wide(const char* p, int j, int odd) {  // its first and third, or second and fourth weight in 16 bits
  if (six(FORM)) return (word<FORM>(p, j) >> 8 * odd) & 0x00ff00ff;
  const I raw = FORM == OF_LEVELS ? with_signs<FORM>(p, j) : loadi(p + j % words(FORM) * TILE * 4);
  if (FORM == FOUR_BITS) return (raw >> (j < 4 ? 8 * odd : 8 * odd + 4)) & 0x000f000f;
  return odd ? (I)((I16)raw >> 8) : (I)((I16)raw << 8 >> 8);
}

// Span h of a block at p: the products of its words with M rows of x, for V times LANES rows of the weight.
template <Form FORM, int M, int V>
INLINE void span(const char* p, int h, const Block* x, int64_t blocks, I (&d)[V][M]) {
  constexpr int WORDS = BLOCK / 4 / spans(FORM);
  constexpr bool NARROW = NIBBLES && FORM == FOUR_BITS;
  constexpr bool KEPT = NARROW || (LANES == 8 && V > 1 && (FORM == FOUR_BITS || FORM == SIX_BITS));
  I low[V][M];
  UNROLL for (int i = 0; i < M; i++) UNROLL for (int v = 0; v < V; v++) {
    const Block& b = x[i * blocks];
    d[v][i] = I{};
    low[v][i] = NARROW ? I{} : I{} + (spans(FORM) == 1 ? b.start : h ? b.start - b.start_first : b.start_first);
  }
  UNROLL for (int j = h * WORDS; j < (h + 1) * WORDS; j++) {
    if (SPLIT || NARROW) {
      I k[V];
      UNROLL for (int v = 0; v < V; v++) k[v] = word<FORM>(p + v * LANES * 4, j);
      UNROLL for (int i = 0; i < M; i++) {
        const I high_x = I{} + x[i * blocks].q[j], low_x = I{} + x[i * blocks].q[BLOCK / 4 + j];
        UNROLL for (int v = 0; v < V; v++) {
          d[v][i] = NARROW ? dot4_narrow(d[v][i], k[v], high_x) : dot4(d[v][i], k[v], high_x);
          low[v][i] = NARROW ? dot4_narrow(low[v][i], k[v], low_x) : dot4(low[v][i], k[v], low_x);
          if (KEPT) IN_REGISTER(d[v][i]);
          if (KEPT) IN_REGISTER(low[v][i]);
        }
      }
    } else {
      UNROLL for (int odd = 0; odd < 2; odd++) {
        I k[V];
        UNROLL for (int v = 0; v < V; v++) k[v] = wide<FORM>(p + v * LANES * 4, j, odd);
        UNROLL for (int i = 0; i < M; i++) {
          const I b = I{} + x[i * blocks].q[2 * j + odd];
          UNROLL for (int v = 0; v < V; v++) {
            low[v][i] = dot2(low[v][i], k[v], b);
            if (KEPT) IN_REGISTER(low[v][i]);
          }
        }
      }
    }
  }
  UNROLL for (int i = 0; i < M; i++) UNROLL for (int v = 0; v < V; v++) {
    if (NARROW) d[v][i] = dot2(dot2(I{} + x[i * blocks].start, d[v][i], I{} + 0x01000100), low[v][i], I{} + 0x00010001);
    else d[v][i] = SPLIT ? (d[v][i] << 8) + low[v][i] : low[v][i];
  }
}
// The sum that belongs to the offset of span h.
template <int SPANS>
INLINE float scaled_sum(const Block& b, int h) {
  return SPANS == 1 ? b.scaled_sum : h ? b.scaled_sum - b.scaled_first : b.scaled_first;
}

// Scales or offsets of a tile's groups in turn.
struct Groups {
  const Weight& w;
  int64_t per, left, g, units, b = 0;
  Groups(const Weight& w, int64_t t, int64_t first)
      : w(w), per(w.group / BLOCK), left(per), g(t * (w.cols / w.group)), units(t * (w.cols / UNIT)) {
    b = first;
    if (per) left -= first % per, g += first / per;
    else g += 2 * first;
  }
  F scale(int h, int v) const { return at(w.scales, w.scale_units, h, v); }
  F offset(int h, int v) const { return w.offsets ? at(w.offsets, w.offset_units, h, v) : F{}; }
  F at(const void* p, const void* p_units, int h, int v) const {
    const int64_t lane = v * LANES;
    return w.scale(p, p_units, (g + h) * TILE + lane, (units + b / (UNIT / BLOCK)) * TILE + lane);
  }
  void next() {
    b++;
    if (!per) g += 2;
    else if (--left == 0) left = per, g++;
  }
};

// M rows of x times the 16 rows of one tile, whose values are at p.
template <Form FORM, int M>
static void tile(const Weight& w, int64_t t, const char* p, const Block* x, int64_t m, const Out& out) {
  constexpr int64_t BYTES = words(FORM) * TILE * 4;
  const int64_t blocks = w.cols / BLOCK;
  constexpr int V = LANES == 8 ? PARTS : 1;  // which share each activation that is put in all lanes
  alignas(64) F acc[M][PARTS] = {};
  Groups groups(w, t, 0);
  for (int64_t b = 0; b < blocks; b++, p += BYTES, groups.next()) {
    UNROLL for (int j = 0; j < words(FORM); j++)
      __builtin_prefetch(p + 4096 + j * TILE * 4, 0, M == 1 ? ONCE : 3);
    UNROLL for (int v0 = 0; v0 < PARTS; v0 += V) {
      UNROLL for (int h = 0; h < spans(FORM); h++) {
        I d[V][M];
        span<FORM, M, V>(p + v0 * LANES * 4, h, x + m * blocks + b, blocks, d);
        UNROLL for (int v = 0; v < V; v++) {
          const F s = groups.scale(h, v0 + v), o = groups.offset(h, v0 + v);
          UNROLL for (int i = 0; i < M; i++) {
            const Block& xb = x[(m + i) * blocks + b];
            acc[i][v0 + v] += __builtin_convertvector(d[v][i], F) * (s * xb.scale);
            if (w.offsets) acc[i][v0 + v] += o * scaled_sum<spans(FORM)>(xb, h);
          }
        }
      }
    }
  }
  store_rows(out, m, m + M, t * TILE, min<int64_t>(TILE, w.rows - t * TILE), (const float*)acc, TILE);
}

constexpr int MANY = LANES == 16 ? 8 : 2;  // as the registers allow

// Quantised weights likewise, in 16 bits: k [spans, words, PANEL] with scales and offsets [spans, PANEL].
struct Wide {
  static constexpr int BLOCKS = DEPTH / BLOCK;
  I k[BLOCKS * BLOCK / 2][VECTORS];
  F scales[2 * BLOCKS][VECTORS], offsets[2 * BLOCKS][VECTORS];
};
constexpr int MANY_WIDE = LANES == 16 ? 6 : 4;  // sums of whole numbers, and of floats, stay in registers
template <int SPANS, int M>
static __attribute__((noinline)) void wide_panel(const Wide& w, bool offsets, int64_t blocks, const Block* x,
                                                 int64_t stride, float* y) {  // inlined it takes a tenth longer
  constexpr int WORDS = BLOCK / 2 / SPANS;
  alignas(64) F acc[M][VECTORS];
  UNROLL for (int i = 0; i < M; i++)
    UNROLL for (int v = 0; v < VECTORS; v++) acc[i][v] = load(y + i * PANEL + v * LANES);
  for (int64_t s = 0; s < blocks * SPANS; s++) {
    const int h = s % SPANS;
    const Block* at = x + s / SPANS;
    I d[M][VECTORS] = {};
    for (int64_t j = 0; j < WORDS; j++) {
      I k[VECTORS];
      UNROLL for (int v = 0; v < VECTORS; v++) {
        k[v] = w.k[s * WORDS + j][v];
        IN_REGISTER(k[v]);
      }
      UNROLL for (int i = 0; i < M; i++) {
        I b = I{} + at[i * stride].q[h * WORDS + j];
        IN_REGISTER(b);
        UNROLL for (int v = 0; v < VECTORS; v++) d[i][v] = dot2(d[i][v], k[v], b);
      }
    }
    UNROLL for (int v = 0; v < VECTORS; v++) {
      const F scale = w.scales[s][v];
      UNROLL for (int i = 0; i < M; i++)
        acc[i][v] += __builtin_convertvector(d[i][v], F) * (scale * at[i * stride].scale);
    }
    if (offsets) UNROLL for (int v = 0; v < VECTORS; v++) {
      const F offset = w.offsets[s][v];
      UNROLL for (int i = 0; i < M; i++) acc[i][v] += offset * scaled_sum<SPANS>(at[i * stride], h);
    }
  }
  UNROLL for (int i = 0; i < M; i++)
    UNROLL for (int v = 0; v < VECTORS; v++) *(F*)(y + i * PANEL + v * LANES) = acc[i][v];
}
template <Form FORM>
static void widen(const Weight& w, int64_t t, int64_t first, int64_t blocks, int v0, Wide* out) {
  const int32_t bias = six(FORM) ? 0x00200020 : FORM == FOUR_BITS && !w.offsets ? 0x00080008 : 0;
  const char* p = (const char*)w.values + (t * (w.cols / BLOCK) + first) * words(FORM) * TILE * 4;
  Groups groups(w, t, first);
  for (int64_t b = 0; b < blocks; b++, p += words(FORM) * TILE * 4, groups.next())
    UNROLL for (int v = 0; v < PARTS; v++) {
      UNROLL for (int j = 0; j < BLOCK / 4; j++) UNROLL for (int odd = 0; odd < 2; odd++) {
        const I16 k = (I16)wide<FORM>(p + v * LANES * 4, j, odd) - (I16)(I{} + bias);
        out->k[b * BLOCK / 2 + 2 * j + odd][v0 + v] = (I)k;
      }
      UNROLL for (int h = 0; h < spans(FORM); h++) {
        out->scales[b * spans(FORM) + h][v0 + v] = groups.scale(h, v);
        out->offsets[b * spans(FORM) + h][v0 + v] = groups.offset(h, v);
      }
    }
}
// What gates let pass, of rows m0 to m1 of a tile of them and one of others, `sums` [m1 - m0, PANEL]. Two tiles of
// gates in turn are a block: the first one's wait in `passed` [M, BLOCK].
static void store_blocks(const Out& out, int64_t m0, int64_t m1, int64_t t, const float* sums, float* passed) {
  const int64_t blocks = out.half / BLOCK, at = t % (BLOCK / TILE) * TILE;
  for (int64_t m = m0; m < m1; m++, sums += PANEL) {
    gated(out.act, sums, sums + TILE, TILE, passed + m * BLOCK + at);
    if (at) quantise(*out.meeting, passed + m * BLOCK, &out.blocks[m * blocks + t * TILE / BLOCK]);
  }
}
// The tiles that are multiplied side by side: neighbours, or gates and what these gate.
struct Beside {
  int64_t step, end, half;
  Beside(const Out& out, int64_t t1) : step(out.half ? 1 : PANEL / TILE), end(t1), half(out.half / TILE) {}
  // Tile k beside t. One behind the last is the last again, for nothing.
  int64_t operator()(int64_t t, int64_t k) const { return half ? t + k * half : min(t + k, end - 1); }
  int64_t across() const { return half ? half : 1; }  // from one to the next
};
template <Form FORM>
static void many_tiles(const Weight& w, int64_t t0, int64_t t1, const Block* x, int64_t rows, const Out& out) {
  static thread_local Buffer<float> sums_room, passed_room;
  alignas(64) static thread_local Wide panel;
  constexpr int64_t BYTES = words(FORM) * TILE * 4, LINES = Wide::BLOCKS * BYTES / 64;
  const int64_t blocks = w.cols / BLOCK;
  const Beside beside(out, t1);
  float *sums = sums_room.of(rows * PANEL), *passed = out.half ? passed_room.of(rows * BLOCK) : nullptr;
  for (int64_t t = t0; t < t1; t += beside.step) {
    fill(sums, sums + rows * PANEL, 0.f);
    for (int64_t b = 0; b < blocks; b += Wide::BLOCKS) {
      const int64_t some = min<int64_t>(Wide::BLOCKS, blocks - b);
      for (int64_t k = 0; k < PANEL / TILE; k++) widen<FORM>(w, beside(t, k), b, some, k * PARTS, &panel);
      const bool last = b + Wide::BLOCKS >= blocks;
      const int64_t ahead = last ? (t + beside.step) * blocks : t * blocks + b + Wide::BLOCKS;
      const char* next = (const char*)w.values + ahead * BYTES;
      by_rows<MANY_WIDE, 4, 1>(0, rows, [&](auto M, int64_t m) {
        // What is widened next is fetched bit by bit: at once, it would wait for the lines that a core can ask for.
        for (int64_t i = m * LINES / rows; i < (m + M()) * LINES / rows; i++)
          for (int64_t k = 0; k < PANEL / TILE; k++)
            __builtin_prefetch(next + k * beside.across() * blocks * BYTES + i * 64);
        wide_panel<spans(FORM), M()>(panel, w.offsets, some, x + m * blocks + b, blocks, &sums[m * PANEL]);
      });
    }
    if (out.half) {
      store_blocks(out, 0, rows, t, sums, passed);
      continue;
    }
    const int64_t wide = min(min(t1, t + PANEL / TILE) * TILE, w.rows) - t * TILE;
    store_rows(out, 0, rows, t * TILE, wide, sums, PANEL);
  }
}
template <Form FORM>
static void to_bytes(const char* p, int64_t blocks, char* out) {
  for (int64_t b = 0; b < blocks; b++, p += words(FORM) * TILE * 4)
    UNROLL for (int j = 0; j < BLOCK / 4; j++, out += TILE * 4)
      UNROLL for (int v = 0; v < TILE * 4; v += LANES * 4)
        *(I*)(out + v) = with_signs<FORM>(p + v, j);
}
// Weights as bytes, two tiles at a time: each activation is loaded for both, which for one tile is as much as a core
// can load. The sums of high and of low bytes of 4 rows stay in registers; 20 KB of weights stay in the first-level
// cache while all rows pass by; packed ones are turned into bytes on their way there.
constexpr int PAIR_ROWS = 4;
constexpr int64_t PAIR_BYTES = 20 << 10;
struct Pair {
  static constexpr int SPANS = PAIR_BYTES / 256;
  const char *p, *next;           // the first tile's values, and those that are fetched meanwhile
  int64_t apart, across, blocks;  // bytes from either to the second tile
  int64_t lines;                  // of a block in memory
  bool cold;                      // nothing fetched these before
  int64_t row, wide;              // rows of the weight
  bool first, last;               // of the pieces of a row
  float* passed;                  // see `store_blocks`
  Run soon;                       // so many lines are fetched with each block
  F scales[SPANS][VECTORS], offsets[SPANS][VECTORS];
};
// Span h of M rows' blocks, `stride` apart, for both tiles.
template <Form FORM, int M>
INLINE void both_spans(const Pair& pair, const char* p, int h, const Block* x, int64_t stride,
                       I (&d)[M][VECTORS]) {
  constexpr int WORDS = BLOCK / 4 / spans(FORM);
  I low[M][VECTORS];
  UNROLL for (int i = 0; i < M; i++) {
    const Block& b = x[i * stride];
    UNROLL for (int v = 0; v < VECTORS; v++) {
      d[i][v] = I{};
      low[i][v] = I{} + (spans(FORM) == 1 ? b.start : h ? b.start - b.start_first : b.start_first);
    }
  }
  UNROLL for (int j = h * WORDS; j < (h + 1) * WORDS; j++) {
    I k[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++) {
      k[v] = word<FORM>(p + v * pair.apart, j);
      IN_REGISTER(k[v]);
    }
    UNROLL for (int i = 0; i < M; i++) {
      I high_x = I{} + x[i * stride].q[j];
      IN_REGISTER(high_x);
      UNROLL for (int v = 0; v < VECTORS; v++) d[i][v] = dot4(d[i][v], k[v], high_x);
      I low_x = I{} + x[i * stride].q[BLOCK / 4 + j];
      IN_REGISTER(low_x);
      UNROLL for (int v = 0; v < VECTORS; v++) low[i][v] = dot4(low[i][v], k[v], low_x);
    }
  }
  UNROLL for (int i = 0; i < M; i++)
    UNROLL for (int v = 0; v < VECTORS; v++) d[i][v] = (d[i][v] << 8) + low[i][v];
}
// M of `rows` rows, from row m on: x are their blocks, y [M, PANEL] their sums so far. gcc 12 makes an eighth slower code
// of it where it is inlined.
template <Form FORM, int M>
static __attribute__((noinline)) void pair_of_tiles(const Weight& w, const Pair& pair, const Block* x, int64_t m,
                                                    int64_t rows, float* y, const Out& out) {
  constexpr int64_t BYTES = words(FORM) * TILE * 4, LINES = BYTES / 64;
  const int64_t stride = w.cols / BLOCK, before = m * pair.lines / rows,
                lines = (m + M) * pair.lines / rows - before;
  const char *p = pair.p, *next = pair.next + before * 64;
  const char* soon = pair.soon.at;
  alignas(64) F acc[M][VECTORS];
  UNROLL for (int i = 0; i < M; i++)
    UNROLL for (int v = 0; v < VECTORS; v++) acc[i][v] = pair.first ? F{} : load(y + i * PANEL + v * LANES);
  for (int64_t s = 0; s < pair.blocks * spans(FORM); p += BYTES, next += pair.lines * 64, x++) {
    for (int64_t i = 0; i < lines; i++)  // each rows' share of what comes next
      __builtin_prefetch(next + i * 64), __builtin_prefetch(next + pair.across + i * 64);
    for (int64_t i = 0; i < pair.soon.lines; i++) __builtin_prefetch(soon + i * 64, 0, 2);
    soon += pair.soon.lines * 64;
    if (pair.cold && m == 0) UNROLL for (int i = 0; i < LINES; i++)
      __builtin_prefetch(p + 2048 + i * 64), __builtin_prefetch(p + pair.apart + 2048 + i * 64);
    UNROLL for (int h = 0; h < spans(FORM); h++, s++) {
      I d[M][VECTORS];
      both_spans<FORM, M>(pair, p, h, x, stride, d);
      UNROLL for (int v = 0; v < VECTORS; v++) {
        const F scale = pair.scales[s][v];
        UNROLL for (int i = 0; i < M; i++)
          acc[i][v] += __builtin_convertvector(d[i][v], F) * (scale * x[i * stride].scale);
      }
      if (w.offsets) UNROLL for (int v = 0; v < VECTORS; v++) {
        const F offset = pair.offsets[s][v];
        UNROLL for (int i = 0; i < M; i++) acc[i][v] += offset * scaled_sum<spans(FORM)>(x[i * stride], h);
      }
    }
  }
  if (pair.last && out.half) return store_blocks(out, m, m + M, pair.row / TILE, (const float*)acc, pair.passed);
  if (pair.last) return store_rows(out, m, m + M, pair.row, pair.wide, (const float*)acc, PANEL);
  UNROLL for (int i = 0; i < M; i++)
    UNROLL for (int v = 0; v < VECTORS; v++) *(F*)(y + i * PANEL + v * LANES) = acc[i][v];
}
template <Form FORM>
static void scales_of(const Weight& w, int64_t t, int64_t first, int v, Pair* out) {
  const int64_t n = out->blocks * spans(FORM);
  if (w.scale_kind == HALF && w.group == BLOCK) {  // most files
    const int64_t at = (t * (w.cols / BLOCK) + first) * TILE;
    for (int64_t s = 0; s < n; s++) out->scales[s][v] = load((const half*)w.scales + at + s * TILE);
    for (int64_t s = 0; w.offsets && s < n; s++) out->offsets[s][v] = load((const half*)w.offsets + at + s * TILE);
    return;
  }
  Groups groups(w, t, first);
  for (int64_t s = 0; s < n; groups.next()) UNROLL for (int h = 0; h < spans(FORM); h++, s++) {
      out->scales[s][v] = groups.scale(h, 0);
      out->offsets[s][v] = groups.offset(h, 0);
    }
}
template <Form FORM>
static void pairs_of_tiles(const Weight& w, int64_t t0, int64_t t1, const Block* x, int64_t rows, const Out& out) {
  static thread_local Buffer<float> sums_room, passed_room;
  alignas(64) static thread_local Pair pair;
  alignas(64) static thread_local char bytes[PAIR_BYTES];
  constexpr Form NEAR = as_bytes(FORM);
  constexpr int64_t BYTES = words(FORM) * TILE * 4, NEAR_BYTES = words(NEAR) * TILE * 4;
  const int64_t blocks = w.cols / BLOCK, pieces = (2 * blocks * NEAR_BYTES + PAIR_BYTES - 1) / PAIR_BYTES,
                per = (blocks + pieces - 1) / pieces;
  float* sums = sums_room.of(rows * PANEL);
  const Beside beside(out, t1);
  pair.passed = out.half ? passed_room.of(rows * BLOCK) : nullptr;
  for (int64_t t = t0; t < t1; t += beside.step) {
    const int64_t other = beside(t, 1);
    pair.cold = t == t0 && !packed(FORM);
    pair.row = t * TILE, pair.wide = min((other + 1) * TILE, w.rows) - pair.row;
    const int64_t apart = (other - t) * blocks * BYTES;
    pair.apart = packed(FORM) ? PAIR_BYTES / 2 : apart, pair.across = beside.across() * blocks * BYTES;
    pair.lines = BYTES / 64;
    for (int64_t b = 0; b < blocks; b += per) {
      pair.first = b == 0, pair.last = b + per >= blocks;
      pair.blocks = min(per, blocks - b);
      pair.p = (const char*)w.values + (t * blocks + b) * BYTES;
      pair.next = pair.p + (pair.last ? beside.step * blocks - b : per) * BYTES;
      if (packed(FORM)) {
        to_bytes<FORM>(pair.p, pair.blocks, bytes), to_bytes<FORM>(pair.p + apart, pair.blocks, bytes + pair.apart);
        pair.p = bytes;
      }
      scales_of<FORM>(w, t, b, 0, &pair), scales_of<FORM>(w, other, b, 1, &pair);
      by_rows<PAIR_ROWS, 3, 2, 1>(0, rows, [&](auto M, int64_t m) {
        const bool fetches = out.soon && pair.first;
        pair.soon = fetches ? share_of(*out.soon, t * rows + m, M(), out.half / TILE * rows, pair.blocks) : Run{};
        pair_of_tiles<NEAR, M()>(w, pair, x + m * blocks + b, m, rows, &sums[m * PANEL], out);
      });
    }
  }
}
template <Form FORM>
static void tiles(const Weight& w, int64_t t0, int64_t t1, const Rows& in, int64_t rows, const Out& out) {
  const Block* x = in.blocks;
  if (!w.few(in.like)) return many_tiles<FORM>(w, t0, t1, x, rows, out);
  if constexpr (SPLIT && LANES == 16)
    if (by_pairs(rows)) return pairs_of_tiles<FORM>(w, t0, t1, x, rows, out);
  constexpr int64_t BYTES = words(FORM) * TILE * 4;
  const int64_t blocks = w.cols / BLOCK;
  auto all = [&](auto form, int64_t t, const char* p) {
    by_rows<MANY, MANY / 2, 1>(0, rows, [&](auto M, int64_t m) { tile<form(), M()>(w, t, p, x, m, out); });
  };
  for (int64_t t = t0; t < t1; t++) {
    const char* p = (const char*)w.values + t * blocks * BYTES;
    if (!packed(FORM) || !w.unpacked(in.like)) {  // as their blocks are made for so many
      all(Of<FORM>(), t, p);
      continue;
    }
    static thread_local Buffer<char> room;
    char* bytes = room.of(blocks * BLOCK * TILE);
    to_bytes<FORM>(p, blocks, bytes);
    all(Of<as_bytes(FORM)>(), t, bytes);
  }
}

// What many rows meet in tile registers of tile t of a weight: [columns, parts, 16, 16] pairs of bfloat16, row k
// of a tile holding columns 2k and 2k + 1 of 16 rows.
INLINE void put_pairs(F first, F second, char* out) {
  constexpr int32_t UPPER = ~0xffff;
  const I f = (I)first + 0x8000 & UPPER, s = (I)second + 0x8000 & UPPER;  // halves are rounded away from 0
  const I f_rest = (I)(first - (F)f) + 0x8000, s_rest = (I)(second - (F)s) + 0x8000;
  using U = Vec<uint32_t>::type;
  *(I*)out = (I)((U)f >> 16) | s;
  *(I*)(out + TILE_BYTES) = (I)((U)f_rest >> 16) | (s_rest & UPPER);
}
template <Form FORM>
INLINE I quad(I raw, int j, int i) {  // the numbers i of word j of a block, which holds four of each row
  if (FORM == FOUR_BITS) return raw >> (j < 4 ? 8 * i : 8 * i + 4) & 15;
  return raw << 8 * (3 - i) >> 24;
}
template <Form FORM>
static void expand(const Weight& w, int64_t t, int64_t first, int64_t columns, char* out) {
  const char* p = (const char*)w.values + (t * (w.cols / BLOCK) + first) * words(FORM) * TILE * 4;
  const float bias = FORM == FOUR_BITS && !w.offsets ? 8 : 0;
  Groups groups(w, t, first);
  for (int64_t b = 0; b < columns; b++, p += words(FORM) * TILE * 4, out += 2 * TILE_BYTES, groups.next())
    UNROLL for (int v = 0; v < PARTS; v++) UNROLL for (int h = 0; h < spans(FORM); h++) {
      constexpr int WORDS = BLOCK / 4 / spans(FORM);
      const F s = groups.scale(h, v);
      F o = w.offsets ? groups.offset(h, v) : s * -bias;
      o = (s == s) & (o == o) ? o : F{} + NOT_A_NUMBER;  // a NaN that `put_pairs` keeps
      UNROLL for (int j = h * WORDS; j < (h + 1) * WORDS; j++) {
        const I raw = packed(FORM) ? with_signs<FORM>(p + v * LANES * 4, j)
                                : loadi(p + v * LANES * 4 + j % words(FORM) * TILE * 4);
        __builtin_prefetch(p + v * LANES * 4 + j % words(FORM) * TILE * 4 + 2048);
        F k[4];
        UNROLL for (int i = 0; i < 4; i++) k[i] = __builtin_convertvector(quad<FORM>(raw, j, i), F) * s + o;
        char* row = out + 2 * j * 64 + v * LANES * 4;
        put_pairs(k[0], k[1], row), put_pairs(k[2], k[3], row + 64);
      }
    }
}
