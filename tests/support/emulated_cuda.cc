// Runs a CUDA kernel on a CPU: every thread is a fiber; what threads do together waits for all of them.
//
// Copies of the copy engine land late and out of order, and every second run takes the last threads first. Nothing is said
// of the memory model or of speed. Compiled once, with optimisation: kernels are linked with it.
#include "emulated_cuda.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

struct Meeting {  // words are in one of two places by turns: who comes first to the next meeting changes none of this one
  int arrived = 0; unsigned turn = 0; unsigned long long words[2][32]; unsigned operands[32][6];
  union { float sums[32][4]; int counts[32][4]; float* sums_of[32]; };
};
struct Barrier { int count, pending; long bytes; unsigned turn; };
struct Copy { int block; unsigned dst, bytes, bar; const char* src; std::vector<Copy> pieces; };
struct Fiber : Thread {
  void* place[5]; bool begun;
  std::vector<Copy> asked, groups;  // small copies: not yet in a group, in groups that nobody has waited for
};
struct Wait { const unsigned* turn; unsigned mask, value; };  // as long as these bits of a turn are these

Thread* me;
static std::vector<Fiber> fibers;
static std::vector<Wait> waits;  // of each fiber; apart from them: all are looked at in each round
static void* scheduler[5];
static std::vector<char*> shared_memory;
static std::vector<Barrier*> barriers;
static std::vector<Meeting> warps, groups, clusters;
static std::vector<Copy> copies;
static void (*body)();
static int warps_per_block;
static bool last_first;  // in which order threads run from one meeting to the next: a missing barrier shows in one of them
static const unsigned never = 0, always = 1;
constexpr int BARRIERS = 8;  // named barriers of a block
constexpr int STACK = 32768;

void fail(const char* what, ...) {
  va_list values;
  va_start(values, what);
  vfprintf(stderr, what, values);
  fputc('\n', stderr);
  abort();
}

// ---- fibers ----------------------------------------------------------------------------------------------------------

static Fiber& my() { return *(Fiber*)me; }
// A context only begins a fiber: to switch with one takes two system calls, a jump takes none. The compiler's own jumps
// leave out what the C library's do for signals and threads; they want a function that jumps apart from the one that lands.
__attribute__((noipa)) static void jump(void** place) { __builtin_longjmp(place, 1); }
__attribute__((noipa)) void pause_fiber() {
  if (!__builtin_setjmp(my().place)) jump(scheduler);
}
static void wait_while(const unsigned& turn, unsigned mask, unsigned value) {
  Wait& mine = waits[&my() - fibers.data()];
  mine = {&turn, mask, value};
  pause_fiber();
  mine = {&always, ~0u, 0};
}
static void whole_thread() {
  body();
  waits[&my() - fibers.data()] = {&never, ~0u, 0};
  jump(scheduler);
}
static void begin(Fiber& f, char* stack) {
  static ucontext_t context;
  static const int known = getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = STACK;
  makecontext(&context, whole_thread, 0);
  f.begun = true;
  setcontext(&context);
}
__attribute__((noipa)) static void resume(Fiber& f, char* stack) {
  me = &f;
  if (__builtin_setjmp(scheduler)) return;
  if (f.begun) jump(f.place);
  begin(f, stack);
}

// ---- what threads do together ----------------------------------------------------------------------------------------

template <class Work> static void meet_for(Meeting& m, int people, Work work) {  // the last one to come does it
  if (++m.arrived == people) { work(); m.arrived = 0; m.turn++; }
  else wait_while(m.turn, ~0u, m.turn);
}
void meet(Meeting& m, int people) { meet_for(m, people, [] {}); }
static unsigned long long* words_of_all(unsigned long long mine) {
  Meeting& m = *me->warp;
  unsigned long long* const words = m.words[m.turn % 2];
  words[me->thread % 32] = mine;
  meet(m, 32);
  return words;
}
void __syncthreads() { meet(groups[me->block * BARRIERS], warps_per_block * 32); }
void some_sync_of(int threads) { meet(groups[me->block * BARRIERS + 1], threads); }
void group_sync(int id) { meet(groups[me->block * BARRIERS + id], 128); }
void cluster_sync(int blocks) { meet(clusters[me->block / blocks], blocks * warps_per_block * 32); }
char* shared_memory_of(int block) { return shared_memory[block]; }
unsigned long long word_of(unsigned long long mine, int from) { return words_of_all(mine)[from]; }
unsigned __reduce_max_sync(unsigned, unsigned v) {
  const unsigned long long* const words = words_of_all(v);
  return (unsigned)*std::max_element(words, words + 32);
}
unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t both = (uint64_t)b << 32 | a;
  unsigned r = 0;
  for (int i = 0; i < 4; i++) r |= (unsigned)(both >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  return r;
}
void patience(unsigned& spins) {
  pause_fiber();
  if (++spins > 200000) fail("block %d thread %d waits for ever", me->block, me->thread);
}
unsigned long long nanoseconds() {
  static unsigned long long now = 0;
  return ++now;
}
void patience_far(unsigned& spins) {
  static const double most = getenv("FAR_SECONDS") ? atof(getenv("FAR_SECONDS")) : 40;
  static const clock_t begun = clock();  // its own time: the other one has as much, however busy the machine is
  pause_fiber();
  if (++spins % 16 == 0) sched_yield();
  if (double(clock() - begun) / CLOCKS_PER_SEC > most)
    fail("block %d thread %d waits for another GPU for ever", me->block, me->thread);
}

