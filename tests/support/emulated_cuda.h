// Runs a CUDA kernel on a CPU: every thread is a fiber; what threads do together waits for all of them.
//
// Copies of the copy engine land late and out of order, and every second run takes the last threads first. Nothing is said
// of the memory model or of speed.
#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#define EMULATED
#define __device__
#define __host__
#define __global__
#define __constant__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
using std::max;
using std::min;

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
static uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static float2 make_float2(float x, float y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
template <class X, class Y> static auto max(X a, Y b) { return a > b ? a : b; }
template <class X, class Y> static auto min(X a, Y b) { return a < b ? a : b; }

struct Index { int x; };
struct Any {  // a pointer that becomes whatever the kernel's parameter is
  void* at;
  template <class T> operator T*() const { return (T*)at; }
};
struct Meeting { int arrived = 0, turn = 0; unsigned long long w[32]; unsigned u[32][10]; float c[32][4]; };
struct Barrier { int count = 0, pending = 0; long bytes = 0; unsigned turn = 0; };
struct Copy { int block; unsigned dst, bytes, bar; const char* src; std::vector<Copy> pieces; };

struct Fiber {
  ucontext_t context; void* place[5]; int thread, block; bool begun, done; std::vector<char> stack;
  std::vector<Copy> asked, groups;  // small copies: not yet in a group, in groups that nobody has waited for
};

static std::vector<Fiber> fibers;
static Fiber* me;
static void* scheduler[5];
static std::vector<std::vector<char>> shared_memory;
static std::vector<std::vector<Barrier>> barriers;
static std::vector<Meeting> warps, groups, clusters;
static std::vector<Copy> copies;
static int warps_per_block;
static bool last_first;  // in which order threads run from one meeting to the next: a missing barrier shows in one of them
constexpr int BARRIERS = 8;  // named barriers of a block
#define threadIdx (Index{me->thread})
#define blockIdx (Index{me->block})
#define smem (shared_memory[me->block].data())

// A context only begins a fiber: to switch with one takes two system calls, a jump takes none. The compiler's own jumps
// leave out what the C library's do for signals and threads; they want a function that jumps apart from the one that lands.
__attribute__((noipa)) static void jump(void** place) { __builtin_longjmp(place, 1); }
__attribute__((noipa)) static void pause_fiber() {
  if (!__builtin_setjmp(me->place)) jump(scheduler);
}
__attribute__((noipa)) static void resume(Fiber& f) {
  me = &f;
  if (__builtin_setjmp(scheduler)) return;
  if (f.begun) jump(f.place);
  f.begun = true;
  setcontext(&f.context);
}
static void meet(Meeting& m, int people) {
  const int turn = m.turn;
  if (++m.arrived == people) { m.arrived = 0; m.turn++; }
  else while (m.turn == turn) pause_fiber();
}
static Meeting& my_warp() { return warps[me->block * warps_per_block + me->thread / 32]; }
static void __syncwarp() { meet(my_warp(), 32); }
static void __syncthreads() { meet(groups[me->block * BARRIERS], warps_per_block * 32); }
template <class T> static T exchange(T v, int from) {
  Meeting& m = my_warp();
  memcpy(&m.w[me->thread % 32], &v, sizeof v);
  meet(m, 32);
  T r;
  memcpy(&r, &m.w[from], sizeof r);
  meet(m, 32);
  return r;
}
template <class T> static T __shfl_xor_sync(unsigned, T v, int mask) { return exchange(v, (me->thread % 32) ^ mask); }
template <class T> static T __shfl_sync(unsigned, T v, int from) { return exchange(v, from); }
template <class T> static T __shfl_down_sync(unsigned, T v, int by) { return exchange(v, min(31, me->thread % 32 + by)); }
template <class T> static T __shfl_up_sync(unsigned, T v, int by) { return exchange(v, max(0, me->thread % 32 - by)); }
static unsigned __reduce_max_sync(unsigned, unsigned v) {
  Meeting& m = my_warp();
  m.w[me->thread % 32] = v;
  meet(m, 32);
  const unsigned top = (unsigned)*std::max_element(m.w, m.w + 32);
  meet(m, 32);
  return top;
}
static bool __any_sync(unsigned mask, bool v) { return __reduce_max_sync(mask, v); }
#ifdef CLUSTER
#define IN_CLUSTERS
static void cluster_arrive() {}
static void cluster_wait() { meet(clusters[me->block / CLUSTER], CLUSTER * warps_per_block * 32); }
template <class T> static T* peer(T* p, int rank) {
  return (T*)(shared_memory[me->block / CLUSTER * CLUSTER + rank].data() + ((const char*)p - smem));
}
#endif
static unsigned __reduce_min_sync(unsigned, unsigned v) { return ~__reduce_max_sync(~0u, ~v); }
static unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t both = (uint64_t)b << 32 | a;
  unsigned r = 0;
  for (int i = 0; i < 4; i++) r |= (unsigned)(both >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  return r;
}
template <class T> static T __ldg(const T* p) { return *p; }
template <class T> static T __ldcg(const T* p) { return *p; }
static float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static float __int_as_float(int u) { return __uint_as_float((unsigned)u); }
static unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static unsigned long long __float2ull_rn(float f) { return (unsigned long long)nearbyintf(f); }
static unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned __int128)a * b >> 64; }
static unsigned atomicAdd(unsigned* to, unsigned more) { *to += more; return *to - more; }
static float __fdividef(float a, float b) { return a / b; }
static float exp2_fast(float v) { return exp2f(v); }
static float log2_fast(float v) { return log2f(v); }
static float rsqrtf(float x) { return 1.0f / sqrtf(x); }

