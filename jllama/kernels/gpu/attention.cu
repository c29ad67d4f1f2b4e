// Attention of one new token per sequence over the cache; every block takes one kv head of one sequence, or
// every P-th stretch of it. The last of the P blocks to finish joins them, always in the same order.
//
// A warp takes 16 positions at a time straight from device memory into tensor-core operands: scores are
// q (16 rows: the G query heads) times keys, their softmax weights times values. Each warp keeps its own
// running maximum and sum; the block joins its warps once, at the end.
//
// The host puts before this text: B K G H S, P (blocks per kv head), WINDOW (0: none), FP16, primitives.cu.

#define WARPS 8

constexpr int O_BYTES = WARPS * G * H * 4, SH_M = O_BYTES, SH_L = SH_M + WARPS * 64, SH_LAST = SH_L + WARPS * 64;
constexpr int PART = G * (H + 2);  // floats of a block's share: O, then maxima, then sums

__device__ u32 g_arrived[B * K];

// Joins `count` shares; o(i, h, d), m(i, h), l(i, h) read them. Gives O at dimensions d and d + 1.
template <class O_, class M_, class L_>
__device__ __forceinline__ void join(int count, int h, int d, O_ o, M_ m, L_ l, float2& out, float& top, float& sum) {
  top = MINUS_INF;
  for (int i = 0; i < count; i++) top = fmaxf(top, m(i, h));
  out = make_float2(0, 0);
  sum = 0;
  for (int i = 0; i < count; i++) {
    const float mi = m(i, h);
    if (mi == MINUS_INF) continue;  // it had no positions, and wrote no O
    const float weight = exp2f(mi - top);
    const float2 v = o(i, h, d);
    out.x += weight * v.x;
    out.y += weight * v.y;
    sum += weight * l(i, h);
  }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32)
jllama_attention(const u16* q, const u16* keys, const u16* values, const int* lengths, u16* mixed, float* shares) {
  const int bk = blockIdx.x / P, p = blockIdx.x % P;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int length = min(lengths[bk / K] + 1, S);
  const int first = WINDOW ? max(0, lengths[bk / K] + 1 - WINDOW) : 0;
  const u16* kb = keys + (size_t)bk * S * H;
  const u16* vb = values + (size_t)bk * S * H;
  const float scale = 1.4426950408889634f * rsqrtf((float)H);

  uint4 q0[H / 32], q1[H / 32];
#pragma unroll
  for (int i = 0; i < H / 32; i++) {
    q0[i] = q1[i] = make_uint4(0, 0, 0, 0);
    if (g < G) q0[i] = *(const uint4*)(q + ((size_t)bk * G + g) * H + i * 32 + t * 8);
    if (g + 8 < G) q1[i] = *(const uint4*)(q + ((size_t)bk * G + g + 8) * H + i * 32 + t * 8);
  }
  float m0 = MINUS_INF, m1 = MINUS_INF, l0 = 0, l1 = 0, o[H / 8][4] = {};
#pragma unroll 1
  for (int n0 = first / 16 * 16 + (p * WARPS + warp) * 16; n0 < length; n0 += P * WARPS * 16) {
    uint4 kv[2][H / 32];
    uint2 v[H / 32][4];
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int i = 0; i < H / 32; i++)  // beyond the end: any finite row, it will weigh nothing
        kv[half][i] = *(const uint4*)(kb + (size_t)min(n0 + half * 8 + g, length - 1) * H + i * 32 + t * 8);
#pragma unroll
    for (int i = 0; i < H / 32; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int at = n0 + 2 * t + (j & 1) + (j >> 1) * 8;
        v[i][j] = make_uint2(0, 0);
        if (at >= first && at < length) v[i][j] = *(const uint2*)(vb + (size_t)at * H + i * 32 + g * 4);
      }
    float s[2][4] = {};
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
      for (int i = 0; i < H / 32; i++) {
        mma(s[half], q0[i].x, q1[i].x, q0[i].y, q1[i].y, kv[half][i].x, kv[half][i].y);
        mma(s[half], q0[i].z, q1[i].z, q0[i].w, q1[i].w, kv[half][i].z, kv[half][i].w);
      }
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int at = n0 + half * 8 + 2 * t + (j & 1);
        s[half][j] = at >= first && at < length ? s[half][j] * scale : MINUS_INF;
      }
    }
    float top0 = fmaxf(fmaxf(s[0][0], s[0][1]), fmaxf(s[1][0], s[1][1]));
    float top1 = fmaxf(fmaxf(s[0][2], s[0][3]), fmaxf(s[1][2], s[1][3]));
    top0 = fmaxf(top0, __shfl_xor_sync(~0u, top0, 1));
    top1 = fmaxf(top1, __shfl_xor_sync(~0u, top1, 1));
    top0 = fmaxf(m0, fmaxf(top0, __shfl_xor_sync(~0u, top0, 2)));
    top1 = fmaxf(m1, fmaxf(top1, __shfl_xor_sync(~0u, top1, 2)));
    const float alpha0 = exp2f(m0 - top0), alpha1 = exp2f(m1 - top1);
    m0 = top0;
    m1 = top1;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int j = 0; j < 4; j++) s[half][j] = exp2f(s[half][j] - (j < 2 ? m0 : m1));
    l0 = l0 * alpha0 + ((s[0][0] + s[0][1]) + (s[1][0] + s[1][1]));
    l1 = l1 * alpha1 + ((s[0][2] + s[0][3]) + (s[1][2] + s[1][3]));
    const u32 a0 = pack(s[0][0], s[0][1]), a1 = pack(s[0][2], s[0][3]);
    const u32 a2 = pack(s[1][0], s[1][1]), a3 = pack(s[1][2], s[1][3]);
