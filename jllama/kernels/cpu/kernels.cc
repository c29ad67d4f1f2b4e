// jllama on a CPU: a whole step of the model in one call, and quantised products.
//
// Compiled for the machine it runs on. Everything is written once on vectors of LANES floats; only `half`
// and `dot4` differ between instruction sets. Shapes use the letters of jllama/layers/__init__.py; M = B * T
// rows of activations, float32 throughout (the cache is in the run dtype).
#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#include "xla/ffi/api/c_api.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#if defined(__x86_64__)
#define IN_REGISTER(v) asm("" : "+v"(v))  // or the compiler loads it again for each use
#else
#define IN_REGISTER(v) asm("" : "+w"(v))
#endif

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
constexpr int LANES = 16;
#elif defined(__AVX2__) && defined(__F16C__) && defined(__FMA__)
#define JLLAMA_AVX2 1
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int TILE = 16, PARTS = TILE / LANES;  // rows of a quantised weight that lie interleaved
constexpr int BLOCK = 32;                       // activations that share a scale

template <class T> struct Vec { typedef T type __attribute__((vector_size(LANES * sizeof(T)), aligned(sizeof(T)), may_alias)); };
using F = Vec<float>::type;
using I = Vec<int32_t>::type;
using U16 = Vec<uint16_t>::type;
struct bf16 { uint16_t bits; };
struct half { uint16_t bits; };

INLINE F load(const float* p) { return *(const F*)p; }
INLINE I loadi(const void* p) { return *(const I*)p; }
INLINE F load(const bf16* p) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
  return (F)((I)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)) << 16);
#elif defined(JLLAMA_AVX2)
  return (F)((I)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)) << 16);
#else
  return (F)(__builtin_convertvector(*(const U16*)p, I) << 16);
#endif
}
INLINE float one(float x) { return x; }
INLINE float one(bf16 x) { uint32_t u = uint32_t(x.bits) << 16; float f; memcpy(&f, &u, 4); return f; }
static float one(half x) {  // plain: an exponent shift, then the scale 2^112 mends subnormals too
  uint32_t u = (x.bits & 0x7fffu) << 13, sign = (x.bits & 0x8000u) << 16;
  float f; memcpy(&f, &u, 4); f *= 0x1p112f;
  if ((x.bits & 0x7c00) == 0x7c00) { u |= 0x7f800000; memcpy(&f, &u, 4); }
  memcpy(&u, &f, 4); u |= sign; memcpy(&f, &u, 4);
  return f;
}
INLINE F load(const half* p) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
  return (F)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(JLLAMA_AVX2)
  return (F)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#elif defined(__aarch64__)
  return (F)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t*)p)));
#else
  return F{one(p[0]), one(p[1]), one(p[2]), one(p[3])};
#endif
}
INLINE void put(float* p, float x) { *p = x; }
INLINE void put(bf16* p, float x) {  // to nearest, ties to even; a NaN stays one
  uint32_t u; memcpy(&u, &x, 4);
  p->bits = x != x ? 0x7fc0 : (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}

// Adds to each int32 lane the dot product of its four bytes of w with the four bytes of x.
// w is int8 + FLIP for 8 bit weights (FLIP = 128 where the instruction wants it unsigned), 0..15 for 4 bit.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
constexpr int FLIP = 128;
INLINE I dot4(I acc, I w, int32_t x) { return (I)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(x)); }
#elif defined(JLLAMA_AVX2) && defined(__AVXVNNI__)
constexpr int FLIP = 128;
INLINE I dot4(I acc, I w, int32_t x) { return (I)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)w, _mm256_set1_epi32(x)); }
#elif defined(JLLAMA_AVX2)
constexpr int FLIP = 0;
INLINE I dot4(I acc, I w, int32_t x) {  // |w| * (x with w's sign): 2 * 128 * 127 fits in 16 bits
  __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)w), _mm256_sign_epi8(_mm256_set1_epi32(x), (__m256i)w));
  return acc + (I)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
constexpr int FLIP = 0;
INLINE I dot4(I acc, I w, int32_t x) { return (I)vdotq_s32((int32x4_t)acc, (int8x16_t)w, vreinterpretq_s8_s32(vdupq_n_s32(x))); }
#else
constexpr int FLIP = 0;
INLINE I dot4(I acc, I w, int32_t x) {
  return acc + ((w << 24) >> 24) * int8_t(x) + ((w << 16) >> 24) * int8_t(x >> 8) + ((w << 8) >> 24) * int8_t(x >> 16) + (w >> 24) * (x >> 24);
}
#endif
template <class V, class Op> INLINE auto fold(V v, const Op& op) {  // over the lanes
  UNROLL for (int s = LANES / 2; s; s /= 2) {
    I swap;
    for (int j = 0; j < LANES; j++) swap[j] = j ^ s;
    v = op(v, __builtin_shuffle(v, swap));
  }
  return v[0];
}
INLINE float sum(F v) { return fold(v, [](F a, F b) { return a + b; }); }
INLINE I imax(I a, I b) { return a > b ? a : b; }
INLINE F vexp(F x) {  // e^x to 2 ulp; x is clamped to -87..88, a NaN stays one
  x = x < -87.f ? F{} - 87.f : x;
  x = x > 88.f ? F{} + 88.f : x;
  F n = x * 1.44269504f + 12582912.f;  // rounds to a whole number: the low bits of n
  I e = (I)n; n -= 12582912.f;
  x -= n * 0.693359375f; x -= n * -2.12194440e-4f;
  F p = ((((x * 1.9875691500e-4f + 1.3981999507e-3f) * x + 8.3334519073e-3f) * x + 4.1665795894e-2f) * x + 1.6666665459e-1f) * x + 5.0000001201e-1f;
  return (F)((I)(p * x * x + x + 1.f) + (e << 23));
}

