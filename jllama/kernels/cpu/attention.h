// Attention.
#pragma once
#include "norms.h"
#include "parts.h"

// The weighted sum of n values for M queries: P vectors of the H elements. Likewise placed ones of `next` are fetched.
template <class T, int M, int P>
static void mix(const T* values, const T* next, int64_t n, int64_t H, const float* s, int64_t stride,
                const float* norm, float* out) {
  F acc[M][P] = {};
  for (int64_t j = 0; j < n; j++) {
    for (int64_t i = 0; i < P * LANES * (int64_t)sizeof(T); i += 64) __builtin_prefetch((const char*)(next + j * H) + i);
    F v[P];
    UNROLL for (int k = 0; k < P; k++) v[k] = load(values + j * H + k * LANES);
    UNROLL for (int i = 0; i < M; i++) {
      UNROLL for (int k = 0; k < P; k++) acc[i][k] += v[k] * s[i * stride + j];
    }
  }
  UNROLL for (int i = 0; i < M; i++)  // unrolled, or the sums lie in memory from the beginning
    UNROLL for (int k = 0; k < P; k++) *(F*)(out + i * H + k * LANES) = acc[i][k] * norm[i];
}

// Caps what is to be capped; what the scores are still to be multiplied by.
static float capped(float* s, int64_t n, const Rule& rule) {
  if (!rule.cap) return rule.scale;
  soft_cap(s, n, rule.scale, rule.cap);
  return 1;
}

// The sums of LANES vectors, one a lane, each added up in the order of `sum`.
template <int S = LANES / 2>
INLINE F sums(F (&r)[LANES]) {
  I low, high;
  for (int j = 0; j < LANES; j++) low[j] = j & S ? LANES + (j ^ S) : j, high[j] = j & S ? LANES + j : j ^ S;
  UNROLL for (int i = 0; i < S; i++) r[i] = shuffled(r[i], r[i + S], low) + shuffled(r[i], r[i + S], high);
  if constexpr (S > 1) return sums<S / 2>(r);
  return r[0];
}
// Products of M queries with the first keys [n, H], by LANES keys; how many. There is `room` for keys behind these, which
// count for nothing. Adding up the lanes of one product after the other takes longer than the products. The values that
// these will weigh are fetched meanwhile, and the next keys.
template <class T, int M>
static __attribute__((noinline)) int64_t products(const float* q, const T* keys, const T* values, int64_t n,
                                                  int64_t room, int64_t H, float* s, int64_t stride) {
  constexpr int64_t AHEAD = 2048;
  constexpr int SOME = LANES / (M == 1 ? 1 : M < 4 ? 2 : 4);  // keys at a time, as the registers allow
  int64_t r = 0;
  for (; H % LANES == 0 && r < n && r + LANES <= room; r += LANES) {
    const char *next = (const char*)(keys + r * H) + AHEAD, *weighed = (const char*)(values + r * H);
    for (int64_t i = 0; i < LANES * H * (int64_t)sizeof(T); i += 64)
      __builtin_prefetch(next + i), __builtin_prefetch(weighed + i);
    F all[M][LANES];
    UNROLL for (int k0 = 0; k0 < LANES; k0 += SOME) {
      F acc[M][SOME] = {};
      for (int64_t h = 0; h < H; h += LANES) {
        F v[M];
        UNROLL for (int i = 0; i < M; i++) v[i] = load(q + i * H + h);
        UNROLL for (int k = 0; k < SOME; k++) {
          F key = load(keys + (r + k0 + k) * H + h);
          if (M > 1) IN_REGISTER(key);
          UNROLL for (int i = 0; i < M; i++) acc[i][k] += key * v[i];
        }
      }
      UNROLL for (int i = 0; i < M; i++) UNROLL for (int k = 0; k < SOME; k++) all[i][k0 + k] = acc[i][k];
    }
    UNROLL for (int i = 0; i < M; i++) *(F*)(s + i * stride + r) = sums(all[i]);
  }
  return r;
}