static float half_to_float(unsigned short bits) { _Float16 h; memcpy(&h, &bits, 2); return (float)h; }
static float to_float(unsigned bits) {
  return FP16 ? half_to_float((unsigned short)bits) : __uint_as_float(bits << 16);
}
static unsigned narrow(float v) {
  if (FP16) { _Float16 h = (_Float16)v; unsigned short b; memcpy(&b, &h, 2); return b; }
  unsigned u = __float_as_uint(v);
  if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
static unsigned pack(float lo, float hi) { return narrow(lo) | narrow(hi) << 16; }

static unsigned saddr(const void* p) { return (unsigned)((const char*)p - smem); }
static Barrier& barrier(unsigned at) { return barriers[me->block][at / 8]; }
static void settle(Barrier& b) {
  if (b.pending == 0 && b.bytes == 0) { b.turn++; b.pending = b.count; }
}
static void mbar_init(unsigned at, unsigned count) { barrier(at).count = barrier(at).pending = (int)count; }
static void mbar_arrive(Barrier& b) {
  if (b.pending <= 0) { fprintf(stderr, "an arrival too many\n"); abort(); }
  b.pending--;
  settle(b);
}
static void mbar_arrive(unsigned at) { mbar_arrive(barrier(at)); }
static void mbar_expect(unsigned at, unsigned bytes) { barrier(at).bytes += bytes; mbar_arrive(at); }
static void mbar_wait(unsigned at, unsigned parity) {
  while ((barrier(at).turn & 1) == parity) pause_fiber();
}
static void bulk_copy_to(int block, unsigned dst, const void* src, unsigned bytes, unsigned bar) {
  if (dst % 16 || (uintptr_t)src % 16 || bytes % 16 || !bytes) { fprintf(stderr, "copy of %u bytes to %u\n", bytes, dst); abort(); }
  copies.push_back({block, dst, bytes, bar, (const char*)src});
}
static void bulk_copy(unsigned dst, const void* src, unsigned bytes, unsigned bar, unsigned long long = 0) {
  bulk_copy_to(me->block, dst, src, bytes, bar);
}
template <int THREADS> static void some_sync() { meet(groups[me->block * BARRIERS + 1], THREADS); }
static void group_sync(int id) { meet(groups[me->block * BARRIERS + id], 128); }

// Small copies of a thread land together, some time after it has asked for the arrival.
static void copy_16(unsigned dst, const void* src, bool there) {
  if (dst % 16 || (uintptr_t)src % 16) { fprintf(stderr, "copy to %u\n", dst); abort(); }
  me->asked.push_back({me->block, dst, there ? 16u : 0u, 0, (const char*)src});
}
static void copy_16_of_256(unsigned dst, const void* src) { copy_16(dst, src, true); }
static void copy_16_of_128(unsigned dst, const void* src) { copy_16(dst, src, true); }
static void arrive_with_copies(unsigned bar) {
  copies.push_back({me->block, 0, 0, bar, nullptr, std::move(me->asked)});
  me->asked.clear();
}
static void copy_4(unsigned dst, const void* src) {
  if (dst % 4 || (uintptr_t)src % 4) { fprintf(stderr, "copy of 4 bytes to %u\n", dst); abort(); }
  me->asked.push_back({me->block, dst, 4, 0, (const char*)src});
}
static void copies_commit() {
  me->groups.push_back({me->block, 0, 0, 0, nullptr, std::move(me->asked)});
  me->asked.clear();
}
template <int LEFT> static void copies_wait() {  // as late as may be
  while (me->groups.size() > LEFT) {
    for (const Copy& piece : me->groups[0].pieces) memcpy(smem + piece.dst, piece.src, piece.bytes);
    me->groups.erase(me->groups.begin());
  }
}
static unsigned pack_half(float lo, float hi) {
  const _Float16 pair[2] = {(_Float16)lo, (_Float16)hi};
  unsigned bits;
  memcpy(&bits, pair, 4);
  return bits;
}
static unsigned minus_half(unsigned a, unsigned b) {
  return pack_half(half_to_float((unsigned short)a) - half_to_float((unsigned short)b), half_to_float(a >> 16) - half_to_float(b >> 16));
}
static unsigned minus_pair(unsigned a, unsigned b) {
  return pack(to_float(a) - to_float(b), to_float(a >> 16) - to_float(b >> 16));
}
static void show_to_copies() {}
template <int LIMIT> static void more_registers() {}
template <int LIMIT> static void fewer_registers() {}
static bool last_of(unsigned* counter, unsigned blocks) {
  if (++*counter < blocks) return false;
  *counter = 0;
  return true;
}
static void put(unsigned long long* p, unsigned data, unsigned tag) { *p = (unsigned long long)tag << 32 | data; }
static unsigned long long peek(const unsigned long long* p) { return *p; }
static void peek2(const unsigned long long* p, unsigned long long& a, unsigned long long& b) { a = p[0]; b = p[1]; }
static void put_bare(unsigned* p, unsigned data) {
  if (*p) { fprintf(stderr, "block %d puts where something lies\n", me->block); abort(); }
  *p = ~data;
}
static uint2 peek_bare(const unsigned* p) { return {p[0], p[1]}; }
static uint4 peek4_bare(const unsigned* p) { return {p[0], p[1], p[2], p[3]}; }
static void forget_bare(unsigned* p) { p[0] = p[1] = 0; }
static void show_forgotten() {}
static void put_wide(unsigned long long* p, unsigned first, unsigned second, unsigned more, unsigned tag) {
  p[0] = (unsigned long long)second << 32 | first, p[1] = (unsigned long long)tag << 32 | more;
}
static void peek_wide(const unsigned long long* p, unsigned long long& data, unsigned long long& rest) { data = p[0]; rest = p[1]; }
static void patience(unsigned& spins) {
  pause_fiber();
  if (++spins > 200000) { fprintf(stderr, "block %d thread %d waits for ever\n", me->block, me->thread); abort(); }
}
// Words between GPUs, which are processes: the other one may be slow, or gone.
static void put_far(unsigned long long* p, unsigned data, unsigned tag) {
  *(volatile unsigned long long*)p = (unsigned long long)tag << 32 | data;
}
static void put2_far(unsigned long long* p, float a, float b, unsigned tag) {
  put_far(p, __float_as_uint(a), tag);
  put_far(p + 1, __float_as_uint(b), tag);
}
static unsigned long long peek_far(const unsigned long long* p) { return *(volatile const unsigned long long*)p; }
static void peek2_far(const unsigned long long* p, unsigned long long& a, unsigned long long& b) { a = peek_far(p), b = peek_far(p + 1); }
static uint4 load_far(const uint4* p) { return *p; }
static void put2_bare_far(unsigned* p, unsigned a, unsigned b) {
  if (p[0] || p[1]) { fprintf(stderr, "block %d puts where something lies\n", me->block); abort(); }
  ((volatile unsigned*)p)[0] = ~a, ((volatile unsigned*)p)[1] = ~b;
}
static uint4 peek4_bare_far(const unsigned* at) {
  const volatile unsigned* p = at;
  return {p[0], p[1], p[2], p[3]};
}
static unsigned load_far(const unsigned* p) { return *(const volatile unsigned*)p; }
static void store_far(unsigned* p, unsigned v) { *(volatile unsigned*)p = v; }
static void show_to_all() { __sync_synchronize(); }
static unsigned long long nanoseconds() {  // as many as it was asked
  static unsigned long long now = 0;
  return ++now;
}
static void rest() { pause_fiber(); }
static void patience_far(unsigned& spins) {
  static const double most = getenv("FAR_SECONDS") ? atof(getenv("FAR_SECONDS")) : 40;
  static const clock_t begun = clock();  // its own time: the other one has as much, however busy the machine is
  pause_fiber();
  if (++spins % 16 == 0) sched_yield();
  if (double(clock() - begun) / CLOCKS_PER_SEC > most) {
    fprintf(stderr, "block %d thread %d waits for another GPU for ever\n", me->block, me->thread);
    abort();
  }
}
static unsigned long long read_once_policy() { return 0; }
static void show_barriers() {}

#pragma GCC push_options
#pragma GCC optimize("O2")
static Meeting& operands_of_all(unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  Meeting& m = my_warp();
  const unsigned mine[6] = {a0, a1, a2, a3, b0, b1};
  memcpy(m.u[me->thread % 32], mine, sizeof mine);
  meet(m, 32);
  return m;
}
template <bool HALF> static void mma_of(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  const auto value = [](unsigned bits) { return HALF ? half_to_float((unsigned short)bits) : to_float(bits); };
  Meeting& m = operands_of_all(a0, a1, a2, a3, b0, b1);
  const int lane = me->thread % 32, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; i++) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    float sum = c[i];
    for (int k = 0; k < 16; k++) {
      const int from = k % 8 / 2, upper = k / 8, shift = k % 2 * 16;
      const unsigned a = m.u[row % 8 * 4 + from][upper * 2 + row / 8] >> shift & 0xffff;
      const unsigned b = m.u[column * 4 + from][4 + upper] >> shift & 0xffff;
      sum += value(a) * value(b);
    }
    c[i] = sum;
  }
  meet(m, 32);
}
static void mma(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  mma_of<FP16>(c, a0, a1, a2, a3, b0, b1);
}
static void mma_half(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  mma_of<true>(c, a0, a1, a2, a3, b0, b1);
}