// A pool of threads. A phase is n chunks of work that any thread may take; the caller takes them too and
// can finish alone, so a helper that the system does not run delays nothing but the chunk it holds.
class Pool {
 public:
  explicit Pool(int threads) { for (int i = 1; i < threads; i++) std::thread([this] { help(); }).detach(); helpers_ = threads - 1; }
  int threads() const { return helpers_ + 1; }
  template <class Work> void run(int64_t n, const Work& work) {  // work(chunk) for chunk in 0..n-1
    if (n <= 1 || !helpers_) { for (int64_t i = 0; i < n; i++) work(i); return; }
    call_ = [](const void* w, int64_t i) { (*(const Work*)w)(i); };
    work_ = &work; done_.store(0);
    uint64_t phase = ((state_.load() >> 40) + 1) << 40 | uint64_t(n) << 20;
    state_.store(phase);
    if (sleepers_.load()) { std::lock_guard<std::mutex> lock(mutex_); wake_.notify_all(); }
    take();
    while (done_.load() != n) pause();
  }
 private:
  static constexpr uint64_t MASK = (1 << 20) - 1;
  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  void take() {  // state: phase number | chunks | next chunk. Who draws a chunk knows the phase still runs.
    for (;;) {
      uint64_t s = state_.fetch_add(1), i = s & MASK;
      if (i >= ((s >> 20) & MASK)) return;
      call_(work_, int64_t(i));
      done_.fetch_add(1);
    }
  }
  void help() {
    for (uint64_t seen = 0;;) {
      int spins = 0;
      while (state_.load(std::memory_order_acquire) >> 40 == seen) {
        if (++spins < 4000) { pause(); continue; }
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, [&] { return state_.load() >> 40 != seen; });
        sleepers_.fetch_sub(1);
      }
      seen = state_.load() >> 40;
      take();
    }
  }
  int helpers_;
  std::atomic<uint64_t> state_{0};
  std::atomic<int64_t> done_{0};
  std::atomic<int> sleepers_{0};
  void (*call_)(const void*, int64_t) = nullptr;
  const void* work_ = nullptr;
  std::mutex mutex_;
  std::condition_variable wake_;
};

enum Kind : int64_t { F32, BF16, F16, Q8, Q4 };
struct Weight {  // [rows, cols]; quantised ones interleaved by TILE rows, scales [rows / TILE, groups, TILE]
  int64_t kind, rows, cols, group, half_scales;
  const void *values, *scales, *offsets;
  bool quantised() const { return kind >= Q8; }
  F scale(const void* p, int64_t i) const { return half_scales ? load((const half*)p + i) : load((const float*)p + i); }
  int bias() const { return kind == Q8 ? FLIP : offsets ? 0 : 8; }
};
struct Block { int32_t q[BLOCK / 4]; float scale, scaled_sum; int32_t start; };  // 32 activations in 8 bits

static void quantise(const float* x, int64_t n, int bias, Block* out) {
  for (int64_t c = 0; c < n; c += BLOCK, out++) {
    I top = {};  // the largest magnitude, compared as bits: a NaN is larger than any number
    UNROLL for (int i = 0; i < BLOCK; i += LANES) { top = imax(top, (I)load(x + c + i) & 0x7fffffff); }
    const int32_t most = fold(top, imax);
    float largest; memcpy(&largest, &most, 4);
    bool zero = largest < 1e-30f;
    out->scale = zero ? 0 : largest / 127.f;
    float inverse = zero ? 0 : 127.f / largest;
    I total = {};
    UNROLL for (int i = 0; i < BLOCK; i += LANES) {
      I q = (I)(load(x + c + i) * inverse + 12582912.f);  // rounds; the low byte is the result
      typename Vec<int8_t>::type bytes = __builtin_convertvector(q, typename Vec<int8_t>::type);
      memcpy((char*)out->q + i, &bytes, LANES);
      total += (q << 24) >> 24;
    }
    const int32_t s = fold(total, [](I a, I b) { return a + b; });
    out->scaled_sum = out->scale * s;
    out->start = -bias * s;
  }
}

struct Out { float* y; int64_t stride; const float* bias; bool add; };  // y (+)= product + bias
INLINE void store(const Out& o, int64_t m, int64_t row, float v) {
  float* y = o.y + m * o.stride + row;
  *y = (o.add ? *y : 0.f) + (o.bias ? v + o.bias[row] : v);
}

