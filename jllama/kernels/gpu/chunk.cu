// Attention of a chunk: many new tokens of each sequence over what its cache holds and over themselves.
//
// Two kernels. `jllama_append` rotates the new keys and writes keys and values into the cache in place. Then
// `jllama_chunk` attends. Its rows are pairs of a token and one of the G query heads that share a key head, so
// that every head of a group reads keys and values once. A block takes 64 rows for each of its CONSUMERS
// warpgroups; one more warpgroup brings tiles of KEYS cached positions through a ring in shared memory. Products
// are the warpgroup's own (wgmma): q times keys from shared memory, softmax weights times values with the
// weights in registers. While a group's tensor cores work on the next tile's scores and this tile's values,
// the other groups make exponentials.
//
// Tiles lie in panels of 64 columns, 128 bytes a row, of which each group of eight has its 16-byte pieces
// exchanged (piece ^ row % 8), as the tensor cores want them.
//
// Where rows alone leave multiprocessors idle, P blocks share them: each takes a stretch of the tiles, and the
// last one to finish joins what they have, always in the same order.
//
// The host puts before this text: B TOKENS K G H S, CONSUMERS, STAGES, P (blocks that share rows), WINDOW
// (0: none), ROTARY (how many elements of a head turn), SCALE (of scores), CAP (of scores; 0: none), FP16,
// primitives.cu.

constexpr int KEYS = H > 128 ? 64 : 128;  // wide heads leave registers for fewer scores
using Pieces = Pairs<H, ROTARY>;
constexpr int PANELS = (H + 63) / 64;
constexpr int ROWS = 64 * CONSUMERS;              // of a block
constexpr int GROUP_Q = PANELS * 64 * 128;        // bytes of a warpgroup's queries
constexpr int TILE = PANELS * KEYS * 128;         // bytes of a tile of keys, or of values
constexpr int SH_K = CONSUMERS * GROUP_Q, SH_V = SH_K + STAGES * TILE, SH_BARS = SH_V + STAGES * TILE;
constexpr int SH_LAST = SH_BARS + 4 * STAGES * 8;
constexpr int TILES = (TOKENS * G + ROWS - 1) / ROWS;  // of rows, a key head
constexpr float LOG2_E = 1.4426950408889634f;

#if P > 1
#define SHARES , float4* shares  // [block][PANELS * 8 + 1][thread]: sums, then maxima and sums of weights
__device__ u32 g_arrived[B * K * TILES];
#else
#define SHARES
#endif

// A thread moves 16 columns of a new key and value; what passes the cache's end is dropped.
extern "C" __global__ void __launch_bounds__(256)
jllama_append(const u16* qkv, const float* cosines, const float* sines, const int* lengths, const int* rows,
              const u16*, const u16*, u16* keys, u16* values) {
  const int e = blockIdx.x * 256 + threadIdx.x, piece = e % (H / 16), head = e / (H / 16) % K;
  const int token = e / (H / 16) / K, b = token / TOKENS;
  if (token >= B * TOKENS) return;
  const int position = lengths[b] + token % TOKENS;
  if (position >= S) return;
  const int first = Pieces::first(piece) * 8, apart = Pieces::apart(piece) * 8;
  const u16* from = qkv + (((size_t)token * K + head) * (G + 2) + G) * H + first;
  const size_t to = (((size_t)rows[b] * K + head) * S + position) * H + first;
  const size_t angle = (size_t)token * (ROTARY / 2) + piece * 8;
  uint4 x = *(const uint4*)from, y = *(const uint4*)(from + apart);
  if (Pieces::turns(piece)) rotate(x, y, cosines + angle, sines + angle);
  *(uint4*)(keys + to) = x;
  *(uint4*)(keys + to + apart) = y;
  *(uint4*)(values + to) = *(const uint4*)(from + H);
  *(uint4*)(values + to + apart) = *(const uint4*)(from + H + apart);
}

// Where 16-byte piece `piece` of a row lies in a tile of `rows` rows.
__device__ __forceinline__ int place(int row, int piece, int rows) {
  return (piece >> 3) * rows * 128 + row * 128 + (((piece & 7) ^ (row & 7)) << 4);
}