template <bool SIGNED> static void mma_bytes(int (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  Meeting& m = operands_of_all(a0, a1, a2, a3, b0, b1);
  const int lane = me->thread % 32, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; i++) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    for (int k = 0; k < 32; k++) {
      const int from = k % 16 / 4, upper = k / 16, shift = k % 4 * 8;
      const unsigned a = m.u[row % 8 * 4 + from][upper * 2 + row / 8] >> shift & 0xff;
      const unsigned b = m.u[column * 4 + from][4 + upper] >> shift & 0xff;
      c[i] += (SIGNED ? (int)(signed char)a : (int)a) * (int)(signed char)b;
    }
  }
  meet(m, 32);
}

#pragma GCC pop_options

static void load_columns(unsigned (&v)[4], const void* row) {
  if (saddr(row) % 16) { fprintf(stderr, "a row at %u\n", saddr(row)); abort(); }
  Meeting& m = my_warp();
  m.w[me->thread % 32] = (unsigned long long)row;
  meet(m, 32);
  const int g = me->thread % 32 / 4, t = me->thread % 4;
  for (int i = 0; i < 4; i++) {
    const auto at = [&](int r) { return (unsigned)((const unsigned short*)m.w[i * 8 + r])[g]; };
    v[i] = at(2 * t) | at(2 * t + 1) << 16;
  }
  meet(m, 32);
}