// M rows of x times the 16 rows of one tile.
template <bool EIGHT, int M>
static void tile(const Weight& w, int64_t t, const Block* x, int64_t m, const Out& out) {
  const int64_t blocks = w.cols / BLOCK, groups = w.cols / w.group, per = w.group / BLOCK, words = EIGHT ? 8 : 4;
  const char* p = (const char*)w.values + t * blocks * words * TILE * 4;
  F acc[M][PARTS] = {};
  for (int64_t b = 0, g = t * groups, left = per; b < blocks; b++, p += words * TILE * 4) {
    UNROLL for (int v = 0; v < PARTS; v++) {
      I k[8];
      if (EIGHT) {
        UNROLL for (int j = 0; j < 8; j++) k[j] = loadi(p + (j * TILE + v * LANES) * 4) ^ int32_t(FLIP * 0x01010101u);
      } else {
        UNROLL for (int j = 0; j < 4; j++) {
          I raw = loadi(p + (j * TILE + v * LANES) * 4);
          k[j] = raw & 0x0f0f0f0f;
          k[j + 4] = (raw >> 4) & 0x0f0f0f0f;
        }
      }
      UNROLL for (int j = 0; j < words; j++) __builtin_prefetch(p + 4096 + j * TILE * 4 + v * LANES * 4, 0, M == 1 ? 0 : 3);
      const F s = w.scale(w.scales, g * TILE + v * LANES), o = w.offsets ? w.scale(w.offsets, g * TILE + v * LANES) : F{};
      UNROLL for (int i = 0; i < M; i++) {
        const Block& xb = x[(m + i) * blocks + b];
        I d = I{} + xb.start;
        UNROLL for (int j = 0; j < 8; j++) d = dot4(d, k[j], xb.q[j]);
        acc[i][v] += __builtin_convertvector(d, F) * (s * xb.scale);
        if (w.offsets) acc[i][v] += o * xb.scaled_sum;
      }
    }
    if (--left == 0) { left = per; g++; }
  }
  for (int i = 0; i < M; i++)
    for (int r = 0; r < TILE && t * TILE + r < w.rows; r++) store(out, m + i, t * TILE + r, acc[i][r / LANES][r % LANES]);
}

// M rows of x times R rows of a weight [rows, n]: dot products along the rows.
template <class T, int R, int M, int U>
INLINE void dots(const T* w, int64_t n, const float* x, int64_t stride, float (&y)[R][M]) {
  F acc[R][M][U] = {};
  int64_t c = 0;
  for (; c + LANES * U <= n; c += LANES * U) UNROLL for (int u = 0; u < U; u++) {
    F k[R];
    UNROLL for (int r = 0; r < R; r++) k[r] = load(w + r * n + c + u * LANES);
    UNROLL for (int r = 0; r < R; r++) __builtin_prefetch(R == 1 ? (const char*)(w + c + u * LANES) + 4096 : (const char*)(w + (R + r) * n + c), 0, M == 1 ? 0 : 3);
    UNROLL for (int i = 0; i < M; i++) { F v = load(x + i * stride + c + u * LANES); if (R > 1) IN_REGISTER(v); UNROLL for (int r = 0; r < R; r++) acc[r][i][u] += k[r] * v; }
  }
  for (; U > 1 && c + LANES <= n; c += LANES)
    UNROLL for (int i = 0; i < M; i++) { UNROLL for (int r = 0; r < R; r++) acc[r][i][0] += load(w + r * n + c) * load(x + i * stride + c); }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int i = 0; i < M; i++) {
    UNROLL for (int u = 1; u < U; u++) acc[r][i][0] += acc[r][i][u];
    y[r][i] = sum(acc[r][i][0]);
    for (int64_t j = c; j < n; j++) y[r][i] += one(w[r * n + j]) * x[i * stride + j];
  }
}

template <int M> using Int = std::integral_constant<int, M>;
template <int N, int... Rest, class Work> INLINE void by_rows(int64_t m, int64_t end, const Work& work) {
  for (; m + N <= end; m += N) work(Int<N>(), m);  // as many at a time as there are left
  if constexpr (sizeof...(Rest) > 0) by_rows<Rest...>(m, end, work);
}
template <class Work> static auto typed(int64_t kind, const void* p, const Work& work) {
  return kind == F32 ? work((const float*)p) : work((const bf16*)p);
}
constexpr int MANY = LANES == 16 ? 8 : 2, FEW = LANES == 16 ? 8 : 4;  // as the registers allow

// Few rows of activations: for one or two, one row of the weight at a time, the order in which memory reads
// fastest; for more, as many accumulators as there are registers.
template <class T> static void few(const T* w, int64_t n, int64_t r0, int64_t r1, const float* x, int64_t stride, int64_t rows, const Out& out) {
  auto by = [&](auto R, auto M, auto U, int64_t r, int64_t m) {
    float y[R()][M()];
    dots<T, R(), M(), U()>(w + r * n, n, x + m * stride, stride, y);
    for (int k = 0; k < R(); k++) for (int i = 0; i < M(); i++) store(out, m + i, r + k, y[k][i]);
  };
  if (rows <= 2) {
    for (int64_t r = r0; r < r1; r++) by_rows<2, 1>(0, rows, [&](auto M, int64_t m) { by(Int<1>(), M, Int<M() == 1 ? 4 : 2>(), r, m); });
  } else {
    by_rows<3, 1>(r0, r1, [&](auto R, int64_t r) { by_rows<FEW, 4, 1>(0, rows, [&](auto M, int64_t m) { by(R, M, Int<1>(), r, m); }); });
  }
}

