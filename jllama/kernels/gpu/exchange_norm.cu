// What `exchange.cu` does with a product of ROWS tokens, D numbers each, and the norm that follows: a block a token.
//
// The residual stream goes on to the next sum, its norm into the next product.
//
// The host puts before this text: ROWS, D (even), BLOCK_SIZE, EACH (pairs of numbers per thread), the places of a
// mailbox, EPS, NORM_OFFSET, BIAS, RESIDUAL_SCALE, then primitives.cu.

__device__ u32 g_count;

extern "C" __global__ void __launch_bounds__(BLOCK_SIZE, 1)
jllama_exchange_norm(const u64* peers, const int* rank, const float* x, const u16* residual, const u16* weight,
                     const u16* bias, u16* out, u16* normed) {
  const int self = *rank, row = blockIdx.x * D;
  u64* const own = (u64*)peers[self];
  const u32 tag = *(volatile u32*)(own + BOX_TURNS) + 1;
  const int half = BOX_SUMS + (tag & 1) * GPUS * MAX_SUMS;
  float2 mine[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int at = (threadIdx.x + i * BLOCK_SIZE) * 2;
    if (at < D) mine[i] = *(const float2*)(x + row + at);
  }
#pragma unroll
  for (int p = 0; p < GPUS; p++) {
    if (p == self) continue;
    u64* to = (u64*)peers[p] + half + self * MAX_SUMS + row;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int at = (threadIdx.x + i * BLOCK_SIZE) * 2;
      if (at < D) put2_far(to + at, mine[i].x, mine[i].y, tag);
    }
  }
  u32 before[EACH], weights[EACH];  // asked for before the wait
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int at = (threadIdx.x + i * BLOCK_SIZE) * 2;
    if (at < D) before[i] = *(const u32*)(residual + row + at), weights[i] = *(const u32*)(weight + at);
  }
  __syncthreads();
  if (threadIdx.x == 0 && last_of(&g_count, ROWS)) *(volatile u32*)(own + BOX_TURNS) = tag;  // all have read it
  float squares = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int at = (threadIdx.x + i * BLOCK_SIZE) * 2;
    if (at >= D) break;
    float a = 0, b = 0;
#pragma unroll
    for (int p = 0; p < GPUS; p++) {
      const float2 v = p == self ? mine[i] : take2_far(own + half + p * MAX_SUMS + row + at, tag);
      a += v.x, b += v.y;
    }
    if (BIAS) a += to_float(bias[at]), b += to_float(bias[at + 1]);
    if (RESIDUAL_SCALE != 1) a *= RESIDUAL_SCALE, b *= RESIDUAL_SCALE;
    before[i] = pack(to_float(before[i]) + a, high(before[i]) + b);
    *(u32*)(out + row + at) = before[i];
    squares += to_float(before[i]) * to_float(before[i]) + high(before[i]) * high(before[i]);
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
    const int at = (threadIdx.x + i * BLOCK_SIZE) * 2;
    if (at >= D) break;
    float first = to_float(weights[i]), second = high(weights[i]);
    if (NORM_OFFSET != 0) first += NORM_OFFSET, second += NORM_OFFSET;
    *(u32*)(normed + row + at) = pack(to_float(before[i]) * by * first, high(before[i]) * by * second);
  }
}