#pragma unroll
    for (int i = 0; i < H / 32; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) {  // column g of product j is dimension 32 i + 4 g + j
        float(&c)[4] = o[i * 4 + j];
        c[0] *= alpha0; c[1] *= alpha0; c[2] *= alpha1; c[3] *= alpha1;
        const u32 order = j & 1 ? 0x7632 : 0x5410;
        const u32 b0 = j < 2 ? __byte_perm(v[i][0].x, v[i][1].x, order) : __byte_perm(v[i][0].y, v[i][1].y, order);
        const u32 b1 = j < 2 ? __byte_perm(v[i][2].x, v[i][3].x, order) : __byte_perm(v[i][2].y, v[i][3].y, order);
        mma(c, a0, a1, a2, a3, b0, b1);
      }
  }
  l0 += __shfl_xor_sync(~0u, l0, 1);
  l1 += __shfl_xor_sync(~0u, l1, 1);
  l0 += __shfl_xor_sync(~0u, l0, 2);
  l1 += __shfl_xor_sync(~0u, l1, 2);
  float *O = (float*)smem, *M = (float*)(smem + SH_M), *LS = (float*)(smem + SH_L);
  if (t == 0) {
    M[warp * 16 + g] = m0; M[warp * 16 + 8 + g] = m1;
    LS[warp * 16 + g] = l0; LS[warp * 16 + 8 + g] = l1;
  }
#pragma unroll
  for (int i = 0; i < H / 32; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      if (half * 8 + g >= G) break;
      float4* to = (float4*)(O + (warp * G + half * 8 + g) * H + i * 32 + 8 * t);
      const float(*c)[4] = o + i * 4;
      to[0] = make_float4(c[0][2 * half], c[1][2 * half], c[2][2 * half], c[3][2 * half]);
      to[1] = make_float4(c[0][2 * half + 1], c[1][2 * half + 1], c[2][2 * half + 1], c[3][2 * half + 1]);
    }
  __syncthreads();

  u32* out = (u32*)(mixed + (size_t)bk * G * H);
  float* share = shares + ((size_t)bk * P + p) * PART;
  for (int e = threadIdx.x; e < G * H / 2; e += WARPS * 32) {
    const int h = e / (H / 2), d = e % (H / 2) * 2;
    float2 v;
    float top, sum;
    join(WARPS, h, d, [&](int i, int h, int d) { return *(const float2*)(O + (i * G + h) * H + d); },
         [&](int i, int h) { return M[i * 16 + h]; }, [&](int i, int h) { return LS[i * 16 + h]; }, v, top, sum);
    if (P == 1) {
      out[e] = pack(v.x / sum, v.y / sum);
    } else {
      *(float2*)(share + h * H + d) = v;
      if (d == 0) { share[G * H + h] = top; share[G * H + G + h] = sum; }
    }
  }
  if (P == 1) return;
  __syncthreads();
  if (threadIdx.x == 0) *(int*)(smem + SH_LAST) = last_of(g_arrived + bk, P);
  __syncthreads();
  if (!*(const int*)(smem + SH_LAST)) return;
  const float* all = shares + (size_t)bk * P * PART;
  for (int e = threadIdx.x; e < G * H / 2; e += WARPS * 32) {
    const int h = e / (H / 2), d = e % (H / 2) * 2;
    float2 v;
    float top, sum;
    join(P, h, d, [&](int i, int h, int d) { return __ldcg((const float2*)(all + i * PART + h * H + d)); },
         [&](int i, int h) { return __ldcg(all + i * PART + G * H + h); },
         [&](int i, int h) { return __ldcg(all + i * PART + G * H + G + h); }, v, top, sum);
    out[e] = pack(v.x / sum, v.y / sum);
  }
}