// One warpgroup's rotated queries; rows behind the last token are zero.
__device__ __forceinline__ void load_queries(char* to, int first_row, int bk, const u16* qkv, const float* cosines,
                                             const float* sines) {
  const int thread = threadIdx.x & 127;
  for (int e = thread; e < 64 * (H / 16); e += 128) {
    const int row = e / (H / 16), piece = e % (H / 16), token = (first_row + row) / G;
    const int first = Pieces::first(piece), apart = Pieces::apart(piece);
    uint4 x = make_uint4(0, 0, 0, 0), y = x;
    if (token < TOKENS) {
      const size_t at = (size_t)(bk / K) * TOKENS + token, angle = at * (ROTARY / 2) + piece * 8;
      const u16* from = qkv + ((at * K + bk % K) * (G + 2) + (first_row + row) % G) * H + first * 8;
      x = *(const uint4*)from, y = *(const uint4*)(from + apart * 8);
      if (Pieces::turns(piece)) rotate(x, y, cosines + angle, sines + angle);
    }
    *(uint4*)(to + place(row, first, 64)) = x;
    *(uint4*)(to + place(row, first + apart, 64)) = y;
  }
}

// 128 threads bring KEYS rows; those from `end` on become zero, whatever lies there.
__device__ __forceinline__ void fetch(u32 to, const u16* from, int first, int end, u32 full) {
  constexpr int PIECES = H / 8;
#pragma unroll 4
  for (int e = threadIdx.x & 127; e < KEYS * PIECES; e += 128) {
    const int row = e / PIECES, piece = e % PIECES;
    const bool there = first + row < end;
    copy_16(to + place(row, piece, KEYS), from + (size_t)(there ? first + row : 0) * H + piece * 8, there);
  }
  arrive_with_copies(full);
}

// Scores [64][KEYS] of a warpgroup's queries; in flight until wgmma_wait.
__device__ __forceinline__ void score(float (&s)[KEYS / 2], u32 queries, u32 keys) {
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < H / 16; k++) {
    const u32 column = k % 4 * 32;
    wgmma_rows(s, tile_rows(queries + k / 4 * 64 * 128 + column), tile_rows(keys + k / 4 * KEYS * 128 + column), k > 0);
  }
  wgmma_commit();
}

// o [64][H] += weights times values; likewise.
__device__ __forceinline__ void mix(float (&o)[PANELS][32], const u32 (&p)[KEYS / 4], u32 values) {
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
    for (int i = 0; i < PANELS; i++)
      wgmma_64(o[i], p[4 * k], p[4 * k + 1], p[4 * k + 2], p[4 * k + 3], tile_columns(values + i * KEYS * 128 + k * 2048));
  wgmma_commit();
}

