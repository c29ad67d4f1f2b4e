// Vectors of LANES numbers: everything is written once on them, and only `load`, `dot2` and `dot4` differ
// between instruction sets. x86's are named as its assembler has them: to read immintrin.h takes 0.3 s.
#pragma once
#include "plain.h"
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#if defined(__x86_64__)
#define IN_REGISTER(v) asm("" : "+v"(v))  // or the compiler loads it again for each use
#else
#define IN_REGISTER(v) asm("" : "+w"(v))
#endif

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define JLLAMA_WIDE 1
constexpr int LANES = 16;
#elif defined(__AVX2__) && defined(__F16C__) && defined(__FMA__)
#define JLLAMA_AVX2 1
#define JLLAMA_WIDE 1
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
// How instructions for products of bytes begin: AVX-512 has them, or AVX alone under the shorter encoding.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define JLLAMA_VNNI ""
#elif defined(JLLAMA_AVX2) && defined(__AVXVNNI__)
#define JLLAMA_VNNI "%{vex%} "
#endif
constexpr int TILE = 16, PARTS = TILE / LANES;  // rows of a quantised weight that lie interleaved
constexpr int BLOCK = 32;                       // activations that share a scale
constexpr int UNIT = 256;                       // weights that share the unit of their scales
#if defined(JLLAMA_AMD) || defined(__znver1__) || defined(__znver2__) || defined(__znver3__) || \
    defined(__znver4__) || defined(__znver5__)
constexpr bool AMD = true;
#else
constexpr bool AMD = false;
#endif
// Where a weight that is read once is fetched to. An AMD core reads faster past its second-level cache; an Intel
// core then has but the sixteen lines that its first-level cache waits for, and reads at half the speed.
constexpr int ONCE = AMD ? 0 : 2;

template <class T>
struct Vec {
  typedef T type __attribute__((vector_size(LANES * sizeof(T)), aligned(sizeof(T)), may_alias));
};
using F = Vec<float>::type;
using I = Vec<int32_t>::type;
using U16 = Vec<uint16_t>::type;
using I16 = int16_t __attribute__((vector_size(LANES * 4), aligned(4), may_alias));  // two a lane of I
struct bf16 {
  uint16_t bits;
};
struct half {
  uint16_t bits;
};
struct pair {
  bf16 low, high;
};  // neighbours, for an instruction that multiplies both

INLINE F load(const float* p) { return *(const F*)p; }
INLINE I loadi(const void* p) { return *(const I*)p; }
INLINE F load(const bf16* p) {
#if defined(JLLAMA_WIDE)
  I bits;
  asm("vpmovzxwd %1, %0" : "=v"(bits) : "vm"(*(const U16*)p));
  return (F)(bits << 16);
#else
  return (F)(__builtin_convertvector(*(const U16*)p, I) << 16);
#endif
}
INLINE F load(const pair* p) { return *(const F*)p; }
// In all lanes. Adding it to 0 would be arithmetic: a pair of bfloat16 that looks like a subnormal would be lost.
INLINE F in_all(const float* p) {
  int32_t bits;
  memcpy(&bits, p, 4);
  return (F)(I{} + bits);
}
INLINE float one(float x) { return x; }
INLINE float one(pair x) {
  float f;
  memcpy(&f, &x, 4);
  return f;
}
INLINE float one(bf16 x) {
  uint32_t u = uint32_t(x.bits) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static float one(half x) {  // no subnormal float32 on the way: XLA's threads take those for 0
  uint32_t u = x.bits & 0x7fffu;
  float f;
  if (u < 0x400u) {  // 0.5f has the same last place as subnormals
    u |= 0x3f000000u;
    memcpy(&f, &u, 4);
    f -= 0.5f;
    memcpy(&u, &f, 4);
  } else {
    u = u >= 0x7c00u ? u << 13 | 0x7f800000u : (u << 13) + 0x38000000u;
  }
  u |= (x.bits & 0x8000u) << 16;
  memcpy(&f, &u, 4);
  return f;
}
INLINE F load(const half* p) {
#if defined(JLLAMA_WIDE)
  F f;
  asm("vcvtph2ps %1, %0" : "=v"(f) : "vm"(*(const U16*)p));
  return f;
#elif defined(__aarch64__)
  return (F)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t*)p)));
#else
  return F{one(p[0]), one(p[1]), one(p[2]), one(p[3])};