// A warpgroup's products: `tile_rows` and `tile_columns` are addresses, pieces of 16 bytes exchanged by their row.
static float tile_element(unsigned at) { return to_float(*(unsigned short*)(smem + (at ^ (at >> 7 & 7) << 4))); }
static unsigned tile_rows(unsigned at) { return at; }
static unsigned tile_columns(unsigned at) { return at; }
static void wgmma_begin() {}
static void wgmma_commit() {}
template <int LEFT, class Sums> static void wgmma_wait(Sums&) {}
static void wgmma_wait_for_others() {}
static int sum_row(int i) { return me->thread / 32 % 4 * 16 + me->thread % 32 / 4 + (i & 2) * 4; }
static int sum_column(int i) { return i / 4 * 8 + me->thread % 4 * 2 + i % 2; }
template <int COUNT> static void wgmma_rows(float (&d)[COUNT], unsigned a, unsigned b, bool add) {
  for (int i = 0; i < COUNT; i++) {
    float sum = add ? d[i] : 0.0f;
    for (int k = 0; k < 16; k++) sum += tile_element(a + sum_row(i) * 128 + k * 2) * tile_element(b + sum_column(i) * 128 + k * 2);
    d[i] = sum;
  }
  __syncwarp();
}
static void wgmma_64(float (&d)[32], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b) {
  Meeting& m = operands_of_all(a0, a1, a2, a3, 0, 0);
  for (int i = 0; i < 32; i++)
    for (int k = 0; k < 16; k++) {
      const unsigned a = m.u[me->thread % 32 / 4 * 4 + k % 8 / 2][k / 8 * 2 + (i >> 1 & 1)] >> k % 2 * 16 & 0xffff;
      d[i] += to_float(a) * tile_element(b + k * 128 + sum_column(i) * 2);
    }
  meet(m, 32);
}

