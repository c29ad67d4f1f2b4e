// What a CUDA kernel is compiled with to run on a CPU; `emulated_cuda.cc` runs it.
//
// Compiled once, before all kernels: what depends on a kernel's sizes is in `emulated_sizes.h`. The standard library's C++
// headers stay out, and so do functions of some length: each kernel would compile them anew.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EMULATED
#define __device__
#define __host__
#define __global__
#define __constant__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
template <class X, class Y> constexpr auto max(X a, Y b) { return a < b ? b : a; }
template <class X, class Y> constexpr auto min(X a, Y b) { return b < a ? b : a; }

struct Index { int x; };
struct Any {  // a pointer that becomes whatever the kernel's parameter is
  void* at;
  template <class T> operator T*() const { return (T*)at; }
};

// ---- threads and what they do together -------------------------------------------------------------------------------

struct Meeting;
struct Thread { int thread, block; char* shared; Meeting* warp; };
extern Thread* me;
#define threadIdx (Index{me->thread})
#define blockIdx (Index{me->block})
#define smem (me->shared)

void run_kernel(int blocks, int threads, int shared_bytes, void (*kernel)());
void pause_fiber();  // until all others had their turn
void meet(Meeting& m, int people);
void group_sync(int id);
void some_sync_of(int threads);
void cluster_sync(int blocks);
char* shared_memory_of(int block);
void __syncthreads();
unsigned __reduce_max_sync(unsigned, unsigned v);
unsigned long long word_of(unsigned long long mine, int from);  // of a warp's threads
[[noreturn]] void fail(const char* what, ...);

static inline void __syncwarp() { meet(*me->warp, 32); }
template <int THREADS> static void some_sync() { some_sync_of(THREADS); }
template <class T> static T exchange(T v, int from) {
  unsigned long long word = 0;
  memcpy(&word, &v, sizeof v);
  word = word_of(word, from);
  memcpy(&v, &word, sizeof v);
  return v;
}
template <class T> static T __shfl_xor_sync(unsigned, T v, int mask) { return exchange(v, (me->thread % 32) ^ mask); }
template <class T> static T __shfl_sync(unsigned, T v, int from) { return exchange(v, from); }
template <class T> static T __shfl_down_sync(unsigned, T v, int by) { return exchange(v, min(31, me->thread % 32 + by)); }
template <class T> static T __shfl_up_sync(unsigned, T v, int by) { return exchange(v, max(0, me->thread % 32 - by)); }
static inline bool __any_sync(unsigned mask, bool v) { return __reduce_max_sync(mask, v); }
static inline unsigned __reduce_min_sync(unsigned, unsigned v) { return ~__reduce_max_sync(~0u, ~v); }

// ---- numbers ---------------------------------------------------------------------------------------------------------