extern "C" __global__ void __launch_bounds__(128 * (CONSUMERS + 1), 1)
jllama_chunk(const u16* qkv, const float* cosines, const float* sines, const int* lengths, const int* rows,
             const u16* keys, const u16* values, u16* mixed SHARES) {
  // The longest rows first, so that short ones fill the end.
  const int which = blockIdx.x / P, share = blockIdx.x % P, bk = which % (B * K);
  int first_row = (TILES - 1 - which / (B * K)) * ROWS;
  const int start = min(lengths[bk / K], S), end = min(start + TOKENS, S);
  const int last_token = min(TOKENS - 1, (first_row + ROWS - 1) / G);
  // Tiles of positions, from `last` down to `begin`; of a share maybe none.
  int last = min(start + last_token, S - 1) / KEYS;
  int begin = WINDOW ? min(max(0, start + first_row / G + 1 - WINDOW) / KEYS, last) : 0;
  if (P > 1) {
    const int each = (last - begin + P) / P;
    last -= share * each;
    begin = max(begin, last + 1 - each);
  }
  const int group = threadIdx.x >> 7;
  // Barriers: keys and values have come, keys and values are read.
  const u32 base = saddr(smem), full = base + SH_BARS, empty = full + 2 * STAGES * 8;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2 * STAGES; i++) mbar_init(full + i * 8, 128), mbar_init(empty + i * 8, 4 * CONSUMERS);
    show_barriers();
  }
  __syncthreads();

  if (group == CONSUMERS) {
    fewer_registers<CONSUMERS == 2 ? 24 : 32>();
    const size_t row = ((size_t)rows[bk / K] * K + bk % K) * S * H;  // where this sequence lies in the cache
    keys += row;
    values += row;
    int stage = 0;
    u32 phase = 1;
#pragma unroll 1
    for (int n = last; n >= begin; n--) {
      const u32 at = stage * TILE, bar = stage * 8;
      mbar_wait(empty + bar, phase);
      fetch(base + SH_K + at, keys, n * KEYS, end, full + bar);
      mbar_wait(empty + STAGES * 8 + bar, phase);
      fetch(base + SH_V + at, values, n * KEYS, end, full + STAGES * 8 + bar);
      if (++stage == STAGES) stage = 0, phase ^= 1;
    }
    return;
  }

  more_registers<CONSUMERS == 2 ? 240 : 160>();
  first_row += group * 64;
  const int warp = threadIdx.x >> 5 & 3, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const u32 queries = base + group * GROUP_Q;
  load_queries(smem + group * GROUP_Q, first_row, bk, qkv, cosines, sines);
  show_to_copies();
  group_sync(2 + group);

  const float scale = CAP > 0 ? LOG2_E : LOG2_E * SCALE;
  const int row0 = first_row + warp * 16 + g, row1 = row0 + 8;  // this thread's
  const int seen0 = start + row0 / G, seen1 = start + row1 / G;  // the last positions that they see
  const int first_seen = start + first_row / G, last_seen = start + min(TOKENS - 1, (first_row + 63) / G);
  float m0 = MINUS_INF, m1 = MINUS_INF, l0 = 0, l1 = 0, o[PANELS][32] = {}, s[KEYS / 2];
  float alpha0 = 1, alpha1 = 1;
  u32 p[KEYS / 4];

  auto read = [&](u32 bar) {  // this warp has
    if (lane == 0) mbar_arrive(bar);
  };
  auto weigh = [&](int n) {  // scores -> exponentials, their sums, the weight of what came before
    const int from = n * KEYS + 2 * t;
#pragma unroll
    for (int i = 0; i < KEYS / 2 && CAP > 0; i++) s[i] = soft_capped(s[i] * SCALE, CAP);
    if (n * KEYS + KEYS - 1 > first_seen || (WINDOW && n * KEYS <= last_seen - WINDOW)) {
#pragma unroll
      for (int i = 0; i < KEYS / 2; i++) {
        const int at = from + i / 4 * 8 + (i & 1), seen = i & 2 ? seen1 : seen0;
        if (at > seen || (WINDOW && at <= seen - WINDOW)) s[i] = MINUS_INF;
      }
    }
    float top0 = m0, top1 = m1;
#pragma unroll
    for (int i = 0; i < KEYS / 2; i += 4) {
      top0 = fmaxf(top0, fmaxf(s[i], s[i + 1]));
      top1 = fmaxf(top1, fmaxf(s[i + 2], s[i + 3]));
    }
    top0 = fmaxf(top0, __shfl_xor_sync(~0u, top0, 1));
    top1 = fmaxf(top1, __shfl_xor_sync(~0u, top1, 1));
    top0 = fmaxf(top0, __shfl_xor_sync(~0u, top0, 2));
    top1 = fmaxf(top1, __shfl_xor_sync(~0u, top1, 2));
    const float by0 = top0 == MINUS_INF ? 0.0f : top0 * scale, by1 = top1 == MINUS_INF ? 0.0f : top1 * scale;
    alpha0 = exp2_fast(m0 * scale - by0);
    alpha1 = exp2_fast(m1 * scale - by1);
    m0 = top0, m1 = top1;
    float sum0 = 0, sum1 = 0;
#pragma unroll
    for (int i = 0; i < KEYS / 2; i += 4) {
      s[i] = exp2_fast(s[i] * scale - by0), s[i + 1] = exp2_fast(s[i + 1] * scale - by0);
      s[i + 2] = exp2_fast(s[i + 2] * scale - by1), s[i + 3] = exp2_fast(s[i + 3] * scale - by1);
      sum0 += s[i] + s[i + 1], sum1 += s[i + 2] + s[i + 3];
    }
    l0 = l0 * alpha0 + sum0, l1 = l1 * alpha1 + sum1;
  };
  auto keep = [&] {  // the exponentials as 16 bits, in the order in which the products read them
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) p[i] = pack(s[2 * i], s[2 * i + 1]);
#pragma unroll
    for (int i = 0; i < PANELS; i++)