// Rows of two pieces, so many bytes apart: eight rows lie behind one another.
static unsigned long long pieces_of(unsigned at, unsigned apart) { return (unsigned long long)apart << 32 | at; }
template <int COUNT> static void wgmma_by_rows(float (&d)[COUNT], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned long long b) {
  Meeting& m = operands_of_all(a0, a1, a2, a3, 0, 0);
  for (int i = 0; i < COUNT; i++)
    for (int k = 0; k < 16; k++) {
      const unsigned a = m.u[me->thread % 32 / 4 * 4 + k % 8 / 2][k / 8 * 2 + (i >> 1 & 1)] >> k % 2 * 16 & 0xffff;
      const char* piece = smem + (unsigned)b + k / 8 * (b >> 32) + sum_column(i) * 16;
      d[i] += to_float(a) * to_float(((const unsigned short*)piece)[k % 8]);
    }
  meet(m, 32);
}

static void land(size_t i) {
  const Copy c = copies[i];
  copies[i] = copies.back();
  copies.pop_back();
  char* to = shared_memory[c.block].data();
  for (const Copy& piece : c.pieces) {
    memset(to + piece.dst, 0, 16);
    memcpy(to + piece.dst, piece.src, piece.bytes);
  }
  if (c.bytes) memcpy(to + c.dst, c.src, c.bytes);
  Barrier& b = barriers[c.block][c.bar / 8];
  b.bytes -= c.bytes;
  if (!c.bytes) b.pending--;
  settle(b);
}

template <class Kernel> static void run_kernel(int blocks, int threads, int shared_bytes, Kernel kernel) {
  static Kernel* body;
  body = &kernel;
  warps_per_block = threads / 32;
  shared_memory.assign(blocks, std::vector<char>(shared_bytes, (char)0xff));  // 0xffff is not a number
  barriers.assign(blocks, std::vector<Barrier>(shared_bytes / 8));
  warps.assign(blocks * warps_per_block, Meeting());
  groups.assign(blocks * BARRIERS, Meeting());
  clusters.assign(blocks, Meeting());
  copies.clear();
  fibers.clear();
  fibers.resize(blocks * threads);
  for (int i = 0; i < blocks * threads; i++) {
    Fiber& f = fibers[i];
    f.thread = i % threads, f.block = i / threads, f.begun = f.done = false;
    f.stack.resize(32768);
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.data();
    f.context.uc_stack.ss_size = f.stack.size();
    makecontext(&f.context, (void (*)())(+[] { (*body)(); me->done = true; jump(scheduler); }), 0);
  }
  size_t left = fibers.size();
  while (left) {
    left = 0;
    for (size_t i = 0; i < fibers.size(); i++) {
      Fiber& f = fibers[last_first ? fibers.size() - 1 - i : i];
      if (f.done) continue;
      resume(f);
      left += !f.done;
    }
    for (size_t n = copies.size() / 2 + 1; n && !copies.empty(); n--) land((size_t)rand() % copies.size());
  }
}

// Each GPU is a process of its own: it shares nothing with the others but the file. One that fails ends them all.
template <class Run> static int run_on_gpus(int gpus, int each, void** arrays, Run run) {
  std::vector<pid_t> running(gpus);
  for (int gpu = 0; gpu < gpus; gpu++)
    if (!(running[gpu] = fork())) {
      run(arrays + gpu * each);
      _exit(0);
    }
  int failed = 0, status;
  for (int ended = 0; ended < gpus; ended++) {
    waitpid(-1, &status, 0);
    if (!status || failed) continue;
    failed = status;
    for (pid_t other : running) kill(other, SIGKILL);
  }
  if (failed && WIFSIGNALED(failed)) raise(WTERMSIG(failed));
  return failed != 0;
}

// The arguments: a file with the kernel's memory, a seed, and where in the file each array begins (-1: nowhere), those of
// one GPU behind those of another. The file lies at an address that is known beforehand.
template <class Run> static int run_on_file(int gpus, int count, char** arguments, Run run) {
  const int file = open(arguments[1], O_RDWR);
  struct stat status;
  fstat(file, &status);
  char* memory = (char*)mmap((void*)MEMORY, status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, file, 0);
  if (memory != (char*)MEMORY) { perror(arguments[1]); return 1; }
  srand(atoi(arguments[2]));
  last_first = atoi(arguments[2]) % 2 == 0;
  std::vector<void*> arrays;
  for (int i = 3; i < count; i++) arrays.push_back(atol(arguments[i]) < 0 ? nullptr : memory + atol(arguments[i]));
  if (gpus > 1) return run_on_gpus(gpus, (int)arrays.size() / gpus, arrays.data(), run);
  run(arrays.data());
  return 0;
}