unsigned __byte_perm(unsigned a, unsigned b, unsigned selector);
template <class T> static T __ldg(const T* p) { return *p; }
template <class T> static T __ldcg(const T* p) { return *p; }
static inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static inline float __int_as_float(int u) { return __uint_as_float((unsigned)u); }
static inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static inline unsigned long long __float2ull_rn(float f) { return (unsigned long long)nearbyintf(f); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned __int128)a * b >> 64; }
static inline unsigned atomicAdd(unsigned* to, unsigned more) { *to += more; return *to - more; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float exp2_fast(float v) { return exp2f(v); }
static inline float log2_fast(float v) { return log2f(v); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

static inline float half_to_float(unsigned short bits) { _Float16 h; memcpy(&h, &bits, 2); return (float)h; }
template <bool HALF> static inline float to_float_of(unsigned bits) {
  return HALF ? half_to_float((unsigned short)bits) : __uint_as_float(bits << 16);
}
template <bool HALF> static inline unsigned narrow(float v) {
  if (HALF) { _Float16 h = (_Float16)v; unsigned short b; memcpy(&b, &h, 2); return b; }
  unsigned u = __float_as_uint(v);
  if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
template <bool HALF> static inline unsigned pack_of(float lo, float hi) { return narrow<HALF>(lo) | narrow<HALF>(hi) << 16; }
static inline unsigned pack_half(float lo, float hi) { return pack_of<true>(lo, hi); }
template <bool HALF> static inline unsigned minus_of(unsigned a, unsigned b) {
  return pack_of<HALF>(to_float_of<HALF>(a) - to_float_of<HALF>(b), to_float_of<HALF>(a >> 16) - to_float_of<HALF>(b >> 16));
}
static inline unsigned minus_half(unsigned a, unsigned b) { return minus_of<true>(a, b); }

// ---- products --------------------------------------------------------------------------------------------------------

void mma_of(bool half, float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1);
void mma_bytes_of(bool is_signed, int (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1);
static inline void mma_half(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  mma_of(true, c, a0, a1, a2, a3, b0, b1);
}
template <bool SIGNED> static void mma_bytes(int (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  mma_bytes_of(SIGNED, c, a0, a1, a2, a3, b0, b1);
}
void load_columns(unsigned (&v)[4], const void* row);

// A warpgroup's products: `tile_rows` and `tile_columns` are addresses, pieces of 16 bytes exchanged by their row.
void wgmma_rows_of(bool half, float* d, int count, unsigned a, unsigned b, bool add);
void wgmma_64_of(bool half, float (&d)[32], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b);
void wgmma_by_rows_of(bool half, float* d, int count, const unsigned (&a)[4], unsigned long long b);
static inline unsigned tile_rows(unsigned at) { return at; }
static inline unsigned tile_columns(unsigned at) { return at; }
static inline void wgmma_begin() {}
static inline void wgmma_commit() {}
template <int LEFT, class Sums> static void wgmma_wait(Sums&) {}
static inline void wgmma_wait_for_others() {}
static inline int sum_row(int i) { return me->thread / 32 % 4 * 16 + me->thread % 32 / 4 + (i & 2) * 4; }
static inline int sum_column(int i) { return i / 4 * 8 + me->thread % 4 * 2 + i % 2; }
// Rows of two pieces, so many bytes apart: eight rows lie behind one another.
static inline unsigned long long pieces_of(unsigned at, unsigned apart) { return (unsigned long long)apart << 32 | at; }

// ---- copies and their barriers ---------------------------------------------------------------------------------------

static inline unsigned saddr(const void* p) { return (unsigned)((const char*)p - smem); }
void mbar_init(unsigned at, unsigned count);
void mbar_arrive(unsigned at);
void mbar_expect(unsigned at, unsigned bytes);
void mbar_wait(unsigned at, unsigned parity);
void bulk_copy(unsigned dst, const void* src, unsigned bytes, unsigned bar, unsigned long long policy = 0);
void copy_16(unsigned dst, const void* src, bool there);
static inline void copy_16_of_256(unsigned dst, const void* src) { copy_16(dst, src, true); }
static inline void copy_16_of_128(unsigned dst, const void* src) { copy_16(dst, src, true); }
void copy_4(unsigned dst, const void* src);
void arrive_with_copies(unsigned bar);
void copies_commit();
void copies_wait_of(unsigned left);
template <int LEFT> static void copies_wait() { copies_wait_of(LEFT); }
static inline void show_to_copies() {}
static inline void show_barriers() {}
static inline unsigned long long read_once_policy() { return 0; }
template <int LIMIT> static void more_registers() {}
template <int LIMIT> static void fewer_registers() {}

// ---- words between blocks --------------------------------------------------------------------------------------------

static inline bool last_of(unsigned* counter, unsigned blocks) {
  if (++*counter < blocks) return false;
  *counter = 0;
  return true;
}
static inline void put(unsigned long long* p, unsigned data, unsigned tag) { *p = (unsigned long long)tag << 32 | data; }
static inline unsigned long long peek(const unsigned long long* p) { return *p; }
static inline void peek2(const unsigned long long* p, unsigned long long& a, unsigned long long& b) { a = p[0]; b = p[1]; }
static inline void must_be_empty(bool empty) {
  if (!empty) fail("block %d puts where something lies", me->block);
}
static inline void put_bare(unsigned* p, unsigned data) {
  must_be_empty(!*p);
  *p = ~data;
}
static inline uint2 peek_bare(const unsigned* p) { return {p[0], p[1]}; }
static inline uint4 peek4_bare(const unsigned* p) { return {p[0], p[1], p[2], p[3]}; }
static inline void forget_bare(unsigned* p) { p[0] = p[1] = 0; }
static inline void show_forgotten() {}
static inline void put_wide(unsigned long long* p, unsigned first, unsigned second, unsigned more, unsigned tag) {
  p[0] = (unsigned long long)second << 32 | first, p[1] = (unsigned long long)tag << 32 | more;
}
static inline void peek_wide(const unsigned long long* p, unsigned long long& data, unsigned long long& rest) { data = p[0]; rest = p[1]; }
void patience(unsigned& spins);

// Words between GPUs, which are processes: the other one may be slow, or gone.
static inline void put_far(unsigned long long* p, unsigned data, unsigned tag) {
  *(volatile unsigned long long*)p = (unsigned long long)tag << 32 | data;
}
static inline void put2_far(unsigned long long* p, float a, float b, unsigned tag) {
  put_far(p, __float_as_uint(a), tag);
  put_far(p + 1, __float_as_uint(b), tag);
}
static inline unsigned long long peek_far(const unsigned long long* p) { return *(volatile const unsigned long long*)p; }
static inline void peek2_far(const unsigned long long* p, unsigned long long& a, unsigned long long& b) { a = peek_far(p), b = peek_far(p + 1); }
static inline uint4 load_far(const uint4* p) { return *p; }
static inline void put2_bare_far(unsigned* p, unsigned a, unsigned b) {
  must_be_empty(!p[0] && !p[1]);
  ((volatile unsigned*)p)[0] = ~a, ((volatile unsigned*)p)[1] = ~b;
}
static inline uint4 peek4_bare_far(const unsigned* at) {
  const volatile unsigned* p = at;
  return {p[0], p[1], p[2], p[3]};
}
static inline unsigned load_far(const unsigned* p) { return *(const volatile unsigned*)p; }
static inline void store_far(unsigned* p, unsigned v) { *(volatile unsigned*)p = v; }
static inline void show_to_all() { __sync_synchronize(); }
unsigned long long nanoseconds();  // as many as it was asked
static inline void rest() { pause_fiber(); }
void patience_far(unsigned& spins);
