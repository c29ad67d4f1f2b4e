// What the kernels share: 16-bit numbers, tensor cores, the copy engine, words that carry their own tag.
//
// The host puts before this text: FP16 (1: float16, 0: bfloat16).

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

#define MINUS_INF __int_as_float(0xff800000)

#ifndef SPIN_LIMIT
#define SPIN_LIMIT (1u << 27)  // polls before a launch gives up: about a minute
#endif

#if FP16
#define MMA_TYPES "f16.f16"
#else
#define MMA_TYPES "bf16.bf16"
#endif

constexpr int cmax(int a, int b) { return a > b ? a : b; }

// ---- the hardware ------------------------------------------------------------------------------------

#ifndef EMULATED  // the tests run this file on a CPU with their own versions of what follows
extern __shared__ __align__(1024) char smem[];

__device__ __forceinline__ u32 saddr(const void* p) { return (u32)__cvta_generic_to_shared(p); }

__device__ __forceinline__ float to_float(u32 bits) {  // low 16 bits
#if FP16
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"((u16)bits));
  return f;
#else
  return __uint_as_float(bits << 16);
#endif
}
__device__ __forceinline__ float half_to_float(u16 bits) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits));
  return f;
}
__device__ __forceinline__ u32 pack(float lo, float hi) {
  u32 r;
#if FP16
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
#endif
  return r;
}

