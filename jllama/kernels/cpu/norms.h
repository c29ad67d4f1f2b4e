// What a layer does to its activations between products.
#pragma once
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
  scaled(x, 1.f / __builtin_sqrtf(squares(x, n) / n + eps), weight, n, y);
}
// The same over `runs` runs of n, `stride` apart, together and in place; weights [runs, n].
static void rms_norm_together(float* x, int64_t runs, int64_t stride, const float* weight, int64_t n,
                              float eps) {
  float total = 0;
  for (int64_t k = 0; k < runs; k++) total += squares(x + k * stride, n);
  const float scale = 1.f / __builtin_sqrtf(total / (runs * n) + eps);
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
  for (; c < n; c++) x[c] = __builtin_tanhf(x[c] * inner) * cap;
}