// Many rows: PANEL rows of the weight, DEPTH columns at a time, are turned into float32 [DEPTH, PANEL] that
// stays in the first-level cache, and all activations pass by it. y holds the sums so far.
constexpr int VECTORS = TILE == LANES ? 2 : PARTS, PANEL = VECTORS * LANES, DEPTH = 256, MANY_DENSE = LANES == 16 ? 12 : 4;
template <int M> INLINE void panel(const float* w, int64_t depth, const float* x, int64_t stride, int64_t next, float* y, int64_t ldy) {
  F acc[M][VECTORS];
  for (int i = 0; i < M; i++) UNROLL for (int v = 0; v < VECTORS; v++) acc[i][v] = load(y + i * ldy + v * LANES);
  for (int64_t c = 0; c < depth; c++) {
    F k[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++) k[v] = load(w + c * PANEL + v * LANES);
    UNROLL for (int i = 0; i < M; i++) { F b = F{} + x[i * stride + c * next]; IN_REGISTER(b); UNROLL for (int v = 0; v < VECTORS; v++) acc[i][v] += k[v] * b; }
  }
  for (int i = 0; i < M; i++) UNROLL for (int v = 0; v < VECTORS; v++) *(F*)(y + i * ldy + v * LANES) = acc[i][v];
}
INLINE void transpose(F (&r)[LANES]) {
  UNROLL for (int s = 1; s < LANES; s *= 2) {
    I low, high;
    for (int j = 0; j < LANES; j++) low[j] = j & s ? LANES + (j ^ s) : j, high[j] = j & s ? LANES + j : j ^ s;
    UNROLL for (int i = 0; i < LANES; i++) if (!(i & s)) { F a = r[i], b = r[i | s]; r[i] = __builtin_shuffle(a, b, low); r[i | s] = __builtin_shuffle(a, b, high); }
  }
}
template <class T> static void pack(const T* w, int64_t n, int64_t rows, int64_t depth, float* out) {  // [rows, depth] -> [depth, PANEL]
  int64_t c = 0;
  for (; rows == PANEL && c + LANES <= depth; c += LANES)
    for (int v = 0; v < VECTORS; v++) {
      F block[LANES];
      UNROLL for (int i = 0; i < LANES; i++) { block[i] = load(w + (v * LANES + i) * n + c); __builtin_prefetch(w + (v * LANES + i) * n + c + DEPTH); }
      transpose(block);
      UNROLL for (int i = 0; i < LANES; i++) *(F*)(out + (c + i) * PANEL + v * LANES) = block[i];
    }
  for (; c < depth; c++) for (int64_t i = 0; i < PANEL; i++) out[c * PANEL + i] = i < rows ? one(w[i * n + c]) : 0.f;
}
template <class T> static void many(const T* w, int64_t n, int64_t r0, int64_t r1, const float* x, int64_t stride, int64_t rows, const Out& out) {
  static thread_local std::vector<float> packed, sums;
  packed.resize(PANEL * DEPTH); sums.assign(rows * PANEL, 0.f);
  for (int64_t r = r0; r < r1; r += PANEL) {
    const int64_t wide = std::min<int64_t>(PANEL, r1 - r);
    const bool direct = wide == PANEL;
    float* y = direct ? out.y + r : sums.data();
    const int64_t ldy = direct ? out.stride : PANEL;
    if (direct && (out.bias || !out.add))
      for (int64_t m = 0; m < rows; m++) for (int64_t i = 0; i < PANEL; i++) { float& v = y[m * ldy + i]; v = (out.add ? v : 0.f) + (out.bias ? out.bias[r + i] : 0.f); }
    for (int64_t c0 = 0; c0 < n; c0 += DEPTH) {
      const int64_t depth = std::min<int64_t>(DEPTH, n - c0);
      pack(w + r * n + c0, n, wide, depth, packed.data());
      by_rows<MANY_DENSE, 4, 1>(0, rows, [&](auto M, int64_t m) { panel<M()>(packed.data(), depth, x + m * stride + c0, stride, 1, y + m * ldy, ldy); });
    }
    if (!direct) for (int64_t m = 0; m < rows; m++) for (int64_t i = 0; i < wide; i++) store(out, m, r + i, sums[m * PANEL + i]);
  }
}