// M queries [M, H] of one key-value head over its cache [S, H]; row i sees positions first[i]..last[i]. At `next` lie keys
// that will be read then.
template <class T, int M>
static void attend(const float* q, const T* keys, const T* values, const T* next, int64_t S, int64_t H,
                   const Rule& rule, const int64_t* first, const int64_t* last, Buffer<float>& scratch,
                   float* out) {
  const int64_t lo = smallest(first, M), n = greatest(last, M) + 1 - lo,
                stride = (n + 15) / 16 * 16;
  float* s = scratch.of(M * stride);
  const int64_t done = M == 1 || LANES == 16
                           ? products<T, M>(q, keys + lo * H, values + lo * H, n, S - lo, H, s, stride)
                           : 0;
  by_rows<LANES == 16 ? 1 : 4, 1>(done, n, [&](auto R, int64_t r) {  // with wide registers few are left
    float y[R()][M];
    dots<T, R(), M, 1>(keys + (lo + r) * H, H, q, H, y);
    for (int k = 0; k < R(); k++)
      for (int i = 0; i < M; i++) s[i * stride + r + k] = y[k][i];
  });
  const float scale = capped(s, M * stride, rule);
  float norm[M];
  for (int i = 0; i < M; i++) {
    float* p = s + i * stride;
    fill(p, p + (first[i] - lo), -INF);
    fill(p + (last[i] + 1 - lo), p + stride, -INF);
    F highest = F{} - INF, total = {};
    for (int64_t j = 0; j < stride; j += LANES) highest = load(p + j) > highest ? load(p + j) : highest;
    const float top = fold(highest, [](F a, F b) { return a > b ? a : b; });
    for (int64_t j = 0; j < stride; j += LANES) {
      F v = load(p + j), e = vexp((v - top) * scale);
      e = v == -INF ? F{} : e;  // exp is clamped: unseen positions weigh nothing at all
      *(F*)(p + j) = e;
      total += e;
    }
    norm[i] = 1.f / sum(total);
  }
  int64_t h = 0;
  for (; h + 4 * LANES <= H; h += 4 * LANES)
    mix<T, M, 4>(values + lo * H + h, next + lo * H + h, n, H, s, stride, norm, out + h);
  for (; h + LANES <= H; h += LANES) mix<T, M, 1>(values + lo * H + h, next + lo * H + h, n, H, s, stride, norm, out + h);
  for (; h < H; h++)
    for (int i = 0; i < M; i++) {
      float t = 0;
      for (int64_t j = 0; j < n; j++) t += s[i * stride + j] * one(values[(lo + j) * H + h]);
      out[i * H + h] = t * norm[i];
    }
}

// Rows of H numbers, one a lane of `to` [H, PANEL], and back.
template <class Row>
static void to_lanes(const Row& row, int64_t H, float* to) {
  for (int v = 0; v < PANEL; v += LANES) {
    int64_t h = 0;
    for (; h + LANES <= H; h += LANES) {
      F block[LANES];
      UNROLL for (int i = 0; i < LANES; i++) block[i] = load(row(v + i) + h);
      transpose(block);
      UNROLL for (int i = 0; i < LANES; i++) *(F*)(to + (h + i) * PANEL + v) = block[i];
    }
    for (; h < H; h++)
      for (int i = 0; i < LANES; i++) to[h * PANEL + v + i] = row(v + i)[h];
  }
}
template <class Row>
static void from_lanes(const float* from, int64_t H, int64_t rows, const Row& row) {
  for (int64_t v = 0; v < rows; v += LANES) {
    const int64_t some = min<int64_t>(LANES, rows - v);
    int64_t h = 0;
    for (; h + LANES <= H; h += LANES) {
      F block[LANES];
      UNROLL for (int i = 0; i < LANES; i++) block[i] = load(from + (h + i) * PANEL + v);
      transpose(block);
      for (int64_t i = 0; i < some; i++) *(F*)(row(v + i) + h) = block[i];
    }
    for (; h < H; h++)
      for (int64_t i = 0; i < some; i++) row(v + i)[h] = from[h * PANEL + v + i];
  }
}
template <class T>
static void widened(const T* from, int64_t n, int64_t H, float* to, int64_t stride) {
  for (int64_t j = 0; j < n; j++)
    for (int64_t h = 0; h < H; h++) to[j * stride + h] = one(from[j * H + h]);
}

// Scores [n, PANEL] of positions from `lo` on become weights: their exponentials, 0 where a lane's query does
// not look. `norm` is one over their sums. Almost all positions are seen by all lanes: they are not asked.
static void weights(float* s, int64_t n, const int32_t* first, const int32_t* last, int64_t lo, float scale,
                    F (&norm)[VECTORS]) {
  const int64_t begin = min(n, greatest(first, PANEL) - lo),
                end = max(begin, smallest(last, PANEL) + 1 - lo);
  F top[VECTORS], total[VECTORS] = {};
  auto each = [&](int64_t j, int64_t stop, const auto& work) {
    for (; j < stop; j++) UNROLL for (int v = 0; v < VECTORS; v++) work(j, v, *(F*)(s + j * PANEL + v * LANES));
  };
  auto hide = [&](int64_t j, int v, F& x) {
    const I from = loadi(first + v * LANES) - int32_t(lo), to = loadi(last + v * LANES) - int32_t(lo);
    x = (int32_t(j) >= from) & (int32_t(j) <= to) ? x : F{} - INF;
  };
  auto raise = [&](int64_t, int v, F& x) { top[v] = x > top[v] ? x : top[v]; };
  auto weigh = [&](int64_t, int v, F& x) { total[v] += x = vexp((x - top[v]) * scale); };
  auto weigh_seen = [&](int64_t, int v, F& x) {  // exp is clamped: unseen positions weigh nothing at all
    total[v] += x = x == -INF ? F{} : vexp((x - top[v]) * scale);
  };
  UNROLL for (int v = 0; v < VECTORS; v++) top[v] = F{} - INF;
  each(0, begin, hide), each(end, n, hide), each(0, n, raise);
  each(0, begin, weigh_seen), each(begin, end, weigh), each(end, n, weigh_seen);
  UNROLL for (int v = 0; v < VECTORS; v++) norm[v] = 1.f / total[v];
}

