// Attention of one new token per sequence: rotates its query and key, appends key and value to the cache in
// place, attends. Every block takes one kv head of one sequence, or every P-th stretch of it; the last of the
// P blocks to finish joins them, always in the same order.
//
// Work comes in tiles of 16 cached positions, keys and values 16 * H * 2 bytes each; the new token is a tile of
// its own behind them. Warps take tiles in turn. Each keeps STAGES of them in flight from the cache to its own
// ring in shared memory, with the copy engine, and multiplies on the tensor cores: q (16 rows: the G query
// heads) times keys, then their softmax weights times values. Each keeps its own running maximum and sum; the
// block joins its warps once, at the end.
//
// Heads wider than 128 leave registers for their sums alone: a place in a ring is free once it is multiplied.
//
// The host puts before this text: B K G H S, P (blocks per kv head), WARPS, STAGES, RESIDENT (blocks that share
// a multiprocessor), WINDOW (0: none), ROTARY (how many elements of a head turn), SCALE (of scores), CAP (of
// scores; 0: none), FP16, ENGINE (0: no copy engine, whose copies a warp's lanes then make), ARRANGED (bits of the weights
// that the results meet; 0: results lie as they come), ROOM (of arranged tokens), SLICES (0: `qkv` is 16 bits; else
// float32, so many slices that are to be added up), primitives.cu.

constexpr int ROWS = 16, ROW = H * 2, TILE = 2 * ROWS * ROW;  // a tile: keys, then values
constexpr int SH_NEW = WARPS * STAGES * TILE;                 // rotated queries [G][H], rotated key, value
constexpr int SH_BARS = SH_NEW + (G + 2) * ROW;               // one for each place in the rings
constexpr int SH_M = SH_BARS + WARPS * STAGES * 8, SH_L = SH_M + WARPS * 64, SH_LAST = SH_L + WARPS * 64;
constexpr int STEP = P * WARPS;         // tiles between two of a warp
constexpr int PART = G * (H + 2);       // floats of a block's share: O, then maxima, then sums
constexpr bool WIDE = H > 128;
enum { FETCHERS = ENGINE ? 1 : 32 };  // lanes of a warp
using Pieces = Pairs<H, ROTARY>;
constexpr float LOG2_E = 1.4426950408889634f;

#if P > 1
#define SHARES , float* shares
__device__ u32 g_arrived[B * K];
#else
#define SHARES
#endif

// How much a share with maximum `m` weighs beside one with `top`; nothing if it saw no position.
__device__ __forceinline__ float weight_of(float m, float top) { return m == MINUS_INF ? 0.0f : exp2f(m - top); }