struct Rows { const float* x; int64_t stride; const Block* blocks; };  // activations [M, cols], also quantised where needed
static void product(Pool& pool, const Weight& w, const Rows& in, int64_t rows, const Out& out) {
  // The first chunks are half of the work, the next half of the rest: long runs read faster, short ones end together.
  const int64_t tiles = (w.rows + TILE - 1) / TILE, even = w.quantised() || rows <= 16 ? 1 : PANEL / TILE, n = pool.threads(), levels = 4;
  auto bound = [&](int64_t chunk) {
    const int64_t left = tiles >> chunk / n, half = chunk / n == levels - 1 ? left : left - left / 2;
    return chunk >= n * levels ? tiles : (tiles - left + half * (chunk % n) / n) / even * even;
  };
  pool.run(n * levels, [&](int64_t chunk) {
    const int64_t t0 = bound(chunk), t1 = bound(chunk + 1);
    if (t0 == t1) return;
    if (!w.quantised())
      return typed(w.kind, w.values, [&](auto* p) { using T = std::remove_cv_t<std::remove_pointer_t<decltype(p)>>; (rows <= 16 ? few<T> : many<T>)(p, w.cols, t0 * TILE, std::min(t1 * TILE, w.rows), in.x, in.stride, rows, out); });
    for (int64_t t = t0; t < t1; t++)
      by_rows<MANY, 4, 1>(0, rows, [&](auto M, int64_t m) {
        w.kind == Q8 ? tile<true, M()>(w, t, in.blocks, m, out) : tile<false, M()>(w, t, in.blocks, m, out);
      });
  });
}

static void embed(const Weight& w, int32_t token, float* x) {  // one row; NaN for a token outside the vocabulary
  if (token < 0 || token >= w.rows) { std::fill(x, x + w.cols, NAN); return; }
  if (!w.quantised()) return typed(w.kind, w.values, [&](auto* p) { for (int64_t c = 0; c < w.cols; c++) x[c] = one(p[token * w.cols + c]); });
  const int64_t t = token / TILE, lane = token % TILE, groups = w.cols / w.group, words = w.kind == Q8 ? 8 : 4;
  auto at = [&](const void* p, int64_t c) { int64_t i = (t * groups + c / w.group) * TILE + lane; return w.half_scales ? one(((const half*)p)[i]) : ((const float*)p)[i]; };
  for (int64_t c = 0; c < w.cols; c++) {
    const int64_t in = c % BLOCK, byte = w.kind == Q8 ? in : in % (BLOCK / 2);
    const int8_t v = ((const int8_t*)w.values)[((t * (w.cols / BLOCK) + c / BLOCK) * words + byte / 4) * TILE * 4 + lane * 4 + byte % 4];
    const float value = w.kind == Q8 ? v : (in < BLOCK / 2 ? v & 15 : (v >> 4) & 15) - (w.offsets ? 0 : 8);
    x[c] = value * at(w.scales, c) + (w.offsets ? at(w.offsets, c) : 0.f);
  }
}

static void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* y) {
  F squares = {};
  int64_t c = 0;
  for (; c + LANES <= n; c += LANES) squares += load(x + c) * load(x + c);
  float total = sum(squares);
  for (; c < n; c++) total += x[c] * x[c];
  const float scale = 1.f / std::sqrt(total / n + eps);
  for (c = 0; c < n; c++) y[c] = x[c] * scale * weight[c];
}

enum Act : int64_t { SILU, GELU, GELU_TANH, RELU };
static void gated(int64_t act, const float* gate, const float* up, int64_t n, float* y) {
  int64_t c = 0;
  if (act == SILU) for (; c + LANES <= n; c += LANES) { F g = load(gate + c); *(F*)(y + c) = g / (vexp(-g) + 1.f) * load(up + c); }
  for (; c < n; c++) {
    const float g = gate[c];
    y[c] = up[c] * (act == SILU ? g / (1 + std::exp(-g)) : act == RELU ? (g < 0 ? 0 : g) : act == GELU ? g * 0.5f * std::erfc(g * -0.70710678f)
      : 0.5f * g * (1 + std::tanh(0.79788456f * (g + 0.044715f * g * g * g))));
  }
}

// The weighted sum of n values for M queries: P vectors of the H elements.
template <class T, int M, int P>
static void mix(const T* values, int64_t n, int64_t H, const float* s, int64_t stride, const float* norm, float* out) {
  F acc[M][P] = {};
  for (int64_t j = 0; j < n; j++) {
    F v[P];
    UNROLL for (int k = 0; k < P; k++) v[k] = load(values + j * H + k * LANES);
    UNROLL for (int i = 0; i < M; i++) { UNROLL for (int k = 0; k < P; k++) acc[i][k] += v[k] * s[i * stride + j]; }
  }
  for (int i = 0; i < M; i++) for (int k = 0; k < P; k++) *(F*)(out + i * H + k * LANES) = acc[i][k] * norm[i];
}