// ---- copies and their barriers ---------------------------------------------------------------------------------------

static Barrier& barrier(unsigned at) { return barriers[me->block][at / 8]; }
static void settle(Barrier& b) {
  if (b.pending == 0 && b.bytes == 0) { b.turn++; b.pending = b.count; }
}
void mbar_init(unsigned at, unsigned count) { barrier(at).count = barrier(at).pending = (int)count; }
void mbar_arrive(unsigned at) {
  Barrier& b = barrier(at);
  if (b.pending <= 0) fail("an arrival too many");
  b.pending--;
  settle(b);
}
void mbar_expect(unsigned at, unsigned bytes) { barrier(at).bytes += bytes; mbar_arrive(at); }
void mbar_wait(unsigned at, unsigned parity) {
  const unsigned& turn = barrier(at).turn;
  while ((turn & 1) == parity) wait_while(turn, 1, parity);
}
void bulk_copy(unsigned dst, const void* src, unsigned bytes, unsigned bar, unsigned long long) {
  if (dst % 16 || (uintptr_t)src % 16 || bytes % 16 || !bytes) fail("copy of %u bytes to %u", bytes, dst);
  copies.push_back({me->block, dst, bytes, bar, (const char*)src});
}

// Small copies of a thread land together, some time after it has asked for the arrival.
void copy_16(unsigned dst, const void* src, bool there) {
  if (dst % 16 || (uintptr_t)src % 16) fail("copy to %u", dst);
  my().asked.push_back({me->block, dst, there ? 16u : 0u, 0, (const char*)src});
}
void arrive_with_copies(unsigned bar) {
  copies.push_back({me->block, 0, 0, bar, nullptr, std::move(my().asked)});
  my().asked.clear();
}
void copy_4(unsigned dst, const void* src) {
  if (dst % 4 || (uintptr_t)src % 4) fail("copy of 4 bytes to %u", dst);
  my().asked.push_back({me->block, dst, 4, 0, (const char*)src});
}
void copies_commit() {
  my().groups.push_back({me->block, 0, 0, 0, nullptr, std::move(my().asked)});
  my().asked.clear();
}
void copies_wait_of(unsigned left) {  // as late as may be
  std::vector<Copy>& groups = my().groups;
  while (groups.size() > left) {
    for (const Copy& piece : groups[0].pieces) memcpy(smem + piece.dst, piece.src, piece.bytes);
    groups.erase(groups.begin());
  }
}
static void land(size_t i) {
  const Copy c = std::move(copies[i]);
  if (i + 1 < copies.size()) copies[i] = std::move(copies.back());
  copies.pop_back();
  char* to = shared_memory[c.block];
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

// ---- products --------------------------------------------------------------------------------------------------------

// The last of a warp's threads multiplies for all: 16 rows, which lie in the first four operands of each thread, EACH numbers
// an operand, times eight columns, which lie in the others. Sums grow in the order of the contracted numbers.
template <int EACH, class Number> struct Tiles {
  Number a[16][8 * EACH], b[8 * EACH][8], c[16][8];
  void multiply() {
    for (int k = 0; k < 8 * EACH; k++)
      for (int row = 0; row < 16; row++)
        for (int column = 0; column < 8; column++) c[row][column] += a[row][k] * b[k][column];
  }
};
template <int EACH, class Number, class A, class B>
static void multiply(const unsigned (&operands)[32][6], Number (&sums)[32][4], A a, B b) {
  Tiles<EACH, Number> tiles;
  for (int lane = 0; lane < 32; lane++) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++) tiles.c[g + i / 2 * 8][2 * t + i % 2] = sums[lane][i];
    for (int k = EACH * t, shift = 0; shift < 32; k++, shift += 32 / EACH) {
      for (int j = 0; j < 4; j++) tiles.a[g + j % 2 * 8][k + j / 2 * 4 * EACH] = a(operands[lane][j] >> shift);
      for (int j = 0; j < 2; j++) tiles.b[k + j * 4 * EACH][g] = b(operands[lane][4 + j] >> shift);
    }
  }
  tiles.multiply();
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 4; i++) sums[lane][i] = tiles.c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}
template <class Number, class Work>
static void multiply_together(Number (&c)[4], Number (&sums)[32][4], const unsigned (&operands)[6], Work work) {
  Meeting& m = *me->warp;
  const int lane = me->thread % 32;
  memcpy(m.operands[lane], operands, sizeof operands);
  memcpy(sums[lane], c, sizeof c);
  meet_for(m, 32, work);
  memcpy(c, sums[lane], sizeof c);
}
static float from_half(unsigned bits) { return half_to_float((unsigned short)bits); }
static float from_bfloat16(unsigned bits) { return __uint_as_float(bits << 16); }
static int from_signed(unsigned bits) { return (signed char)bits; }
static int from_unsigned(unsigned bits) { return (unsigned char)bits; }
void mma_of(bool half, float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  Meeting& m = *me->warp;
  multiply_together(c, m.sums, {a0, a1, a2, a3, b0, b1}, [&] {
    half ? multiply<2>(m.operands, m.sums, from_half, from_half) : multiply<2>(m.operands, m.sums, from_bfloat16, from_bfloat16);
  });
}
void mma_bytes_of(bool is_signed, int (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  Meeting& m = *me->warp;
  multiply_together(c, m.counts, {a0, a1, a2, a3, b0, b1}, [&] {
    is_signed ? multiply<4>(m.operands, m.counts, from_signed, from_signed) : multiply<4>(m.operands, m.counts, from_unsigned, from_signed);
  });
}
void load_columns(unsigned (&v)[4], const void* row) {
  if (saddr(row) % 16) fail("a row at %u", saddr(row));
  const unsigned long long* const rows = words_of_all((unsigned long long)row);
  const int g = me->thread % 32 / 4, t = me->thread % 4;
  for (int i = 0; i < 4; i++) {
    const auto at = [&](int r) { return (unsigned)((const unsigned short*)rows[i * 8 + r])[g]; };
    v[i] = at(2 * t) | at(2 * t + 1) << 16;
  }
  meet(*me->warp, 32);  // nobody changes them before all have read
}

// A warp's part of a warpgroup's product: of 16 rows, in shared memory or in the first four operands; the others say where
// the rest lies.
using Operands = const unsigned[6];
template <class A, class B> static void multiply_rows(float* const (&sums)[32], int count, bool add, A a, B b) {
  static float c[16][256];
  const int columns = count * 2;
  const auto at = [](int lane, int i) -> float& { return c[lane / 4 + (i & 2) * 4][i / 4 * 8 + lane % 4 * 2 + i % 2]; };
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < count; i++) at(lane, i) = add ? sums[lane][i] : 0.0f;
  for (int k = 0; k < 16; k++) {
    float row_of_b[256];
    for (int column = 0; column < columns; column++) row_of_b[column] = b(k, column);
    for (int row = 0; row < 16; row++) {
      const float factor = a(row, k);
      for (int column = 0; column < columns; column++) c[row][column] += factor * row_of_b[column];
    }
  }
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < count; i++) sums[lane][i] = at(lane, i);
}
template <class A, class B> static void multiply_rows_together(float* d, int count, bool add, Operands& operands, A a, B b) {
  Meeting& m = *me->warp;
  const int lane = me->thread % 32;
  memcpy(m.operands[lane], operands, sizeof operands);
  m.sums_of[lane] = d;
  meet_for(m, 32, [&] {
    for (const unsigned (&of)[6] : m.operands)
      if (of[4] != operands[4] || of[5] != operands[5]) fail("block %d: a warp's threads multiply other columns each", me->block);
    multiply_rows(m.sums_of, count, add, a, b);
  });
}
static float of_run_dtype(bool half, unsigned bits) { return half ? from_half(bits) : from_bfloat16(bits); }
static float tile_element(bool half, unsigned at) {
  return of_run_dtype(half, *(unsigned short*)(smem + (at ^ (at >> 7 & 7) << 4)));
}
static float element_of_all(bool half, int row, int k) {  // of the rows in registers
  return of_run_dtype(half, me->warp->operands[row % 8 * 4 + k % 8 / 2][k / 8 * 2 + row / 8] >> k % 2 * 16);
}
void wgmma_rows_of(bool half, float* d, int count, unsigned a, unsigned b, bool add) {
  const unsigned first = a + me->thread / 32 % 4 * 16 * 128;
  multiply_rows_together(
      d, count, add, {0, 0, 0, 0, first, b}, [&](int row, int k) { return tile_element(half, first + row * 128 + k * 2); },
      [&](int k, int column) { return tile_element(half, b + column * 128 + k * 2); });
}
void wgmma_64_of(bool half, float (&d)[32], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b) {
  multiply_rows_together(
      d, 32, true, {a0, a1, a2, a3, b, 0}, [&](int row, int k) { return element_of_all(half, row, k); },
      [&](int k, int column) { return tile_element(half, b + k * 128 + column * 2); });
}
void wgmma_by_rows_of(bool half, float* d, int count, const unsigned (&a)[4], unsigned long long b) {
  const unsigned at = (unsigned)b, apart = (unsigned)(b >> 32);
  multiply_rows_together(
      d, count, true, {a[0], a[1], a[2], a[3], at, apart}, [&](int row, int k) { return element_of_all(half, row, k); },
      [&](int k, int column) {
        return of_run_dtype(half, ((const unsigned short*)(smem + at + k / 8 * apart + column * 16))[k % 8]);
      });
}

