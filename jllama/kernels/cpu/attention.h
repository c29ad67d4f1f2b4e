// What a layer does between its products: norm, activation, attention.
#pragma once
#include <algorithm>
#include <vector>

#include "products.h"

static float squares(const float* x, int64_t n) {  // their sum
  F all = {};
  int64_t c = 0;
  for (; c + LANES <= n; c += LANES) all += load(x + c) * load(x + c);
  float total = sum(all);
  for (; c < n; c++) total += x[c] * x[c];
  return total;
}
static void scaled(const float* x, float scale, const float* weight, int64_t n, float* y) {
  for (int64_t c = 0; c < n; c++) y[c] = x[c] * scale * weight[c];
}
static void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* y) {
  scaled(x, 1.f / std::sqrt(squares(x, n) / n + eps), weight, n, y);
}
// The same over `runs` runs of n, `stride` apart, together and in place; weights [runs, n].
static void rms_norm_together(float* x, int64_t runs, int64_t stride, const float* weight, int64_t n,
                              float eps) {
  float total = 0;
  for (int64_t k = 0; k < runs; k++) total += squares(x + k * stride, n);
  const float scale = 1.f / std::sqrt(total / (runs * n) + eps);
  for (int64_t k = 0; k < runs; k++) scaled(x + k * stride, scale, weight + k * n, n, x + k * stride);
}

static void multiply(float* x, int64_t n, float factor) {
  for (int64_t c = 0; c < n; c++) x[c] *= factor;
}
// n numbers times `scale`, then none beyond `cap`.
static void soft_cap(float* x, int64_t n, float scale, float cap) {
  const float inner = scale / cap;
  int64_t c = 0;
  for (; c + LANES <= n; c += LANES) *(F*)(x + c) = vtanh(load(x + c) * inner) * cap;
  for (; c < n; c++) x[c] = std::tanh(x[c] * inner) * cap;
}

enum Act : int64_t { SILU, GELU, GELU_TANH, RELU };
static void gated(int64_t act, const float* gate, const float* up, int64_t n, float* y) {
  int64_t c = 0;
  if (act == SILU)
    for (; c + LANES <= n; c += LANES) {
      F g = load(gate + c);
      *(F*)(y + c) = g / (vexp(-g) + 1.f) * load(up + c);
    }
  if (act == GELU_TANH)
    for (; c + LANES <= n; c += LANES) {
      F g = load(gate + c);
      *(F*)(y + c) = g * 0.5f * (vtanh((g * g * g * 0.044715f + g) * 0.79788456f) + 1.f) * load(up + c);
    }
  for (; c < n; c++) {
    const float g = gate[c];
    y[c] = up[c] * (act == SILU   ? g / (1 + std::exp(-g))
                    : act == RELU ? (g < 0 ? 0 : g)
                    : act == GELU ? g * 0.5f * std::erfc(g * -0.70710678f)
                                  : 0.5f * g * (1 + std::tanh(0.79788456f * (g + 0.044715f * g * g * g))));
  }
}

// The weighted sum of n values for M queries: P vectors of the H elements.
template <class T, int M, int P>
static void mix(const T* values, int64_t n, int64_t H, const float* s, int64_t stride, const float* norm,
                float* out) {
  F acc[M][P] = {};
  for (int64_t j = 0; j < n; j++) {
    F v[P];
    UNROLL for (int k = 0; k < P; k++) v[k] = load(values + j * H + k * LANES);
    UNROLL for (int i = 0; i < M; i++) {
      UNROLL for (int k = 0; k < P; k++) acc[i][k] += v[k] * s[i * stride + j];
    }
  }
  for (int i = 0; i < M; i++)
    for (int k = 0; k < P; k++) *(F*)(out + i * H + k * LANES) = acc[i][k] * norm[i];
}

struct Rule {
  float scale, cap;
};  // products of queries and keys times a scale are scores, none beyond a cap that is not 0
// Caps what is to be capped; what the scores are still to be multiplied by.
static float capped(float* s, int64_t n, const Rule& rule) {
  if (!rule.cap) return rule.scale;
  soft_cap(s, n, rule.scale, rule.cap);
  return 1;
}