// M queries [M, H] of one key-value head over its cache [S, H]; row i sees positions first[i]..last[i].
template <class T, int M>
static void attend(const float* q, const T* keys, const T* values, int64_t H, const int64_t* first, const int64_t* last, std::vector<float>& scratch, float* out) {
  const int64_t lo = *std::min_element(first, first + M), n = *std::max_element(last, last + M) + 1 - lo, stride = (n + 15) / 16 * 16;
  if ((int64_t)scratch.size() < M * stride) scratch.resize(M * stride * 2);
  float* s = scratch.data();
  by_rows<4, 1>(0, n, [&](auto R, int64_t r) {
    float y[R()][M];
    dots<T, R(), M, 1>(keys + (lo + r) * H, H, q, H, y);
    for (int k = 0; k < R(); k++) for (int i = 0; i < M; i++) s[i * stride + r + k] = y[k][i];
  });
  float norm[M];
  for (int i = 0; i < M; i++) {
    float* p = s + i * stride;
    std::fill(p, p + (first[i] - lo), -INFINITY);
    std::fill(p + (last[i] + 1 - lo), p + stride, -INFINITY);
    float top = -INFINITY;
    for (int64_t j = 0; j < n; j++) top = p[j] > top ? p[j] : top;
    F total = {};
    const float scale = 1.f / std::sqrt((float)H);
    for (int64_t j = 0; j < stride; j += LANES) {
      F v = load(p + j), e = vexp((v - top) * scale);
      e = v == -INFINITY ? F{} : e;  // exp is clamped: unseen positions weigh nothing at all
      *(F*)(p + j) = e; total += e;
    }
    norm[i] = 1.f / sum(total);
  }
  int64_t h = 0;
  for (; h + 4 * LANES <= H; h += 4 * LANES) mix<T, M, 4>(values + lo * H + h, n, H, s, stride, norm, out + h);
  for (; h + LANES <= H; h += LANES) mix<T, M, 1>(values + lo * H + h, n, H, s, stride, norm, out + h);
  for (; h < H; h++) for (int i = 0; i < M; i++) {
    float t = 0;
    for (int64_t j = 0; j < n; j++) t += s[i * stride + j] * one(values[(lo + j) * H + h]);
    out[i * H + h] = t * norm[i];
  }
}

// The same for PANEL queries at once, one a lane: q [H, PANEL], out [H, PANEL]. For prompts.
template <class T>
static void attend_many(const float* q, const T* keys, const T* values, int64_t H, const int32_t* first, const int32_t* last, std::vector<float>& scratch, float* out) {
  const int64_t lo = *std::min_element(first, first + PANEL), n = *std::max_element(last, last + PANEL) + 1 - lo;
  scratch.assign(n * (PANEL + H), 0.f);
  float *s = scratch.data(), *wide = s + n * PANEL;  // scores [n, PANEL]; keys, then values, in float32 [n, H]
  for (int64_t i = 0; i < n * H; i++) wide[i] = one(keys[lo * H + i]);
  by_rows<MANY_DENSE, 4, 1>(0, n, [&](auto M, int64_t m) { panel<M()>(q, H, wide + m * H, H, 1, s + m * PANEL, PANEL); });
  const float scale = 1.f / std::sqrt((float)H);
  for (int64_t i = 0; i < n * H; i++) wide[i] = one(values[lo * H + i]);
  std::fill(out, out + H * PANEL, 0.f);
  F norm[VECTORS];
  for (int v = 0; v < VECTORS; v++) {
    const I begin = loadi(first + v * LANES) - int32_t(lo), end = loadi(last + v * LANES) - int32_t(lo);
    F top = F{} - INFINITY, total = {};
    for (int32_t j = 0; j < n; j++) { F x = load(s + j * PANEL + v * LANES); top = (j >= begin) & (j <= end) & (x > top) ? x : top; }
    for (int32_t j = 0; j < n; j++) {
      F x = load(s + j * PANEL + v * LANES), e = (j >= begin) & (j <= end) ? vexp((x - top) * scale) : F{};
      *(F*)(s + j * PANEL + v * LANES) = e; total += e;
    }
    norm[v] = 1.f / total;
  }
  by_rows<MANY_DENSE, 4, 1>(0, H, [&](auto M, int64_t h) { panel<M()>(s, n, wide + h, 1, H, out + h * PANEL, PANEL); });
  for (int64_t h = 0; h < H; h++) for (int v = 0; v < VECTORS; v++) *(F*)(out + h * PANEL + v * LANES) = load(out + h * PANEL + v * LANES) * norm[v];
}

// What Python sends along: sizes, then the weights, then where each operand is. See __init__.py `_spec`.
struct Spec { int64_t L, B, T, D, K, G, H, F, V, S, window, act, eps, dtype, cache, last_only; };
struct Layer { Weight qkv, o, gate_up, down; const float *norm1, *norm2, *qkv_bias, *o_bias, *gate_up_bias, *down_bias; };