// ---- a launch --------------------------------------------------------------------------------------------------------

static char* zeros(size_t bytes) {  // of which only what is used takes memory, and time
  void* const at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) fail("no room for %zu bytes", bytes);
  return (char*)at;
}
static void make_blocks(int blocks, int shared_bytes) {
  for (int block = 0; block < blocks; block++) {
    shared_memory.push_back(zeros(shared_bytes));
    memset(shared_memory.back(), 0xff, shared_bytes);  // 0xffff is not a number
    barriers.push_back((Barrier*)zeros((shared_bytes / 8 + 1) * sizeof(Barrier)));
  }
  warps.resize(blocks * warps_per_block);
  groups.resize(blocks * BARRIERS);
  clusters.resize(blocks);
}
static void make_fibers(int blocks, int threads) {
  fibers.resize(blocks * threads);
  waits.assign(blocks * threads, {&always, ~0u, 0});
  for (int i = 0; i < blocks * threads; i++) {
    Fiber& f = fibers[i];
    f.thread = i % threads, f.block = i / threads, f.begun = false;
    f.shared = shared_memory[f.block], f.warp = &warps[f.block * warps_per_block + f.thread / 32];
  }
}
static bool resume_all(char* stacks) {
  bool left = false, ran = false;
  for (size_t n = 0; n < fibers.size(); n++) {
    const size_t i = last_first ? fibers.size() - 1 - n : n;
    const Wait& w = waits[i];
    if ((*w.turn & w.mask) != w.value) {
      resume(fibers[i], stacks + i * STACK);
      ran = true;
    }
    left |= w.turn != &never;
  }
  if (left && !ran && copies.empty()) fail("all threads wait for each other");
  return left;
}
void run_kernel(int blocks, int threads, int shared_bytes, void (*kernel)()) {
  body = kernel;
  warps_per_block = threads / 32;
  make_blocks(blocks, shared_bytes);
  make_fibers(blocks, threads);
  char* const stacks = zeros(fibers.size() * STACK);
  while (resume_all(stacks))
    for (size_t n = copies.size() / 2 + 1; n && !copies.empty(); n--) land((size_t)rand() % copies.size());
}