// M queries [M, H] of one key-value head over its cache [S, H]; row i sees positions first[i]..last[i].
template <class T, int M>
static void attend(const float* q, const T* keys, const T* values, int64_t H, const Rule& rule,
                   const int64_t* first, const int64_t* last, std::vector<float>& scratch, float* out) {
  const int64_t lo = *std::min_element(first, first + M), n = *std::max_element(last, last + M) + 1 - lo,
                stride = (n + 15) / 16 * 16;
  if ((int64_t)scratch.size() < M * stride) scratch.resize(M * stride * 2);
  float* s = scratch.data();
  by_rows<4, 1>(0, n, [&](auto R, int64_t r) {
    float y[R()][M];
    dots<T, R(), M, 1>(keys + (lo + r) * H, H, q, H, y);
    for (int k = 0; k < R(); k++)
      for (int i = 0; i < M; i++) s[i * stride + r + k] = y[k][i];
  });
  const float scale = capped(s, M * stride, rule);
  float norm[M];
  for (int i = 0; i < M; i++) {
    float* p = s + i * stride;
    std::fill(p, p + (first[i] - lo), -INFINITY);
    std::fill(p + (last[i] + 1 - lo), p + stride, -INFINITY);
    float top = -INFINITY;
    for (int64_t j = 0; j < n; j++) top = p[j] > top ? p[j] : top;
    F total = {};
    for (int64_t j = 0; j < stride; j += LANES) {
      F v = load(p + j), e = vexp((v - top) * scale);
      e = v == -INFINITY ? F{} : e;  // exp is clamped: unseen positions weigh nothing at all
      *(F*)(p + j) = e;
      total += e;
    }
    norm[i] = 1.f / sum(total);
  }
  int64_t h = 0;
  for (; h + 4 * LANES <= H; h += 4 * LANES)
    mix<T, M, 4>(values + lo * H + h, n, H, s, stride, norm, out + h);
  for (; h + LANES <= H; h += LANES) mix<T, M, 1>(values + lo * H + h, n, H, s, stride, norm, out + h);
  for (; h < H; h++)
    for (int i = 0; i < M; i++) {
      float t = 0;
      for (int64_t j = 0; j < n; j++) t += s[i * stride + j] * one(values[(lo + j) * H + h]);
      out[i * H + h] = t * norm[i];
    }
}

// The same for PANEL queries at once, one a lane: q [H, PANEL], out [H, PANEL]. For prompts.
template <class T>
static void attend_many(const float* q, const T* keys, const T* values, int64_t H, const Rule& rule,
                        const int32_t* first, const int32_t* last, std::vector<float>& scratch, float* out) {
  const int64_t lo = *std::min_element(first, first + PANEL),
                n = *std::max_element(last, last + PANEL) + 1 - lo;
  scratch.assign(n * (PANEL + H), 0.f);
  float *s = scratch.data(),
        *wide = s + n * PANEL;  // scores [n, PANEL]; keys, then values, in float32 [n, H]
  for (int64_t i = 0; i < n * H; i++) wide[i] = one(keys[lo * H + i]);
  by_rows<MANY_DENSE, 4, 1>(
      0, n, [&](auto M, int64_t m) { panel<M()>(q, H, wide + m * H, H, 1, s + m * PANEL, PANEL); });
  const float scale = capped(s, n * PANEL, rule);
  for (int64_t i = 0; i < n * H; i++) wide[i] = one(values[lo * H + i]);
  std::fill(out, out + H * PANEL, 0.f);
  F norm[VECTORS];
  for (int v = 0; v < VECTORS; v++) {
    const I begin = loadi(first + v * LANES) - int32_t(lo), end = loadi(last + v * LANES) - int32_t(lo);
    F top = F{} - INFINITY, total = {};
    for (int32_t j = 0; j < n; j++) {
      F x = load(s + j * PANEL + v * LANES);
      top = ((j >= begin) & (j <= end) & (x > top)) ? x : top;
    }
    for (int32_t j = 0; j < n; j++) {
      F x = load(s + j * PANEL + v * LANES), e = ((j >= begin) & (j <= end)) ? vexp((x - top) * scale) : F{};
      *(F*)(s + j * PANEL + v * LANES) = e;
      total += e;
    }
    norm[v] = 1.f / total;
  }
  by_rows<MANY_DENSE, 4, 1>(
      0, H, [&](auto M, int64_t h) { panel<M()>(s, n, wide + h, 1, H, out + h * PANEL, PANEL); });
  for (int64_t h = 0; h < H; h++)
    for (int v = 0; v < VECTORS; v++)
      *(F*)(out + h * PANEL + v * LANES) = load(out + h * PANEL + v * LANES) * norm[v];
}