class Reader {  // walks the spec and the operands
 public:
  Reader(XLA_FFI_CallFrame* call) : call_(call) {
    auto* list = (XLA_FFI_Array*)call->attrs.attrs[0];
    at_ = (const int64_t*)list->data;
  }
  template <class T> T sizes() { T t; memcpy(&t, at_, sizeof t); at_ += sizeof t / 8; return t; }
  void* arg(int64_t i) { return i < 0 ? nullptr : ((XLA_FFI_Buffer*)call_->args.args[i])->data; }
  void* ret(int64_t i) { return ((XLA_FFI_Buffer*)call_->rets.rets[i])->data; }
  int64_t next() { return *at_++; }
  Weight weight() {
    Weight w; w.kind = next(); w.rows = next(); w.cols = next(); w.group = next(); w.half_scales = next();
    w.values = arg(next()); w.scales = arg(next()); w.offsets = arg(next());
    return w;
  }
  const float* vector(int64_t dtype, std::vector<std::vector<float>>& keep) {  // as float32
    int64_t i = next();
    if (i < 0) return nullptr;
    auto* b = (XLA_FFI_Buffer*)call_->args.args[i];
    if (dtype == F32) return (const float*)b->data;
    int64_t n = 1;
    for (int64_t d = 0; d < b->rank; d++) n *= b->dims[d];
    keep.emplace_back(n);
    float* out = keep.back().data();
    typed(dtype, b->data, [&](auto* p) { for (int64_t c = 0; c < n; c++) out[c] = one(p[c]); });
    return out;
  }
 private:
  XLA_FFI_CallFrame* call_;
  const int64_t* at_;
};

static int thread_count = 1;
static std::mutex pool_mutex;  // one call has the helpers; another at the same time goes on alone
struct Turn {
  std::unique_lock<std::mutex> lock{pool_mutex, std::try_to_lock};
  Pool& pool() {
    static Pool *all = new Pool(thread_count), *alone = new Pool(1);  // never destroyed: helpers outlive main
    return lock ? *all : *alone;
  }
};

struct Step : Spec {
  Pool& pool;
  Reader& in;
  std::vector<Layer> layers;
  Weight table, head;
  const float* final_norm;
  std::vector<std::vector<float>> keep;
  int64_t M = B * T;
  std::vector<float> x, a, wide;
  std::vector<Block> blocks;

  Step(Pool& p, Reader& r) : Spec(r.sizes<Spec>()), pool(p), in(r), layers(L) {
    table = in.weight();
    for (auto& l : layers) l.qkv = in.weight(), l.o = in.weight(), l.gate_up = in.weight(), l.down = in.weight();
    head = in.weight();
    for (auto& l : layers)
      for (auto* v : {&l.norm1, &l.norm2, &l.qkv_bias, &l.o_bias, &l.gate_up_bias, &l.down_bias}) *v = in.vector(dtype, keep);
    final_norm = in.vector(dtype, keep);
    const int64_t most = std::max({D, K * G * H, F});
    x.resize(M * D); a.resize(M * padded(most)); wide.resize(M * std::max(K * (G + 2) * H, 2 * F));
    blocks.resize(M * (most / BLOCK + 1));
  }
  // Rows a power of two apart would fight for the same lines of the first-level cache.
  static int64_t padded(int64_t n) { return n + 16; }
  float epsilon() const { float e; uint32_t u = uint32_t(eps); memcpy(&e, &u, 4); return e; }
  template <class Work> void each_row(int64_t rows, const Work& work) { pool.run(rows, work); }
  // Readies row m of `a` for w.
  void ready(const Weight& w, int64_t m) { if (w.quantised()) quantise(&a[m * padded(w.cols)], w.cols, w.bias(), &blocks[m * (w.cols / BLOCK)]); }
  void apply(const Weight& w, int64_t rows, float* y, const float* bias, bool add) { product(pool, w, {a.data(), padded(w.cols), blocks.data()}, rows, {y, w.rows, bias, add}); }

  void run() {
    const int32_t *tokens = (int32_t*)in.arg(0), *n_valid = (int32_t*)in.arg(2);
    each_row(M, [&](int64_t m) { embed(table, tokens[m], &x[m * D]); });
    for (int64_t l = 0; l < L; l++) {
      Layer& p = layers[l];
      each_row(M, [&](int64_t m) { rms_norm(&x[m * D], p.norm1, D, epsilon(), &a[m * padded(D)]); ready(p.qkv, m); });
      apply(p.qkv, M, wide.data(), p.qkv_bias, false);
      typed(cache, in.ret(1 + l), [&](auto* keys) { attention(const_cast<std::remove_const_t<std::remove_pointer_t<decltype(keys)>>*>(keys), l); });
      each_row(M, [&](int64_t m) { ready(p.o, m); });
      apply(p.o, M, x.data(), p.o_bias, true);
      each_row(M, [&](int64_t m) { rms_norm(&x[m * D], p.norm2, D, epsilon(), &a[m * padded(D)]); ready(p.gate_up, m); });
      apply(p.gate_up, M, wide.data(), p.gate_up_bias, false);
      each_row(M, [&](int64_t m) { gated(act, &wide[m * 2 * F], &wide[m * 2 * F + F], F, &a[m * padded(F)]); ready(p.down, m); });
      apply(p.down, M, x.data(), p.down_bias, true);
    }
    const int64_t rows = last_only ? B : M;
    each_row(rows, [&](int64_t m) {
      const int64_t from = last_only ? m * T + std::min<int64_t>(std::max(n_valid[m] - 1, 0), T - 1) : m;
      rms_norm(&x[from * D], final_norm, D, epsilon(), &a[m * padded(D)]); ready(head, m);
    });
    apply(head, rows, (float*)in.ret(0), nullptr, false);
  }

