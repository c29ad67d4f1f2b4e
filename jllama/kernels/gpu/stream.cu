// Products of a 16-bit weight with the activations of up to 32 tokens, both of which stream past: more tokens than `product.cu`
// has room for. Sums that several GPUs add up are sent from here.
//
// y[token][row] = sum over columns of w[row][column] * x[token][column]. A cluster of CL blocks takes MT tiles of 16 rows, each
// block its share of the columns, each of its WARPS units of 32 of them. A lane asks for its own 16 bytes of a row, STAGES times
// ahead, and only reads what it asked for itself: the ring needs no barrier. At the end the warps' sums meet in shared memory,
// the blocks' in each other's, always in the same order: each block finishes its share of the tokens.
//
// The host puts before this text: TOKENS, PADDED (a multiple of 8), ROWS (of the weight, a multiple of 16 MT), COLUMNS (of
// 32 WARPS CL), MT, CL, WARPS, STAGES, BIAS, FP16, GPUS (several: each one's sums, rounded to 16 bits, are sent to all others,
// which take them by `take_norm.cu`), with several the places of a mailbox, CLUSTER (= CL), primitives.cu and, with several,
// mailboxes.cu.

constexpr int ROW_BYTES = COLUMNS * 2, UNITS = COLUMNS / 32, NB = PADDED / 8, THREADS = 32 * WARPS;
constexpr int TURNS = UNITS / (CL * WARPS);             // units of a warp
constexpr int SLOT = MT * 1024 + PADDED * 64;           // a unit of the rows, then of the tokens
constexpr int PER_TILE = 16 * MT, LINE = PER_TILE + 4;  // floats of a token's sums: what a warp stores at once lies on different banks
constexpr int SPAN = PADDED / CL;                       // tokens that a block finishes
constexpr int FOURS = PER_TILE / 4, ITEMS = SPAN * FOURS;
constexpr int SH_FAR = WARPS * STAGES * SLOT;           // what the cluster's other blocks have summed, [block][token][PER_TILE]

#if CL > 1
#define MAYBE_IN_CLUSTERS IN_CLUSTERS
#else
#define MAYBE_IN_CLUSTERS
#endif

__device__ __forceinline__ void add(float4& a, const float4& b) { a.x += b.x, a.y += b.y, a.z += b.z, a.w += b.w; }
__device__ __forceinline__ float4 widened(uint2 v) { return make_float4(to_float(v.x), high(v.x), to_float(v.y), high(v.y)); }

// All warps' sums of four of this tile's rows.
__device__ __forceinline__ float4 summed(int token, int row) {
  float4 v = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int w = 0; w < WARPS; w++) add(v, *(const float4*)(smem + w * STAGES * SLOT + (token * LINE + row) * 4));
  return v;
}

extern "C" __global__ void MAYBE_IN_CLUSTERS __launch_bounds__(THREADS, 1)
jllama_stream(const u64* peers, const int* rank_of_gpu, const u16* x, const char* weights, const u16* bias, u16* out
#if GPUS > 1
              , u32* turn
#endif
) {
  const int rank = blockIdx.x % CL, tile = blockIdx.x / CL;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  char* ring = smem + warp * STAGES * SLOT;
  const char* rows = weights + (size_t)(tile * PER_TILE + g) * ROW_BYTES + t * 16;
  const char* tokens = (const char*)x + t * 16;

  const int begin = rank * TURNS * WARPS + warp;
  // Clusters begin at different columns: the activations that all of them read are not asked for by all at once.
  int fetch_turn = 0, fetch_unit = begin + tile % TURNS * WARPS, fetch_slot = 0, slot = 0;
  auto fetch = [&] {
    if (fetch_turn < TURNS) {
      const u32 to = saddr(ring + fetch_slot * SLOT) + lane * 16;
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int j = 0; j < 2; j++) copy_16_of_256(to + (m * 2 + j) * 512, rows + (size_t)(m * 16 + j * 8) * ROW_BYTES + fetch_unit * 64);
#pragma unroll
      for (int n = 0; n < NB; n++)  // past the end: the last token
        copy_16(to + MT * 1024 + n * 512, tokens + (size_t)min(n * 8 + g, TOKENS - 1) * ROW_BYTES + fetch_unit * 64, true);
      fetch_turn++;
      if ((fetch_unit += WARPS) >= (rank + 1) * TURNS * WARPS) fetch_unit = begin;
      if (++fetch_slot == STAGES) fetch_slot = 0;
    }
    copies_commit();
  };
#pragma unroll 1
  for (int i = 0; i < STAGES - 1; i++) fetch();
  if (CL > 1) cluster_arrive();  // all of them run once they have met
#if GPUS > 1
  const int self = *rank_of_gpu;
  u64* box[GPUS];
  const u32 tag = turn_of(mailboxes(box, peers, self));
  if (blockIdx.x == 0 && threadIdx.x == 0) *turn = tag;
#endif

  float c[MT][NB][4] = {};
#pragma unroll 1
  for (int i = 0; i < TURNS; i++) {
    copies_wait<STAGES - 2>();
    fetch();  // into what was read a turn ago
    const char* from = ring + slot * SLOT + lane * 16;
    if (++slot == STAGES) slot = 0;
    uint4 b[NB];
#pragma unroll
    for (int n = 0; n < NB; n++) b[n] = *(const uint4*)(from + MT * 1024 + n * 512);
#pragma unroll
    for (int m = 0; m < MT; m++) {
      const uint4 u = *(const uint4*)(from + m * 1024), v = *(const uint4*)(from + m * 1024 + 512);
#pragma unroll
      for (int n = 0; n < NB; n++) mma(c[m][n], u.x, v.x, u.y, v.y, b[n].x, b[n].y);
#pragma unroll
      for (int n = 0; n < NB; n++) mma(c[m][n], u.z, v.z, u.w, v.w, b[n].z, b[n].w);
    }
  }

  __syncwarp();  // all of this warp's lanes have read the ring
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int n = 0; n < NB; n++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        ((float*)ring)[(n * 8 + 2 * t + i % 2) * LINE + m * 16 + i / 2 * 8 + g] = c[m][n][i];
  __syncthreads();
  float4* far = (float4*)(smem + SH_FAR);
  if (CL > 1) {
    cluster_wait();
#pragma unroll
    for (int i = 1; i < CL; i++) {
      const int other = (rank + i) % CL;
      float4* to = peer(far, other) + rank * ITEMS;
      for (int e = threadIdx.x; e < ITEMS; e += THREADS) to[e] = summed(other * SPAN + e / FOURS, e % FOURS * 4);
    }
    cluster_arrive();
    cluster_wait();
  }
  for (int e = threadIdx.x; e < ITEMS; e += THREADS) {
    const int token = rank * SPAN + e / FOURS, at = e % FOURS * 4, row = tile * PER_TILE + at;
    if (token >= TOKENS) break;
    float4 v = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < CL; i++) add(v, i == rank ? summed(token, at) : far[i * ITEMS + e]);
    if (BIAS) add(v, widened(*(const uint2*)(bias + row)));
    const uint2 mine = make_uint2(pack(v.x, v.y), pack(v.z, v.w));
#if GPUS > 1
#pragma unroll
    for (int p = 0; p < GPUS; p++)
      if (p != self) put2_bare_far(bare_of(box[p], tag, self) + (token * ROWS + row) / 2, mine.x, mine.y);
#endif
    *(uint2*)(out + (size_t)token * ROWS + row) = mine;
  }
}
