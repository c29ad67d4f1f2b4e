// Behind a product that `stream.cu` has sent: the sum over the GPUs, the residual stream and the next norm, a block a token.
//
// Pairs of 16-bit numbers come without tags, half as many bytes as words: what has not come is zero, and is so again before
// this GPU sends its next sums, without which nobody sends into the same half again.
//
// The host puts before this text: D (a multiple of 8), BLOCK_SIZE, EACH (eights of numbers per thread), GPUS, the places of a
// mailbox, EPS, NORM_OFFSET, BIAS, RESIDUAL_SCALE, FP16, then primitives.cu and mailboxes.cu.

// Eight numbers as floats, and back.
struct Eight { float v[8]; };
__device__ __forceinline__ Eight widened(const uint4& w) {
  return {to_float(w.x), high(w.x), to_float(w.y), high(w.y), to_float(w.z), high(w.z), to_float(w.w), high(w.w)};
}
__device__ __forceinline__ uint4 packed(const Eight& e) {
  return make_uint4(pack(e.v[0], e.v[1]), pack(e.v[2], e.v[3]), pack(e.v[4], e.v[5]), pack(e.v[6], e.v[7]));
}

extern "C" __global__ void __launch_bounds__(BLOCK_SIZE, 1)
jllama_take_norm(const u64* peers, const int* rank, const u32* turn, const u16* x, const u16* residual, const u16* weight,
                 const u16* bias, u16* out, u16* normed) {
  const int self = *rank;
  const u32 tag = *turn;
  u64* box[GPUS];
  u64* const own = mailboxes(box, peers, self);
  const size_t row = (size_t)blockIdx.x * D;
  uint4 parts[GPUS][EACH], before[EACH], weights[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int at = (threadIdx.x + i * BLOCK_SIZE) * 8;
    if (at >= D) break;
    before[i] = *(const uint4*)(residual + row + at), weights[i] = *(const uint4*)(weight + at);
    const uint4 mine = *(const uint4*)(x + row + at);
#pragma unroll
    for (int p = 0; p < GPUS; p++) parts[p][i] = mine;
  }
  bool here = false;
  for (u32 spins = 0; !here;) {  // all are asked for before any is looked at
    here = true;
#pragma unroll
    for (int p = 0; p < GPUS; p++)
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        const int at = (threadIdx.x + i * BLOCK_SIZE) * 8;
        if (p != self && at < D) parts[p][i] = peek4_bare_far(bare_of(own, tag, p) + (row + at) / 2);
      }
#pragma unroll
    for (int p = 0; p < GPUS; p++)
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        const uint4 w = parts[p][i];
        if (p != self && (threadIdx.x + i * BLOCK_SIZE) * 8 < D) here = here && w.x && w.y && w.z && w.w;
      }
    if (!here) patience_far(spins);
  }
  float squares = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int at = (threadIdx.x + i * BLOCK_SIZE) * 8;
    if (at >= D) break;
    Eight sum = {};
#pragma unroll
    for (int p = 0; p < GPUS; p++) {
      uint4 w = parts[p][i];
      if (p != self) {
        *(uint4*)(bare_of(own, tag, p) + (row + at) / 2) = make_uint4(0, 0, 0, 0);
        w = make_uint4(~w.x, ~w.y, ~w.z, ~w.w);
      }
      const Eight part = widened(w);
#pragma unroll
      for (int j = 0; j < 8; j++) sum.v[j] += part.v[j];
    }
    const Eight old = widened(before[i]);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      if (BIAS) sum.v[j] += to_float(bias[at + j]);
      if (RESIDUAL_SCALE != 1) sum.v[j] *= RESIDUAL_SCALE;
      sum.v[j] += old.v[j];
    }
    before[i] = packed(sum);
    *(uint4*)(out + row + at) = before[i];
    const Eight now = widened(before[i]);
#pragma unroll
    for (int j = 0; j < 8; j++) squares += now.v[j] * now.v[j];
  }
  float* sums = (float*)smem;
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = squares;
  __syncthreads();
  squares = 0;
#pragma unroll
  for (int w = 0; w < BLOCK_SIZE / 32; w++) squares += sums[w];
  const float by = rsqrtf(squares * (1.0f / D) + EPS);
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int at = (threadIdx.x + i * BLOCK_SIZE) * 8;
    if (at >= D) break;
    Eight v = widened(before[i]);
    const Eight n = widened(weights[i]);
#pragma unroll
    for (int j = 0; j < 8; j++) v.v[j] *= by * (NORM_OFFSET == 0 ? n.v[j] : n.v[j] + NORM_OFFSET);
    *(uint4*)(normed + row + at) = packed(v);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *(volatile u32*)(own + BOX_TURNS) = tag;  // nobody here reads it
}
