// What kernels that add up a batch's numbers need of the GPUs' mailboxes (`peers.py`).
//
// The host puts before this text the places of a mailbox, then primitives.cu.

__device__ u32 g_count;

// Finds all of them, asked for together with the rank; gives this GPU's own.
__device__ __forceinline__ u64* mailboxes(u64* (&box)[GPUS], const u64* peers, int self) {
#pragma unroll
  for (int p = 0; p < GPUS; p++) box[p] = (u64*)peers[p];
  u64* own = box[0];
#pragma unroll
  for (int p = 1; p < GPUS; p++) own = p == self ? box[p] : own;
  return own;
}

// The tag of this turn's words, and where they lie.
__device__ __forceinline__ u32 turn_of(const u64* own) { return *(const volatile u32*)(own + BOX_TURNS) + 1; }
__device__ __forceinline__ int half_of(u32 tag) { return BOX_SUMS + (tag & 1) * GPUS * MAX_SUMS; }
// Where numbers of a GPU lie that come without tags (`take_norm.cu`), two of 16 bits in each.
__device__ __forceinline__ u32* bare_of(u64* box, u32 tag, int gpu) {
  return (u32*)(box + BOX_BARE) + (size_t)((tag & 1) * GPUS + gpu) * (MAX_SUMS / 2);
}
// The last of so many blocks counts the turn: all of them have read its number.
__device__ __forceinline__ void end_turn(u64* own, u32 tag, u32 blocks) {
  if (threadIdx.x == 0 && last_of(&g_count, blocks)) *(volatile u32*)(own + BOX_TURNS) = tag;
}