extern "C" __global__ void __launch_bounds__(WARPS * 32, RESIDENT)
jllama_attention(const u16* qkv, const float* cosines, const float* sines, const int* lengths, const int* rows,
                 const u16*, const u16*, u16* mixed, u16* keys, u16* values SHARES) {
  const int bk = blockIdx.x / P, p = blockIdx.x % P;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int used = min(lengths[bk / K], S);
  const int first = WINDOW ? max(0, used + 1 - WINDOW) : 0;  // the first position in sight
  const int tiles = (used + ROWS - 1) / ROWS;                // the new token is tile number `tiles`
  const int end = tiles + (used < S);                        // a full cache takes no more
  const size_t at = ((size_t)rows[bk / K] * K + bk % K) * S * H;  // where this sequence lies in the cache
  keys += at;
  values += at;
  char* ring = smem + warp * STAGES * TILE;
  const u32 bars = saddr(smem + SH_BARS) + warp * STAGES * 8;
  const u64 policy = read_once_policy();
  const int start = (first < used ? first / ROWS : tiles) + p * WARPS + warp;

  auto fetch = [&](int n, int place) {
    if (n >= tiles) return;
    const u32 bytes = min(ROWS, used - n * ROWS) * ROW, bar = bars + place * 8, to = saddr(ring) + place * TILE;
#if ENGINE
    mbar_expect(bar, 2 * bytes);
    bulk_copy(to, keys + (size_t)n * ROWS * H, bytes, bar, policy);
    bulk_copy(to + TILE / 2, values + (size_t)n * ROWS * H, bytes, bar, policy);
#else
    for (u32 at = lane * 16; at < bytes; at += 512) {
      copy_16_of_128(to + at, (const char*)(keys + (size_t)n * ROWS * H) + at);
      copy_16_of_128(to + TILE / 2 + at, (const char*)(values + (size_t)n * ROWS * H) + at);
    }
    arrive_with_copies(bar);
#endif
  };
  if (lane == 0) {
    for (int i = 0; i < STAGES; i++) mbar_init(bars + i * 8, FETCHERS);
    show_barriers();
  }
#if !ENGINE
  __syncwarp();
#endif
  if (lane < FETCHERS)
    for (int i = 0; i < STAGES; i++) fetch(start + i * STEP, i);

  u16* fresh = (u16*)(smem + SH_NEW);
  auto projected = [&](int at) {  // eight numbers of the product
    const size_t begin = (size_t)bk * (G + 2) * H + at;
    if (SLICES == 0) return *(const uint4*)(qkv + begin);
    float4 a = make_float4(0, 0, 0, 0), b = a;
#pragma unroll
    for (int i = 0; i < SLICES; i++) {
      const float4* more = (const float4*)((const float*)qkv + (size_t)i * B * K * (G + 2) * H + begin);
      const float4 c = more[0], d = more[1];
      a.x += c.x, a.y += c.y, a.z += c.z, a.w += c.w, b.x += d.x, b.y += d.y, b.z += d.z, b.w += d.w;
    }
    return make_uint4(pack(a.x, a.y), pack(a.z, a.w), pack(b.x, b.y), pack(b.z, b.w));
  };
  for (int e = threadIdx.x; e < (G + 2) * (H / 16); e += WARPS * 32) {
    const int i = e % (H / 16), at = e / (H / 16) * H + Pieces::first(i) * 8, partner = at + Pieces::apart(i) * 8;
    const int angle = (bk / K) * (ROTARY / 2) + i * 8;
    uint4 x = projected(at), y = projected(partner);
    if (e < (G + 1) * (H / 16) && Pieces::turns(i)) rotate(x, y, cosines + angle, sines + angle);
    *(uint4*)(fresh + at) = x;
    *(uint4*)(fresh + partner) = y;
  }
  __syncthreads();

  const float scale = LOG2_E * SCALE;
  auto query = [&](int row, int i) {
    return row < G ? *(const uint4*)(fresh + row * H + i * 32 + t * 8) : make_uint4(0, 0, 0, 0);
  };
  uint4 q0[H / 32], q1[H / 32];
#pragma unroll
  for (int i = 0; i < H / 32 && !WIDE; i++) q0[i] = query(g, i), q1[i] = query(g + 8, i);
  float m0 = MINUS_INF, m1 = MINUS_INF, l0 = 0, l1 = 0, o[H / 8][4] = {};
  int place = 0;
  u32 phase = 0;
#pragma unroll 1
  for (int n = start; n < end; n += STEP) {
    const bool is_new = n == tiles;
    const int from = is_new ? 0 : first - n * ROWS, to = is_new ? 1 : used - n * ROWS;  // rows in sight
    const int stride = is_new ? 0 : H;
    const u16* kt = is_new ? fresh + G * H : (const u16*)(ring + place * TILE);
    const u16* vt = is_new ? kt + H : kt + ROWS * H;
    if (is_new) {
      for (int e = lane; e < H / 8; e += 32) {
        *(uint4*)(keys + (size_t)used * H + e * 8) = *(const uint4*)(kt + e * 8);
        *(uint4*)(values + (size_t)used * H + e * 8) = *(const uint4*)(vt + e * 8);
      }
    } else {
      mbar_wait(bars + place * 8, phase);
    }
    uint4 k[2][H / 32];
    uint2 v[H / 32][4];
    auto load_key = [&](int half, int i) {  // rows out of sight may hold anything: their scores are not looked at
      k[half][i] = *(const uint4*)(kt + (half * 8 + g) * stride + i * 32 + t * 8);
    };
    auto load_value = [&](int i, int j) {
      const int row = 2 * t + (j & 1) + (j >> 1) * 8;
      v[i][j] = row >= from && row < to ? *(const uint2*)(vt + row * stride + i * 32 + g * 4) : make_uint2(0, 0);
    };
    auto done = [&] {  // with what lies in the ring
      __syncwarp();
      if (lane < FETCHERS) fetch(n + STAGES * STEP, place);
      if (++place == STAGES) place = 0, phase ^= 1;
    };
    if (!WIDE) {
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int i = 0; i < H / 32; i++) load_key(half, i);
#pragma unroll
      for (int j = 0; j < 4; j++)
#pragma unroll
        for (int i = 0; i < H / 32; i++) load_value(i, j);
      done();
    }

    float s[2][4] = {};
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
      for (int i = 0; i < H / 32; i++) {
        if (WIDE) load_key(half, i), q0[i] = query(g, i), q1[i] = query(g + 8, i);
        mma(s[half], q0[i].x, q1[i].x, q0[i].y, q1[i].y, k[half][i].x, k[half][i].y);
        mma(s[half], q0[i].z, q1[i].z, q0[i].w, q1[i].w, k[half][i].z, k[half][i].w);
      }
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int row = half * 8 + 2 * t + (j & 1);
        const float score = CAP > 0 ? LOG2_E * soft_capped(s[half][j] * SCALE, CAP) : s[half][j] * scale;
        s[half][j] = row >= from && row < to ? score : MINUS_INF;
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
    for (int i = 0; i < H / 32; i++) {
#pragma unroll
      for (int j = 0; j < 4 && WIDE; j++) load_value(i, j);
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
    if (WIDE) done();
  }

  // The warps' shares, scaled to the block's common maximum, then added in order.
  l0 += __shfl_xor_sync(~0u, l0, 1);
  l1 += __shfl_xor_sync(~0u, l1, 1);
  l0 += __shfl_xor_sync(~0u, l0, 2);
  l1 += __shfl_xor_sync(~0u, l1, 2);
  float *M = (float*)(smem + SH_M), *L = (float*)(smem + SH_L);
  if (t == 0) M[warp * 16 + g] = m0, M[warp * 16 + 8 + g] = m1;
  __syncthreads();
  float top0 = MINUS_INF, top1 = MINUS_INF;
#pragma unroll
  for (int w = 0; w < WARPS; w++) top0 = fmaxf(top0, M[w * 16 + g]), top1 = fmaxf(top1, M[w * 16 + 8 + g]);
  const float w0 = weight_of(m0, top0), w1 = weight_of(m1, top1);
  if (t == 0) L[warp * 16 + g] = l0 * w0, L[warp * 16 + 8 + g] = l1 * w1;
#pragma unroll
  for (int i = 0; i < H / 32; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      if (half * 8 + g >= G) break;
      const float w = half ? w1 : w0;
      float4* to = (float4*)((float*)ring + (half * 8 + g) * H + i * 32 + 8 * t);  // its tiles are read
      const float(*c)[4] = o + i * 4;
      to[0] = make_float4(c[0][2 * half] * w, c[1][2 * half] * w, c[2][2 * half] * w, c[3][2 * half] * w);
      to[1] = make_float4(c[0][2 * half + 1] * w, c[1][2 * half + 1] * w, c[2][2 * half + 1] * w, c[3][2 * half + 1] * w);
    }
  __syncthreads();

  auto where = [&](int e) {  // a pair of results goes
    return ARRANGED ? arranged<ARRANGED>(bk % K * G * H + 2 * e, bk / K, ROOM) : (size_t)bk * (G * H / 2) + e;
  };
#if P > 1
  float* share = shares + ((size_t)bk * P + p) * PART;
  if (t == 0 && warp == 0) {
    if (g < G) share[G * H + g] = top0;
    if (g + 8 < G) share[G * H + 8 + g] = top1;
  }
#endif
  for (int e = threadIdx.x; e < G * H / 2; e += WARPS * 32) {
    const int h = e / (H / 2);
    float2 sum = make_float2(0, 0);
    float total = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      const float2 part = ((const float2*)(smem + w * STAGES * TILE))[e];
      sum.x += part.x;
      sum.y += part.y;
      total += L[w * 16 + h];
    }
#if P > 1
    ((float2*)share)[e] = sum;
    if (e % (H / 2) == 0) share[G * H + G + h] = total;
  }
  __syncthreads();
  if (threadIdx.x == 0) *(int*)(smem + SH_LAST) = last_of(g_arrived + bk, P);
  __syncthreads();
  if (!*(const int*)(smem + SH_LAST)) return;
  const float* all = shares + (size_t)bk * P * PART;
  float* weights = (float*)smem;  // [P][G]
  for (int e = threadIdx.x; e < P * G; e += WARPS * 32) {
    float top = MINUS_INF;
    for (int i = 0; i < P; i++) top = fmaxf(top, __ldcg(all + i * PART + G * H + e % G));
    weights[e] = weight_of(__ldcg(all + e / G * PART + G * H + e % G), top);
  }
  __syncthreads();
  for (int e = threadIdx.x; e < G * H / 2; e += WARPS * 32) {
    const int h = e / (H / 2);
    float2 sum = make_float2(0, 0);
    float total = 0;
#pragma unroll 8
    for (int i = 0; i < P; i++) {
      const float2 part = __ldcg((const float2*)(all + i * PART) + e);
      sum.x += weights[i * G + h] * part.x;
      sum.y += weights[i * G + h] * part.y;
      total += weights[i * G + h] * __ldcg(all + i * PART + G * H + G + h);
    }
#endif
    ((u32*)mixed)[where(e)] = pack(sum.x / total, sum.y / total);
  }
}
