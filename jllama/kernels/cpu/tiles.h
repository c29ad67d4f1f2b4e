// Tile registers of an x86 processor (AMX): products of 16 rows of 32 bfloat16 with 32 rows of 16.
//
// A register holds 16 rows of 64 bytes. With JLLAMA_PLAIN_TILES they are plain memory, multiplied in the same
// order: for tests on processors without them.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(JLLAMA_PLAIN_TILES)
#define JLLAMA_TILE_REGISTERS 0
constexpr bool TILES = true;
#elif defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define JLLAMA_TILE_REGISTERS 1
constexpr bool TILES = true;
#else
#define JLLAMA_TILE_REGISTERS 0
constexpr bool TILES = false;
#endif

constexpr int TILE_BYTES = 1024, TILE_COLUMNS = 32;

#if !JLLAMA_TILE_REGISTERS
namespace plain {
inline thread_local char tiles[8][TILE_BYTES];
inline void widen(const char* p, float (&even)[16], float (&odd)[16]) {
  uint32_t pairs[16];
  memcpy(pairs, p, 64);
  for (int i = 0; i < 16; i++) {
    const uint32_t low = pairs[i] << 16, high = pairs[i] & 0xffff0000u;
    memcpy(even + i, &low, 4), memcpy(odd + i, &high, 4);
  }
}
inline void dot(char* sums, const char* a, const char* b) {
  float b_even[16][16], b_odd[16][16];
  for (int k = 0; k < 16; k++) widen(b + k * 64, b_even[k], b_odd[k]);
  for (int m = 0; m < 16; m++) {
    float a_even[16], a_odd[16], even[16] = {}, odd[16] = {}, sum[16];
    widen(a + m * 64, a_even, a_odd);
    for (int k = 0; k < 16; k++)
      for (int n = 0; n < 16; n++) even[n] += a_even[k] * b_even[k][n], odd[n] += a_odd[k] * b_odd[k][n];
    memcpy(sum, sums + m * 64, 64);
    for (int n = 0; n < 16; n++) sum[n] += even[n] + odd[n];
    memcpy(sums + m * 64, sum, 64);
  }
}
}  // namespace plain
inline bool tiles_allowed() { return TILES; }
struct UseTiles {
  UseTiles() {}
};
template <int T>
inline void tile_zero() { memset(plain::tiles[T], 0, TILE_BYTES); }
template <int T>
inline void tile_load(const void* p) { memcpy(plain::tiles[T], p, TILE_BYTES); }
template <int T>
inline void tile_store(void* p) { memcpy(p, plain::tiles[T], TILE_BYTES); }
template <int SUMS, int A, int B>
inline void tile_dot() { plain::dot(plain::tiles[SUMS], plain::tiles[A], plain::tiles[B]); }
#else
// Whether the system lets this process have tile registers: it must be asked once.
inline bool tiles_allowed() {
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool allowed = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return allowed;
}
// While it lives this thread's registers are set up: eight of 16 rows of 64 bytes.
struct UseTiles {
  struct alignas(64) Shape {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  };
  UseTiles() {
    Shape shape;
    for (int i = 0; i < 8; i++) shape.row_bytes[i] = 64, shape.rows[i] = 16;
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  ~UseTiles() { asm volatile("tilerelease"); }
  UseTiles(const UseTiles&) = delete;
};
// The compilers' own functions want literal numbers of registers, which a template has not.
template <int T>
inline __attribute__((always_inline)) void tile_zero() { asm volatile("tilezero %%tmm%c0" ::"i"(T)); }
template <int T>
inline __attribute__((always_inline)) void tile_load(const void* p) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(int64_t(64)), "i"(T) : "memory");
}
template <int T>
inline __attribute__((always_inline)) void tile_store(void* p) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(int64_t(64)), "i"(T) : "memory");
}
template <int SUMS, int A, int B>
inline __attribute__((always_inline)) void tile_dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(A), "i"(B));
}
#endif
