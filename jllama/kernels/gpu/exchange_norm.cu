// What `exchange.cu` does with a product of ROWS tokens, D numbers each, and the norm that follows: a block a token.
//
// The residual stream goes on to the next sum, its norm into the next product. `x` is the product in SLICES slices of its
// columns, float32, which are added up first; that part of the sum goes as 16-bit numbers, two in a word. One GPU
// has no others to add.
//
// The host puts before this text: ROWS, D (a multiple of 4), SLICES, BLOCK_SIZE, EACH (fours of numbers per thread), GPUS,
// with several the places of a mailbox, EPS, NORM_OFFSET, BIAS, RESIDUAL_SCALE, ARRANGED (bits of the weights that the norm
// meets; 0: it lies as it comes), ROOM (of arranged tokens), then primitives.cu and, with several,
// mailboxes.cu.

__device__ __forceinline__ float4 widened(uint2 v) { return make_float4(to_float(v.x), high(v.x), to_float(v.y), high(v.y)); }
#if GPUS > 1
// Adds another GPU's part of this thread's numbers; all words are asked for before any is looked at.
__device__ __forceinline__ void add_far(float4 (&sums)[EACH], const u64* from, u32 tag) {
  u64 a[EACH], b[EACH];
  bool here = false;
  for (u32 spins = 0; !here;) {
    here = true;
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if ((threadIdx.x + i * BLOCK_SIZE) * 4 < D) peek2_far(from + (threadIdx.x + i * BLOCK_SIZE) * 2, a[i], b[i]);
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if ((threadIdx.x + i * BLOCK_SIZE) * 4 < D) here = here && (u32)(a[i] >> 32) == tag && (u32)(b[i] >> 32) == tag;
    if (!here) patience_far(spins);
  }
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    if ((threadIdx.x + i * BLOCK_SIZE) * 4 >= D) break;
    const float4 v = widened(make_uint2((u32)a[i], (u32)b[i]));
    sums[i].x += v.x, sums[i].y += v.y, sums[i].z += v.z, sums[i].w += v.w;
  }
}
#endif

extern "C" __global__ void __launch_bounds__(BLOCK_SIZE, 1)
jllama_exchange_norm(const u64* peers, const int* rank, const float* x, const u16* residual, const u16* weight,
                     const u16* bias, u16* out, u16* normed) {
  const int row = blockIdx.x * D;
  uint2 before[EACH], weights[EACH];
  float4 sums[EACH], slices[EACH][SLICES];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int at = (threadIdx.x + i * BLOCK_SIZE) * 4;
    if (at >= D) break;
#pragma unroll
    for (int k = 0; k < SLICES; k++) slices[i][k] = *(const float4*)(x + (size_t)k * ROWS * D + row + at);
  }
  auto ask = [&] {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int at = (threadIdx.x + i * BLOCK_SIZE) * 4;
      if (at < D) before[i] = *(const uint2*)(residual + row + at), weights[i] = *(const uint2*)(weight + at);
    }
  };
  if (GPUS == 1) ask();
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    sums[i] = make_float4(0, 0, 0, 0);
    if ((threadIdx.x + i * BLOCK_SIZE) * 4 >= D) break;
#pragma unroll
    for (int k = 0; k < SLICES; k++) {
      const float4 v = slices[i][k];
      sums[i].x += v.x, sums[i].y += v.y, sums[i].z += v.z, sums[i].w += v.w;
    }
  }
#if GPUS > 1
  uint2 mine[EACH];
  const int self = *rank;
  u64* box[GPUS];
  u64* const own = mailboxes(box, peers, self);
  const u32 tag = turn_of(own);
  const int half = half_of(tag);
#pragma unroll
  for (int i = 0; i < EACH; i++) mine[i] = make_uint2(pack(sums[i].x, sums[i].y), pack(sums[i].z, sums[i].w));
#pragma unroll
  for (int p = 0; p < GPUS; p++) {
    if (p == self) continue;
    u64* to = box[p] + half + self * MAX_SUMS + row / 2;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int at = threadIdx.x + i * BLOCK_SIZE;
      if (at * 4 < D) put2_far(to + at * 2, __uint_as_float(mine[i].x), __uint_as_float(mine[i].y), tag);
    }
  }
  ask();  // before the wait
  __syncthreads();
  end_turn(own, tag, ROWS);
#pragma unroll
  for (int i = 0; i < EACH; i++) sums[i] = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int p = 0; p < GPUS; p++) {
    if (p != self) {
      add_far(sums, own + half + p * MAX_SUMS + row / 2, tag);
      continue;
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const float4 v = widened(mine[i]);
      sums[i].x += v.x, sums[i].y += v.y, sums[i].z += v.z, sums[i].w += v.w;
    }
  }
#endif
  float squares = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int at = (threadIdx.x + i * BLOCK_SIZE) * 4;
    if (at >= D) break;
    float4 v = sums[i];
    if (BIAS) {
      const float4 more = widened(*(const uint2*)(bias + at));
      v.x += more.x, v.y += more.y, v.z += more.z, v.w += more.w;
    }
    if (RESIDUAL_SCALE != 1) v.x *= RESIDUAL_SCALE, v.y *= RESIDUAL_SCALE, v.z *= RESIDUAL_SCALE, v.w *= RESIDUAL_SCALE;
    const float4 old = widened(before[i]);
    before[i] = make_uint2(pack(old.x + v.x, old.y + v.y), pack(old.z + v.z, old.w + v.w));
    *(uint2*)(out + row + at) = before[i];
    v = widened(before[i]);
    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  float* parts = (float*)smem;
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = squares;
  __syncthreads();
  squares = 0;
#pragma unroll
  for (int w = 0; w < BLOCK_SIZE / 32; w++) squares += parts[w];
  const float by = rsqrtf(squares * (1.0f / D) + EPS);
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int at = (threadIdx.x + i * BLOCK_SIZE) * 4;
    if (at >= D) break;
    float4 n = widened(weights[i]);
    if (NORM_OFFSET != 0) n.x += NORM_OFFSET, n.y += NORM_OFFSET, n.z += NORM_OFFSET, n.w += NORM_OFFSET;
    const float4 v = widened(before[i]);
    const uint2 four = make_uint2(pack(v.x * by * n.x, v.y * by * n.y), pack(v.z * by * n.z, v.w * by * n.w));
    if (ARRANGED) {
      ((u32*)normed)[arranged<ARRANGED>(at, blockIdx.x, ROOM)] = four.x;
      ((u32*)normed)[arranged<ARRANGED>(at + 2, blockIdx.x, ROOM)] = four.y;
    } else *(uint2*)(normed + row + at) = four;
  }
}