#endif
}
INLINE F load(const int8_t* p) {
#if defined(JLLAMA_WIDE)
  I k;
  asm("vpmovsxbd %1, %0" : "=v"(k) : "vm"(*(const Vec<int8_t>::type*)p));
  return __builtin_convertvector(k, F);
#else
  return __builtin_convertvector(*(const Vec<int8_t>::type*)p, F);
#endif
}
INLINE void put(float* p, float x) { *p = x; }
INLINE void put(bf16* p, float x) {  // to nearest, ties to even; a NaN stays one
  uint32_t u;
  memcpy(&u, &x, 4);
  p->bits = x != x ? 0x7fc0 : (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}
// Likewise; too large a number becomes infinite. Not all compilers have _Float16.
static void put(half* p, float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  const uint32_t sign = u >> 16 & 0x8000u;
  u &= 0x7fffffffu;
  if (u < 0x38800000u) {  // subnormal: 0.5f has the same last place
    memcpy(&x, &u, 4);
    x += 0.5f;
    memcpy(&u, &x, 4);
    u -= 0x3f000000u;
  } else {
    const uint32_t most = u > 0x7f800000u ? 0x7e00u : 0x7c00u;
    u = u >= 0x477ff000u ? most : (u + 0xfffu + (u >> 13 & 1) - 0x38000000u) >> 13;
  }
  p->bits = uint16_t(sign | u);
}

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
constexpr bool PAIRS = true;
INLINE F dot2(F acc, F w, F x) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
  return acc;
}
#else
constexpr bool PAIRS = false;
INLINE F dot2(F acc, F, F) { return acc; }
#endif