// The same for PANEL queries at once, one a lane: q [H, PANEL], out [H, PANEL]. For prompts.
template <class T>
static void attend_many(const float* q, const T* keys, const T* values, int64_t H, const Rule& rule,
                        const int32_t* first, const int32_t* last, Buffer<float>& scratch, float* out) {
  const int64_t lo = smallest(first, PANEL),
                n = greatest(last, PANEL) + 1 - lo;
  const int64_t stride = H + 16;  // a power of two apart they would fight for the same lines
  float *s = scratch.of(n * (PANEL + stride)),
        *wide = s + n * PANEL;  // scores [n, PANEL]; keys, then values, in float32 [n, stride]
  widened(keys + lo * H, n, H, wide, stride);
  by_rows<MANY_DENSE, 4, 1>(
      0, n, [&](auto M, int64_t m) { panel<M()>(q, H, wide + m * stride, stride, 1, s + m * PANEL, true); });
  const float scale = capped(s, n * PANEL, rule);
  widened(values + lo * H, n, H, wide, stride);
  F norm[VECTORS];
  weights(s, n, first, last, lo, scale, norm);
  for (int64_t j = 0; j < n; j += DEPTH)  // so many weights stay in the first-level cache
    by_rows<MANY_DENSE, 4, 1>(0, H, [&](auto M, int64_t h) {
      const int64_t some = min<int64_t>(DEPTH, n - j);
      panel<M()>(s + j * PANEL, some, wide + j * stride + h, 1, stride, out + h * PANEL, j == 0);
    });
  for (int64_t h = 0; h < H; h++)
    for (int v = 0; v < VECTORS; v++)
      *(F*)(out + h * PANEL + v * LANES) = load(out + h * PANEL + v * LANES) * norm[v];
}

template <class C>
static void attend_task(const Attention& p, int64_t task) {
  static thread_local Buffer<float> queries, results, scratch;
  const int64_t T = p.T, K = p.K, G = p.G, H = p.H, S = p.S, per_head = (G + 2) * H, width = K * per_head;
  float *q = queries.of(PANEL * H), *out = results.of(PANEL * H);
  const int64_t bk = task / p.parts, b = bk / K, k = bk % K, begin = task % p.parts * p.most,
                end = min(begin + p.most, (p.begins[b + 1] - p.begins[b]) * G);
  if (begin >= end) return;
  const int64_t own = (p.cache_row[b] * K + k) * S * H;
  const C *keys = (const C*)p.keys + own, *values = (const C*)p.values + own;
  auto query = [&](int64_t i) { return &p.qkv[(p.begins[b] + i / G) * width + k * per_head + i % G * H]; };
  auto result = [&](int64_t i) { return &p.out[(p.begins[b] + i / G) * p.stride + (k * G + i % G) * H]; };
  auto range = [&](int64_t i, auto* first, auto* last) {
    const int64_t at = p.length[b] + p.place[p.begins[b] + i / G] % T;
    *last = min(at, S - 1);
    *first = p.window ? min(max<int64_t>(at - p.window + 1, 0), min(at, S - 1)) : 0;
  };
  if (p.most == PANEL) {
    int32_t first[PANEL], last[PANEL];
    auto at = [&](int64_t j) { return min(begin + j, end - 1); };
    for (int64_t j = 0; j < PANEL; j++) range(at(j), &first[j], &last[j]);
    to_lanes([&](int64_t j) { return query(at(j)); }, H, q);
    attend_many(q, keys, values, H, p.rule, first, last, scratch, out);
    return from_lanes(out, H, end - begin, [&](int64_t j) { return result(begin + j); });
  }
  const int64_t then = min(task + 1, p.B * K * p.parts - 1) / p.parts;
  const C* next = (const C*)p.keys + (p.cache_row[then / K] * K + then % K) * S * H;
  by_rows<4, 3, 2, 1>(begin, end, [&](auto N, int64_t i) {
    int64_t first[N()], last[N()];
    for (int64_t j = 0; j < N(); j++) memcpy(&q[j * H], query(i + j), H * 4), range(i + j, &first[j], &last[j]);
    attend<C, N()>(q, keys, values, next, S, H, p.rule, first, last, scratch, out);
    for (int64_t j = 0; j < N(); j++) memcpy(result(i + j), &out[j * H], H * 4);
  });
}
