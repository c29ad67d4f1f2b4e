// Adds up NUMBERS float32 numbers of each of GPUS GPUs, in the order of the GPUs: all of them get the same bits.
//
// Each stores its own as tagged words into the mailboxes of all others (`peers.py`), then takes theirs from its own.
// Two halves are used in turn: who stores into one has seen words that every other GPU stored after it had read it.
//
// The host puts before this text: NUMBERS (even), BLOCKS, BLOCK_SIZE, EACH (pairs of numbers per thread), the places of a mailbox,
// what follows (BIAS, a row of D; RESIDUAL; RESIDUAL_SCALE; WIDE: float32), then primitives.cu and mailboxes.cu.

extern "C" __global__ void __launch_bounds__(BLOCK_SIZE, 1)
jllama_exchange(const u64* peers, const int* rank, const float* x, const u16* residual, const u16* bias, void* out) {
  const int self = *rank, step = BLOCKS * BLOCK_SIZE;
  u64* box[GPUS];
  u64* const own = mailboxes(box, peers, self);
  const u32 tag = turn_of(own);
  const int half = half_of(tag), first = blockIdx.x * BLOCK_SIZE + threadIdx.x;
  float2 mine[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int at = (first + i * step) * 2;
    if (at < NUMBERS) mine[i] = *(const float2*)(x + at);
  }
#pragma unroll
  for (int p = 0; p < GPUS; p++) {
    if (p == self) continue;
    u64* to = box[p] + half + self * MAX_SUMS;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int at = (first + i * step) * 2;
      if (at < NUMBERS) put2_far(to + at, mine[i].x, mine[i].y, tag);
    }
  }
  __syncthreads();
  end_turn(own, tag, BLOCKS);
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int at = (first + i * step) * 2;
    if (at >= NUMBERS) break;
    float a = 0, b = 0;
#pragma unroll
    for (int p = 0; p < GPUS; p++) {
      const float2 v = p == self ? mine[i] : take2_far(own + half + p * MAX_SUMS + at, tag);
      a += v.x, b += v.y;
    }
    if (BIAS) a += to_float(bias[at % D]), b += to_float(bias[at % D + 1]);
    if (RESIDUAL_SCALE != 1) a *= RESIDUAL_SCALE, b *= RESIDUAL_SCALE;
    if (RESIDUAL) {
      const u32 before = *(const u32*)(residual + at);
      a += to_float(before), b += high(before);
    }
    if (WIDE) *(float2*)((float*)out + at) = make_float2(a, b);
    else *(u32*)((u16*)out + at) = pack(a, b);
  }
}