#pragma unroll
      for (int j = 0; j < 32; j++) o[i][j] *= j & 2 ? alpha1 : alpha0;
  };

  if (P == 1 || last >= begin) {
    int stage = 0;
    u32 phase = 0;
    mbar_wait(full, 0);
    show_to_copies();
    score(s, queries, base + SH_K);
    wgmma_wait<0>(s);
    read(empty);
    weigh(last);
    keep();
#pragma unroll 1
    for (int n = last - 1; n >= begin; n--) {
      const u32 values_at = base + SH_V + stage * TILE, values_bar = (STAGES + stage) * 8, before = phase;
      if (++stage == STAGES) stage = 0, phase ^= 1;
      mbar_wait(full + stage * 8, phase);
      show_to_copies();
      score(s, queries, base + SH_K + stage * TILE);
      mbar_wait(full + values_bar, before);
      show_to_copies();
      mix(o, p, values_at);
      wgmma_wait<1>(s);
      read(empty + stage * 8);
      weigh(n);
      wgmma_wait<0>(o);
      read(empty + values_bar);
      keep();
    }
    mbar_wait(full + (STAGES + stage) * 8, phase);
    show_to_copies();
    mix(o, p, base + SH_V + stage * TILE);
    wgmma_wait<0>(o);
  }

  l0 += __shfl_xor_sync(~0u, l0, 1);
  l1 += __shfl_xor_sync(~0u, l1, 1);
  l0 += __shfl_xor_sync(~0u, l0, 2);
  l1 += __shfl_xor_sync(~0u, l1, 2);
#if P > 1
  constexpr int THREADS = 128 * CONSUMERS, LINES = PANELS * 8 + 1;
  float4* mine = shares + (size_t)blockIdx.x * LINES * THREADS + threadIdx.x;
#pragma unroll
  for (int i = 0; i < LINES - 1; i++) {
    const float* c = o[i / 8] + i % 8 * 4;
    mine[i * THREADS] = make_float4(c[0], c[1], c[2], c[3]);
  }
  mine[(LINES - 1) * THREADS] = make_float4(m0, m1, l0, l1);
  some_sync<THREADS>();
  if (threadIdx.x == 0) *(int*)(smem + SH_LAST) = last_of(g_arrived + which, P);
  some_sync<THREADS>();
  if (!*(const int*)(smem + SH_LAST)) return;
  const float4* all = mine - (size_t)share * LINES * THREADS;
  l0 = l1 = 0;
#pragma unroll 1
  for (int i = 0; i < P; i++) {
    const float4 part = __ldcg(all + (i * LINES + LINES - 1) * THREADS);
    m0 = i ? fmaxf(m0, part.x) : part.x, m1 = i ? fmaxf(m1, part.y) : part.y;
  }
#pragma unroll 1
  for (int i = 0; i < P; i++) {
    const float4* part = all + i * LINES * THREADS;
    const float4 ends = __ldcg(part + (LINES - 1) * THREADS);
    const float w0 = ends.x == MINUS_INF ? 0.0f : exp2_fast((ends.x - m0) * scale);
    const float w1 = ends.y == MINUS_INF ? 0.0f : exp2_fast((ends.y - m1) * scale);
    l0 += ends.z * w0, l1 += ends.w * w1;
#pragma unroll
    for (int j = 0; j < LINES - 1; j++) {
      const float4 sums = __ldcg(part + j * THREADS);
      float* c = o[j / 8] + j % 8 * 4;
      c[0] = (i ? c[0] : 0.0f) + sums.x * w0, c[1] = (i ? c[1] : 0.0f) + sums.y * w0;
      c[2] = (i ? c[2] : 0.0f) + sums.z * w1, c[3] = (i ? c[3] : 0.0f) + sums.w * w1;
    }
  }
#endif
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = half ? row1 : row0;
    if (row / G >= TOKENS) continue;
    const float by = 1.0f / (half ? l1 : l0);
    u32* to = (u32*)(mixed + ((((size_t)(bk / K) * TOKENS + row / G) * K + bk % K) * G + row % G) * H + 2 * t);
#pragma unroll
    for (int j = 0; j < H / 8; j++) {
      const float* c = o[j / 8] + j % 8 * 4 + 2 * half;
      to[j * 4] = pack(c[0] * by, c[1] * by);
    }
  }
}