__device__ __forceinline__ float exp2_fast(float v) {  // nothing for less than 2^-126
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

__device__ __forceinline__ float log2_fast(float v) {
  float r;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

__device__ __forceinline__ void mma(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32." MMA_TYPES ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same of float16, whatever the run dtype.
__device__ __forceinline__ u32 pack_half(float lo, float hi) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
__device__ __forceinline__ void mma_half(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ u32 minus_half(u32 a, u32 b) {
  u32 r;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}

// Signed bytes times signed bytes, or (weights, the first operand) unsigned times signed.
template <bool SIGNED> __device__ __forceinline__ void mma_bytes(int (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#define MMA_BYTES(type) \
  asm("mma.sync.aligned.m16n8k32.row.col.s32." type ".s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))
  if constexpr (SIGNED) MMA_BYTES("s8");
  else MMA_BYTES("u8");
#undef MMA_BYTES
}

__device__ __forceinline__ void mbar_init(u32 bar, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
__device__ __forceinline__ void mbar_expect(u32 bar, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
__device__ __forceinline__ void mbar_arrive(u32 bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
#if __CUDA_ARCH__ >= 900
#define MBAR_ASK "try_wait"  // the hardware waits for a while
#else
#define MBAR_ASK "test_wait"
#endif
__device__ __forceinline__ void mbar_wait(u32 bar, u32 parity) {
  u32 done = 0;
  while (!done)
    asm volatile("{ .reg .pred p; mbarrier." MBAR_ASK ".parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done) : "r"(bar), "r"(parity) : "memory");
}
__device__ __forceinline__ void bulk_copy(u32 dst, const void* src, u32 bytes, u32 bar, u64 policy) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
               ::"r"(dst), "l"(src), "r"(bytes), "r"(bar), "l"(policy) : "memory");
}
__device__ __forceinline__ void bulk_copy(u32 dst, const void* src, u32 bytes, u32 bar) {  // to be read again by others
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(dst), "l"(src), "r"(bytes), "r"(bar) : "memory");
}
template <int THREADS> __device__ __forceinline__ void some_sync() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

__device__ __forceinline__ void put(u64* p, u32 data, u32 tag) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(((u64)tag << 32) | data) : "memory");
}
__device__ __forceinline__ u64 peek(const u64* p) {
  u64 w;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(w) : "l"(p) : "memory");
  return w;
}
__device__ __forceinline__ void peek2(const u64* p, u64& a, u64& b) {
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(a), "=l"(b) : "l"(p) : "memory");
}
// Pairs without a tag, in memory that was zero: their complement, so that no pair that there is looks like nothing.
__device__ __forceinline__ void put_bare(u32* p, u32 data) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(~data) : "memory");
}
__device__ __forceinline__ uint2 peek_bare(const u32* p) {
  uint2 w;
  asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];" : "=r"(w.x), "=r"(w.y) : "l"(p) : "memory");
  return w;
}
__device__ __forceinline__ uint4 peek4_bare(const u32* p) {
  uint4 w;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w) : "l"(p) : "memory");
  return w;
}
__device__ __forceinline__ void forget_bare(u32* p) {
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %1};" ::"l"(p), "r"(0) : "memory");
}
__device__ __forceinline__ void show_forgotten() { __threadfence(); }
// Words of 16 bytes, {64 bits of data, 32 more, tag}.
__device__ __forceinline__ void put_wide(u64* p, u32 first, u32 second, u32 more, u32 tag) {
  asm volatile("{ .reg .b128 w; mov.b128 w, {%1, %2}; st.relaxed.gpu.global.b128 [%0], w; }"
               ::"l"(p), "l"(((u64)second << 32) | first), "l"(((u64)tag << 32) | more) : "memory");
}
__device__ __forceinline__ void peek_wide(const u64* p, u64& data, u64& rest) {
  asm volatile("{ .reg .b128 w; ld.relaxed.gpu.global.b128 w, [%2]; mov.b128 {%0, %1}, w; }" : "=l"(data), "=l"(rest) : "l"(p) : "memory");
}
// A word that never comes would hang the device for ever: after about a minute the launch fails instead.
__device__ __forceinline__ void patience(u32& spins) {
  if (++spins > SPIN_LIMIT) asm volatile("trap;");
}
// Words in the memory of any GPU: of this one, or of another that it can reach.
__device__ __forceinline__ void put_far(u64* p, u32 data, u32 tag) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(p), "l"(((u64)tag << 32) | data) : "memory");
}
__device__ __forceinline__ u64 peek_far(const u64* p) {
  u64 w;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(w) : "l"(p) : "memory");
  return w;
}
__device__ __forceinline__ uint4 load_far(const uint4* p) {
  uint4 v;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ u32 load_far(const u32* p) {
  u32 v;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void store_far(u32* p, u32 v) { asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }
__device__ __forceinline__ void show_to_all() { __threadfence_system(); }
__device__ __forceinline__ u64 nanoseconds() {
  u64 now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}
__device__ __forceinline__ void rest() { __nanosleep(500); }
__device__ __forceinline__ void patience_far(u32& spins) { patience(spins); }
__device__ __forceinline__ void put2_far(u64* p, float a, float b, u32 tag) {
  asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(p), "l"(((u64)tag << 32) | __float_as_uint(a)),
               "l"(((u64)tag << 32) | __float_as_uint(b)) : "memory");
}
__device__ __forceinline__ void peek2_far(const u64* p, u64& a, u64& b) {
  asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];" : "=l"(a), "=l"(b) : "l"(p) : "memory");
}
// Words of 32 bits without tags, in the memory of another GPU; 0: nothing has come. Two 16-bit floats, not both negative NaNs.
__device__ __forceinline__ void put2_bare_far(u32* p, u32 a, u32 b) {
  asm volatile("st.relaxed.sys.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(~a), "r"(~b) : "memory");
}
__device__ __forceinline__ uint4 peek4_bare_far(const u32* p) { return load_far((const uint4*)p); }
// Counts a block in; true for the last of `blocks`, which sees what the others wrote and resets the count.
__device__ __forceinline__ bool last_of(u32* counter, u32 blocks) {
  __threadfence();
  const bool last = atomicInc(counter, blocks - 1) == blocks - 1;
  __threadfence();
  return last;
}
// Blocks of a cluster: each arrives, then waits for all others; where `p` in this block's shared memory lies in that of another.
// Below compute capability 9.0 a cluster is one block.
#if __CUDA_ARCH__ >= 900
#define IN_CLUSTERS __cluster_dims__(CLUSTER, 1, 1)
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
template <class T> __device__ __forceinline__ T* peer(T* p, u32 rank) {
  u64 there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(p), "r"(rank));
  return (T*)there;
}
#else
#define IN_CLUSTERS
__device__ __forceinline__ void cluster_arrive() {}
__device__ __forceinline__ void cluster_wait() { __syncthreads(); }
template <class T> __device__ __forceinline__ T* peer(T* p, u32) { return p; }
#endif
// Four tiles of 8 rows of 16 bytes, whose addresses lanes 0-7, 8-15, ... have: lane (g, t) gets column g of rows 2 t and 2 t + 1.
__device__ __forceinline__ void load_columns(u32 (&v)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(saddr(row)) : "memory");
}
__device__ __forceinline__ u64 read_once_policy() {
  u64 policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ void show_barriers() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// Warpgroups: 128 threads multiply tiles in shared memory. A product is in flight until `wgmma_wait`; its
// operands must not change before.
__device__ __forceinline__ void copy_16(u32 dst, const void* src, bool there) {  // else zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void arrive_with_copies(u32 bar) {  // once this thread's have landed
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}
__device__ __forceinline__ void copy_16_of_256(u32 dst, const void* src) {  // their neighbours will be asked for too
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}
__device__ __forceinline__ void copy_16_of_128(u32 dst, const void* src) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}
__device__ __forceinline__ void copy_4(u32 dst, const void* src) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(dst), "l"(src) : "memory");
}
// This thread's copies so far are a group; waits until all groups but the last LEFT have landed.
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> __device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }
__device__ __forceinline__ u32 minus_pair(u32 a, u32 b) {  // of 16-bit floats
  u32 r;
#if FP16
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
#elif __CUDA_ARCH__ >= 900
  asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
#else
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(b), "r"(0xBF80BF80u), "r"(a));
#endif
  return r;
}
__device__ __forceinline__ void show_to_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void group_sync(int id) { asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory"); }
template <int LIMIT> __device__ __forceinline__ void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(LIMIT)); }
template <int LIMIT> __device__ __forceinline__ void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(LIMIT)); }
// A tile in panels of 128-byte rows, pieces exchanged: contracted along its rows, or along its columns.
__device__ __forceinline__ u64 tile_rows(u32 at) { return (u64)(at >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62; }
__device__ __forceinline__ u64 tile_columns(u32 at) { return tile_rows(at); }
__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void hold(float& v) { asm volatile("" : "+f"(v)::"memory"); }
template <int COUNT> __device__ __forceinline__ void hold(float (&v)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) hold(v[i]);
}
template <int LINES, int COUNT> __device__ __forceinline__ void hold(float (&v)[LINES][COUNT]) {
#pragma unroll
  for (int i = 0; i < LINES; i++) hold(v[i]);
}
template <int LEFT, class Sums> __device__ __forceinline__ void wgmma_wait(Sums& sums) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
  hold(sums);
}
// Until all groups of products but the last have ended.
__device__ __forceinline__ void wgmma_wait_for_others() { asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory"); }
// Rows of 16 columns: two pieces of 16 bytes a row, so many bytes apart, each in groups of eight rows behind one another.
__device__ __forceinline__ u64 pieces_of(u32 at, u32 apart) { return (u64)(at >> 4) | (u64)(apart >> 4) << 16 | 8ull << 32; }
#define SUMS_8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SUMS_32(d, i) SUMS_8(d, i), SUMS_8(d, i + 8), SUMS_8(d, i + 16), SUMS_8(d, i + 24)
// d [64][64 or 128] = (add ? d : 0) + a [64][16] times b [64 or 128][16], both by rows.
__device__ __forceinline__ void wgmma_rows(float (&d)[32], u64 a, u64 b, bool add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32." MMA_TYPES " {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p, 1, 1, 0, 0; }"
      : SUMS_32(d, 0) : "l"(a), "l"(b), "r"((int)add));
}
__device__ __forceinline__ void wgmma_rows(float (&d)[64], u64 a, u64 b, bool add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %66, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32." MMA_TYPES " {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "
      "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
      "%62, %63"
      "}, %64, %65, p, 1, 1, 0, 0; }"
      : SUMS_32(d, 0), SUMS_32(d, 32) : "l"(a), "l"(b), "r"((int)add));
}
// d [64][64] += a [64][16], in registers, times b [16][64] by columns.
__device__ __forceinline__ void wgmma_64(float (&d)[32], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {
  asm volatile(
      "{ .reg .pred p; setp.eq.b32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32." MMA_TYPES " {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1; }"
      : SUMS_32(d, 0) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}
#endif

// ---- small helpers -------------------------------------------------------------------------------------

__device__ __forceinline__ float high(u32 bits) { return to_float(bits >> 16); }
__device__ __forceinline__ float rounded(float v) { return to_float(pack(v, 0.0f)); }
__device__ __forceinline__ u32 take(const u64* p, u32 tag) {
  u64 w = peek(p);
  for (u32 spins = 0; (u32)(w >> 32) != tag; w = peek(p)) patience(spins);
  return (u32)w;
}

// What another GPU puts here.
__device__ __forceinline__ float take_far(const u64* p, u32 tag) {
  u64 w = peek_far(p);
  for (u32 spins = 0; (u32)(w >> 32) != tag; w = peek_far(p)) patience_far(spins);
  return __uint_as_float((u32)w);
}
__device__ __forceinline__ float2 take2_far(const u64* p, u32 tag) {
  u64 a, b;
  peek2_far(p, a, b);
  for (u32 spins = 0; (u32)(a >> 32) != tag || (u32)(b >> 32) != tag; peek2_far(p, a, b)) patience_far(spins);
  return make_float2(__uint_as_float((u32)a), __uint_as_float((u32)b));
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int i = 16; i; i >>= 1) v += __shfl_xor_sync(~0u, v, i);
  return v;
}

// Scales of two levels, of 256 weights, as `layers/records.py` has them: of 4 or 16 groups, those of one lane of four.
constexpr int IN_RECORD = 256;  // weights
template <int SIZE> struct Record {
  float scale_unit, offset_unit;
  u32 scales, offsets;
  // Of the first 16 bytes and lane t's word of the last 16, which are the same where there are no others.
  __device__ __forceinline__ Record(const uint4& head, u32 own, int t) {
    u32 units = head.x, more = head.x >> 16;
    if constexpr (SIZE == 16) {
      units = __byte_perm(head.x, head.y, 0x73), more = __byte_perm(head.z, head.w, 0x73);
      scales = offsets = own;
    } else scales = own, offsets = t < 2 ? head.y : head.z;
    scale_unit = half_to_float((u16)units), offset_unit = half_to_float((u16)more);
  }
  __device__ __forceinline__ static Record of(const char* at, int t) {
    return Record(*(const uint4*)at, *(const u32*)(at + SIZE - 16 + t * 4), t);
  }
  // Of the lane's i-th group, to be multiplied with a unit and a step: where bits lie saves a shift.
  __device__ __forceinline__ float scale(int i) const {
    return SIZE == 16 ? (float)(int)(scales & 63u << 12 * i) : (float)(signed char)(scales >> 8 * i);
  }
  __device__ __forceinline__ float offset(int i) const {
    return SIZE == 16 ? (float)(int)(offsets & 63u << (12 * i + 6)) : (float)(unsigned char)(offsets >> 8 * i);
  }
  __device__ __forceinline__ static float scale_step(int i) { return SIZE == 16 && i ? 1.0f / 4096 : 1.0f; }
  __device__ __forceinline__ static float offset_step(int i) { return SIZE == 16 ? i ? 1.0f / 262144 : 1.0f / 64 : 1.0f; }
  __device__ __forceinline__ float whole_scale(int i) const { return scale(i) * (scale_unit * scale_step(i)); }
  __device__ __forceinline__ float whole_offset(int i) const { return offset(i) * (offset_unit * offset_step(i)); }
};

enum { SILU, GELU_TANH, GELU, RELU };
template <int KIND> __device__ __forceinline__ float activated(float v) {
  if constexpr (KIND == SILU) return __fdividef(v, 1.0f + exp2_fast(-1.4426950408889634f * v));
  if constexpr (KIND == GELU_TANH) return __fdividef(v, 1.0f + exp2_fast(-2.3022081981f * (v + 0.044715f * v * v * v)));
  if constexpr (KIND == GELU) return 0.5f * v * (1.0f + erff(v * 0.70710678f));
  return v < 0 ? 0.0f : v;
}

// How a head's 16-byte pieces go in pairs: piece i of the first half of the RO elements that turn with its
// partner in their second half, then those of the rest, which does not turn.
template <int WIDTH, int RO> struct Pairs {
  static constexpr int TURNS = RO / 16, ALL = WIDTH / 16;  // pairs
  static __device__ __forceinline__ bool turns(int i) { return RO == WIDTH || i < TURNS; }
  static __device__ __forceinline__ int first(int i) { return turns(i) ? i : i + TURNS; }  // its number of pieces
  static __device__ __forceinline__ int apart(int i) { return turns(i) ? TURNS : ALL - TURNS; }
};

// No result lies beyond `cap`: cap * tanh(v / cap), wrong by a few 1e-7 of `cap`.
__device__ __forceinline__ float soft_capped(float v, float cap) {
  return cap - __fdividef(2.0f * cap, 1.0f + exp2_fast(v * (2.8853900817779268f / cap)));
}

// Activations as `wide_product.cu` reads them against weights of WIDTH bits: [piece][one of `room` tokens][8 numbers], eight
// pieces a panel of 64 columns. Where the pair that begins with an even column lies, in words.
template <int WIDTH> __device__ __forceinline__ size_t arranged(int column, int token, int room) {
  constexpr int LANE = WIDTH == 8 ? 4 : 5;  // 2^LANE columns lie beside each other in a lane
  const int panel = WIDTH == 4 ? (column >> 7) * 2 + (column >> 4 & 1) : column >> 6;
  const int step = column >> 2 & 3;
  return ((size_t)(panel * 8 + step * 2 + (column >> 1 & 1)) * room + token) * 4 + (column >> LANE & 3);
}

// Eight pairs (x, y) of 16-bit numbers turned by the angles of `cosines` and `sines`.
__device__ __forceinline__ void rotate(uint4& x, uint4& y, const float* cosines, const float* sines) {
  u32 *a = &x.x, *b = &y.x;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 c = *(const float2*)(cosines + 2 * i), s = *(const float2*)(sines + 2 * i);
    const float a0 = to_float(a[i]), a1 = high(a[i]), b0 = to_float(b[i]), b1 = high(b[i]);
    a[i] = pack(a0 * c.x - b0 * s.x, a1 * c.y - b1 * s.y);
    b[i] = pack(b0 * c.x + a0 * s.x, b1 * c.y + a1 * s.y);
  }
}
