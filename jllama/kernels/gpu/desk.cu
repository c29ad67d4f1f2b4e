// What a program and the host say to each other while it runs, by words in memory of the host that both reach
// (`desk.py`): which tokens came, and which may come next.
//
// The host puts before this text: ROWS, W (words of a mask), BLOCK_SIZE, PATIENCE (nanoseconds), the places of a desk in
// words of 4 bytes, then primitives.cu.

constexpr int AT_ONCE = 8;  // words that a thread asks for together: each comes over the bus

// Of each row three words, behind them their turn. Whoever takes the token from here runs later than this.
extern "C" __global__ void __launch_bounds__(BLOCK_SIZE, 1)
jllama_tell(const u64* desk, const u32* turn, const u32* told, const u32* token, u32* same) {
  u32* const at = (u32*)desk[0];
  for (int i = threadIdx.x; i < 3 * ROWS; i += BLOCK_SIZE) store_far(at + TOLD + i, told[i]);
  for (int i = threadIdx.x; i < ROWS; i += BLOCK_SIZE) same[i] = token[i];
  show_to_all();
  __syncthreads();
  if (threadIdx.x == 0) store_far(at + TOLD_TURN, turn[0]);
}

// The mask of this turn, a block a row, as soon as it is there. A host that does not come is waited for once in a burst:
// then any token may come, and the host finds the burst's last turn in its place of GIVEN_UP.
extern "C" __global__ void __launch_bounds__(BLOCK_SIZE, 1)
jllama_hear(const u64* desk, const u32* turn, const float* logits, u32* mask) {
  u32* const at = (u32*)desk[0];
  if (threadIdx.x == 0) {
    const u32 own = turn[0], last = turn[1];
    u32* const given_up = at + GIVEN_UP + last / 4 % LINE;
    bool there = (int)(load_far(at + READY) - own) >= 0;
    if (!there && load_far(given_up) != last) {
      const u64 begun = nanoseconds();
      while (!(there = (int)(load_far(at + READY) - own) >= 0) && nanoseconds() - begun < PATIENCE) rest();
      if (!there) store_far(given_up, last);
    }
    *(u32*)smem = there;
    show_to_all();
  }
  __syncthreads();
  const bool there = *(const u32*)smem;
  const u32* const from = (const u32*)desk[1] + blockIdx.x * W;
  u32* const to = mask + blockIdx.x * W;
#pragma unroll 1
  for (int first = threadIdx.x; first < W; first += AT_ONCE * BLOCK_SIZE) {
    u32 words[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++)
      if (first + i * BLOCK_SIZE < W) words[i] = there ? load_far(from + first + i * BLOCK_SIZE) : ~0u;
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++)
      if (first + i * BLOCK_SIZE < W) to[first + i * BLOCK_SIZE] = words[i];
  }
}