  template <class C> void attention(C* keys, int64_t l) {
    C* values = (C*)in.ret(1 + L + l);
    const int32_t* length = (int32_t*)in.arg(1);
    const float *cosines = (float*)in.arg(3), *sines = (float*)in.arg(4);
    const int64_t per_head = (G + 2) * H, width = K * per_head, half_width = H / 2;
    each_row(M, [&](int64_t m) {  // rotate, append; positions past the end are dropped
      const int64_t b = m / T, at = length[b] + m % T;
      const float *cos = cosines + m * half_width, *sin = sines + m * half_width;
      for (int64_t k = 0; k < K; k++) {
        float* head = &wide[m * width + k * per_head];
        for (int64_t j = 0; j <= G; j++, head += H)
          for (int64_t i = 0; i < half_width; i++) {
            const float f = head[i], s = head[i + half_width];
            head[i] = f * cos[i] - s * sin[i]; head[i + half_width] = s * cos[i] + f * sin[i];
          }
        if (at < 0 || at >= S) continue;
        C *key = keys + ((b * K + k) * S + at) * H, *value = values + ((b * K + k) * S + at) * H;
        for (int64_t i = 0; i < H; i++) put(key + i, head[i - H]), put(value + i, head[i]);
      }
    });
    const int64_t queries = T * G;
    const int64_t most = queries >= PANEL / 2 ? PANEL : queries % 4 == 0 ? 4 : queries % 2 == 0 ? 2 : 1, parts = (queries + most - 1) / most;
    pool.run(B * K * parts, [&](int64_t task) {
      static thread_local std::vector<float> q, out, scratch;
      q.resize(PANEL * H); out.resize(PANEL * H);
      const int64_t bk = task / parts, b = bk / K, k = bk % K, begin = task % parts * most, end = std::min(begin + most, queries);
      const C *own_keys = keys + bk * S * H, *own_values = values + bk * S * H;
      auto query = [&](int64_t i) { return &wide[(b * T + i / G) * width + k * per_head + i % G * H]; };
      auto result = [&](int64_t i) { return &a[(b * T + i / G) * padded(K * G * H) + (k * G + i % G) * H]; };
      auto range = [&](int64_t i, auto* first, auto* last) {
        const int64_t at = length[b] + i / G;
        *last = std::min(at, S - 1);
        *first = window ? std::min(std::max<int64_t>(at - window + 1, 0), std::min(at, S - 1)) : 0;
      };
      if (most == PANEL) {
        int32_t first[PANEL], last[PANEL];
        for (int64_t j = 0; j < PANEL; j++) {
          const int64_t i = std::min(begin + j, end - 1);
          range(i, &first[j], &last[j]);
          for (int64_t h = 0; h < H; h++) q[h * PANEL + j] = query(i)[h];
        }
        attend_many(q.data(), own_keys, own_values, H, first, last, scratch, out.data());
        for (int64_t i = begin; i < end; i++) for (int64_t h = 0; h < H; h++) result(i)[h] = out[h * PANEL + i - begin];
        return;
      }
      by_rows<4, 2, 1>(begin, end, [&](auto N, int64_t i) {
        int64_t first[N()], last[N()];
        for (int64_t j = 0; j < N(); j++) memcpy(&q[j * H], query(i + j), H * 4), range(i + j, &first[j], &last[j]);
        attend<C, N()>(q.data(), own_keys, own_values, H, first, last, scratch, out.data());
        for (int64_t j = 0; j < N(); j++) memcpy(result(i + j), &out[j * H], H * 4);
      });
    });
  }
};

static bool metadata(XLA_FFI_CallFrame* call) {  // XLA asks for the interface's version at registration
  auto* e = call->extension_start;
  if (!e || e->type != XLA_FFI_Extension_Metadata) return false;
  auto* m = ((XLA_FFI_Metadata_Extension*)e)->metadata;
  m->api_version.major_version = XLA_FFI_API_MAJOR; m->api_version.minor_version = XLA_FFI_API_MINOR;
  return true;
}

extern "C" XLA_FFI_Error* jllama_forward(XLA_FFI_CallFrame* call) {
  if (metadata(call)) return nullptr;
  Turn turn;
  Reader in(call);
  Step(turn.pool(), in).run();
  return nullptr;
}

extern "C" XLA_FFI_Error* jllama_product(XLA_FFI_CallFrame* call) {  // x [M, cols] float32 -> [M, rows] float32
  if (metadata(call)) return nullptr;
  Turn turn;
  Reader in(call);
  Pool& pool = turn.pool();
  const int64_t rows = in.next();
  Weight w = in.weight();
  const float* x = (const float*)in.arg(0);
  std::vector<Block> blocks(w.quantised() ? rows * (w.cols / BLOCK) : 0);
  if (w.quantised()) pool.run(rows, [&](int64_t m) { quantise(x + m * w.cols, w.cols, w.bias(), &blocks[m * (w.cols / BLOCK)]); });
  product(pool, w, {x, w.cols, blocks.data()}, rows, {(float*)in.ret(0), w.rows, nullptr, false});
  return nullptr;
}

extern "C" void jllama_threads(int n) { thread_count = n; }
extern "C" int jllama_lanes() { return LANES * 1000 + FLIP; }
