// Adds up NUMBERS 16-bit numbers of each of two GPUs: each reads the other's where they lie, over NVLink.
//
// Block by block both tell each other where (`peers.py`), read, and wait until the other has read: what follows on
// either GPU may overwrite its numbers.
//
// The host puts before this text: NUMBERS (a multiple of 8), BLOCKS, BLOCK_SIZE, the places of a mailbox, then
// primitives.cu.

__device__ u32 g_count;
constexpr int AT_ONCE = 4;  // pieces of 16 bytes that a thread asks for together

extern "C" __global__ void __launch_bounds__(BLOCK_SIZE, 1)
jllama_pull(const u64* peers, const int* rank, const uint4* x, uint4* out) {
  const int self = *rank, step = BLOCKS * BLOCK_SIZE;
  u64* const own = (u64*)peers[self];
  const u32 tag = *(volatile u32*)(own + BOX_PULLS) + 1;
  const u64* from = own + BOX_PULL + blockIdx.x * 4;
  u64* to = (u64*)peers[1 - self] + BOX_PULL + blockIdx.x * 4;
  u64* theirs = (u64*)smem;
  if (threadIdx.x == 0) {
    show_to_all();
    put_far(to, (u32)(u64)x, tag);
    put_far(to + 1, (u32)((u64)x >> 32), tag);
    const u64 low = __float_as_uint(take_far(from, tag)), high = __float_as_uint(take_far(from + 1, tag));
    *theirs = high << 32 | low;
    show_to_all();
  }
  __syncthreads();
  if (threadIdx.x == 0 && last_of(&g_count, BLOCKS)) *(volatile u32*)(own + BOX_PULLS) = tag;  // all have read it
  const uint4* other = (const uint4*)*theirs;
#pragma unroll 1
  for (int first = blockIdx.x * BLOCK_SIZE + threadIdx.x; first < NUMBERS / 8; first += AT_ONCE * step) {
    uint4 a[AT_ONCE], b[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const int at = first + i * step;
      if (at >= NUMBERS / 8) break;
      b[i] = load_far(other + at);
      a[i] = x[at];
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const int at = first + i * step;
      if (at >= NUMBERS / 8) break;
      const u32 *p = &a[i].x, *q = &b[i].x;
      uint4 sum;
      u32* s = &sum.x;
#pragma unroll
      for (int j = 0; j < 4; j++) s[j] = pack(to_float(p[j]) + to_float(q[j]), high(p[j]) + high(q[j]));
      out[at] = sum;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    put_far(to + 2, 0, tag);
    take_far(from + 2, tag);
  }
}