// Adds to each int32 lane the dot product of its two int16 of w with the two of x. Nothing overflows: 16 such
// products of an activation and a weight of 8 bits are less than 2^28.
INLINE I dot2(I acc, I w, I x) {
#if defined(JLLAMA_VNNI)
  asm(JLLAMA_VNNI "vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
  return acc;
#elif defined(JLLAMA_AVX2)
  asm("vpmaddwd %2, %1, %0" : "=x"(w) : "x"(w), "x"(x));
  return acc + w;
#elif defined(__x86_64__)
  asm("pmaddwd %1, %0" : "+x"(w) : "x"(x));
  return acc + w;
#else
  return acc + ((w << 16) >> 16) * ((x << 16) >> 16) + (w >> 16) * (x >> 16);
#endif
}
// Where an instruction multiplies four bytes at once, few rows of activations meet the weights in two halves of
// 8 bits: the weights' bytes need not be widened. dot4 adds to each int32 lane the dot product of its four bytes of
// w, which are unsigned if FLIP is 128 (then int8 + 128 for 8 bit weights) and 0..15 for 4 bit, with those of x.
#if defined(JLLAMA_VNNI)
constexpr bool SPLIT = true;
constexpr int FLIP = 128;
INLINE I dot4(I acc, I w, I x) {
  asm(JLLAMA_VNNI "vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
  return acc;
}
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
constexpr bool SPLIT = true;
constexpr int FLIP = 0;
INLINE I dot4(I acc, I w, I x) { return (I)vdotq_s32((int32x4_t)acc, (int8x16_t)w, (int8x16_t)x); }
#else
constexpr bool SPLIT = false;
constexpr int FLIP = 0;
INLINE I dot4(I acc, I, I) { return acc; }
#endif
// Where AVX2 multiplies pairs of bytes into 16 bits, those hold a block's sums of weights of 4 bits, 0..15, with bytes:
// 16 such products are at most 30,720. Likewise four bytes a lane, but two sums in each.
#if defined(JLLAMA_AVX2) && !defined(__AVXVNNI__)
constexpr bool NIBBLES = true;
INLINE I dot4_narrow(I acc, I w, I x) {
  asm("vpmaddubsw %2, %1, %0" : "=x"(w) : "x"(w), "x"(x));
  return (I)((I16)acc + (I16)w);
}
#else
constexpr bool NIBBLES = false;
INLINE I dot4_narrow(I acc, I, I) { return acc; }
#endif
// What IQ4_NL's 4 bits stand for; for each 16 bytes of a vector.
#define SIXTEEN -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
alignas(64) constexpr int8_t LEVELS[64] = {SIXTEEN, SIXTEEN, SIXTEEN, SIXTEEN};
#if defined(__aarch64__)
constexpr bool LOOKS_UP = true;
#else
constexpr bool LOOKS_UP = LANES > 4;
#endif
INLINE I levels(I nibbles) {  // of each byte, which is 0..15
#if defined(JLLAMA_WIDE)
  asm("vpshufb %1, %2, %0" : "=v"(nibbles) : "v"(nibbles), "v"(loadi(LEVELS)));
  return nibbles;
#elif defined(__aarch64__)
  return (I)vqtbl1q_s8(vld1q_s8(LEVELS), (uint8x16_t)nibbles);
#else
  int8_t bytes[LANES * 4];
  memcpy(bytes, &nibbles, sizeof bytes);
  for (int8_t& byte : bytes) byte = LEVELS[byte & 15];
  I out;
  memcpy(&out, bytes, sizeof bytes);
  return out;
#endif
}
#if defined(__clang__)
template <class V>
INLINE V shuffled(V a, V b, I from) {  // lane j is lane from[j] of a and b laid behind one another
  V out;
  UNROLL for (int j = 0; j < LANES; j++) out[j] = from[j] < LANES ? a[from[j]] : b[from[j] - LANES];
  return out;
}
#else
template <class V>
INLINE V shuffled(V a, V b, I from) { return __builtin_shuffle(a, b, from); }
#endif
template <class V, class Op>
INLINE auto fold(V v, const Op& op) {  // over the lanes
  UNROLL for (int s = LANES / 2; s; s /= 2) {
    I swap;
    for (int j = 0; j < LANES; j++) swap[j] = j ^ s;
    v = op(v, shuffled(v, v, swap));
  }
  return v[0];
}
INLINE void transpose(F (&r)[LANES]) {
  UNROLL for (int s = 1; s < LANES; s *= 2) {
    I low, high;
    for (int j = 0; j < LANES; j++) low[j] = j & s ? LANES + (j ^ s) : j, high[j] = j & s ? LANES + j : j ^ s;
    UNROLL for (int i = 0; i < LANES; i++) if (!(i & s)) {
      F a = r[i], b = r[i | s];
      r[i] = shuffled(a, b, low);
      r[i | s] = shuffled(a, b, high);
    }
  }
}
INLINE float sum(F v) {
  return fold(v, [](F a, F b) { return a + b; });
}
INLINE I imax(I a, I b) { return a > b ? a : b; }
INLINE F vexp(F x) {  // e^x to 2 ulp; x is clamped to -87..88, a NaN stays one
  x = x < -87.f ? F{} - 87.f : x;
  x = x > 88.f ? F{} + 88.f : x;
  F n = x * 1.44269504f + 12582912.f;  // rounds to a whole number: the low bits of n
  I e = (I)n;
  n -= 12582912.f;
  x -= n * 0.693359375f;
  x -= n * -2.12194440e-4f;
  F p = ((((x * 1.9875691500e-4f + 1.3981999507e-3f) * x + 8.3334519073e-3f) * x + 4.1665795894e-2f) * x +
         1.6666665459e-1f) *
            x +
        5.0000001201e-1f;
  return (F)((I)(p * x * x + x + 1.f) + (e << 23));
}
INLINE F vtanh(F x) {  // to 3 ulp, small x too: a quotient of polynomials; a NaN stays one
  x = x < -7.9053111f ? F{} - 7.9053111f : x;
  x = x > 7.9053111f ? F{} + 7.9053111f : x;
  const F s = x * x;
  const F above = (((((s * -2.76076847742355e-16f + 2.00018790482477e-13f) * s - 8.60467152213735e-11f) * s +
                     5.12229709037114e-8f) * s + 1.48572235717979e-5f) * s + 6.37261928875436e-4f) * s +
                  4.89352455891786e-3f;
  const F below = ((s * 1.19825839466702e-6f + 1.18534705686654e-4f) * s + 2.26843463243900e-3f) * s +
                  4.89352518554385e-3f;
  return x * above / below;
}

template <int M>
using Int = Constant<int, M>;
template <int N, int... Rest, class Work>
INLINE void by_rows(int64_t m, int64_t end, const Work& work) {
  for (; m + N <= end; m += N) work(Int<N>(), m);  // as many at a time as there are left
  if constexpr (sizeof...(Rest) > 0) by_rows<Rest...>(m, end, work);
}