void launch(int which, void** arrays);  // the kernel's own

// Each GPU is a process of its own: it shares nothing with the others but the file. One that fails ends them all.
static int run_on_gpus(int gpus, int which, int each, void** arrays) {
  std::vector<pid_t> running(gpus);
  for (int gpu = 0; gpu < gpus; gpu++)
    if (!(running[gpu] = fork())) {
      launch(which, arrays + gpu * each);
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

// The arguments: which kernel, on how many GPUs, a file with its memory, at which address that lies, a seed, and where in
// the file each array begins (-1: nowhere), those of one GPU behind those of another.
int main(int count, char** arguments) {
  const int which = atoi(arguments[1]), gpus = atoi(arguments[2]), file = open(arguments[3], O_RDWR);
  char* const address = (char*)strtoull(arguments[4], nullptr, 0);
  struct stat status;
  fstat(file, &status);
  char* memory = (char*)mmap(address, status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, file, 0);
  if (memory != address) { perror(arguments[3]); return 1; }
  srand(atoi(arguments[5]));
  last_first = atoi(arguments[5]) % 2 == 0;
  std::vector<void*> arrays;
  for (int i = 6; i < count; i++) arrays.push_back(atol(arguments[i]) < 0 ? nullptr : memory + atol(arguments[i]));
  if (gpus > 1) return run_on_gpus(gpus, which, (int)arrays.size() / gpus, arrays.data());
  launch(which, arrays.data());
  fflush(nullptr);
  _exit(0);  // without freeing all of it
}
