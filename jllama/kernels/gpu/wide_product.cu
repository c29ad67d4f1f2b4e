// Products of a weight with the activations of many tokens, by the warpgroups' own products (wgmma): weights of 8 and
// 4 bits become 16-bit floats in registers, which are the first operand, so that nobody stores them expanded.
//
// A block takes 64 rows of the weight for each of its WM warpgroups, times N tokens. A lane asks for its own 16 bytes of two
// rows, W_STAGES times ahead, and only reads what it asked for itself: that ring needs no barrier. One more warp brings
// panels of 64 columns of the activations, which all warpgroups read.
//
// Activations are arranged as the products read them: [panel][piece][token][8], piece p of a panel the columns whose
// weights a lane has beside each other (`column`). A panel is one copy.
//
// Columns are shared by WK groups of warpgroups, whose sums are added up through shared memory, and by SLICES of blocks,
// whose sums are results of their own.
//
// The host puts before this text: TOKENS, N (of them, to a multiple of 8), ROWS, COLUMNS, WM, WK, SLICES, W_STAGES, X_STAGES,
// BITS, GROUP (0: none, or one scale a row; else 32), SCALE_BYTES (0: no scales), OFFSETS, GATED (0: float32 [slice][token][row], 1:
// activation(first half of the rows) * second half, arranged for weights of OUT_BITS, or as [token][row] if that is 0), BIAS,
// ACTIVATION, FP16, primitives.cu, `wgmma_by_rows` for N.

constexpr int GROUPS = WM * WK;
constexpr int THREADS = 128 * GROUPS + 32;
constexpr int HALVES = BITS == 4 ? 2 : 1;  // panels of a unit
constexpr int UNIT_BYTES = 64, ROW_BYTES = COLUMNS * BITS / 8, UNITS = ROW_BYTES / UNIT_BYTES;
constexpr int OUT = GATED ? ROWS / 2 : ROWS, PER_TILE = (GATED ? 32 : 64) * WM, TILES = (OUT + PER_TILE - 1) / PER_TILE;
constexpr int LISTS = GROUP ? 1 + OFFSETS : 0, SLOT = 1024 + LISTS * 256;  // of a warp's ring
constexpr int X_PANEL = N * 128;
constexpr int SH_W = X_STAGES * X_PANEL, SH_RINGS = SH_W + 4 * GROUPS * W_STAGES * SLOT;
constexpr int SUMS = WK > 1 ? N * 64 * 4 * GROUPS : 0;  // bytes
constexpr int SH_BARS = SH_RINGS + SUMS;
constexpr int NB = N / 8;
static_assert(1 + (WK - 1) * HALVES < X_STAGES, "a panel is free again once the next one's products have begun");

// The column of number `e` (0 to 7) of a piece in activations that meet weights of so many bits.
template <int WIDTH> __device__ __forceinline__ int column(int piece, int e) {
  const int panel = piece >> 3, s = piece >> 1 & 3, in_pair = (piece & 1) * 2 + (e & 1), t = e >> 1;
  if (WIDTH == 8) return panel * 64 + t * 16 + s * 4 + in_pair;
  return (panel >> 1) * 128 + t * 32 + (panel & 1) * 16 + s * 4 + in_pair;
}

__device__ __forceinline__ u32 signed_pair(u32 w) {  // the first and third byte
  if (FP16) return minus_pair((w & 0x00ff00ff ^ 0x00800080) | 0x64006400, 0x64806480);
  return minus_pair(w & 0x007f007f | 0x43004300, w & 0x00800080 | 0x43004300);
}
__device__ __forceinline__ float scale_of(const char* at, int odd) {
  if (SCALE_BYTES == 4) return *(const float*)at;
  return half_to_float(((const u16*)at)[odd]);
}
// Two weights of 4 bits, which begin at bits 8 and 16 of a word: there they are floats above 2^15 and 2^7.
__device__ __forceinline__ u32 scaled_pair(u32 w, float scale, float above15, float above7) {
  const float a = __uint_as_float(w & 0x00000f00 | 0x47000000), b = __uint_as_float(w & 0x000f0000 | 0x43000000);
  return pack(a * scale + above15, b * scale + above7);
}

// A panel of 16 rows of a warp as the products read it: four steps of 16 columns.
__device__ __forceinline__ void unpack(u32 (&a)[16], const char* from, int half, int lane) {
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const uint4 v = *(const uint4*)(from + j * 512 + lane * 16);
    const u32 w[4] = {v.x, v.y, v.z, v.w};
    if constexpr (BITS == 8) {
#pragma unroll
      for (int s = 0; s < 4; s++) {
        a[4 * s + j] = signed_pair(__byte_perm(w[s], 0, 0x4140));
        a[4 * s + 2 + j] = signed_pair(__byte_perm(w[s], 0, 0x4342));
      }
    } else {  // a lane has a group
      const char* at = from + 1024 + j * 128 + lane * 4;
      const float scale = scale_of(at, lane & 1), offset = OFFSETS ? scale_of(at + 256, lane & 1) : -8.0f * scale;
      const float above15 = offset - 32768.0f * scale, above7 = offset - 128.0f * scale;
#pragma unroll
      for (int s = 0; s < 4; s++) {
        a[4 * s + j] = scaled_pair(half ? w[s] << 4 : w[s] << 8, scale, above15, above7);
        a[4 * s + 2 + j] = scaled_pair(half ? w[s] >> 12 : w[s] >> 8, scale, above15, above7);
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
jllama_wide_product(const u16* x, const u16* bias, const char* weights, const char* scales, const char* offsets, void* out) {
  const int tile = blockIdx.x % TILES, slice = blockIdx.x / TILES;
  const int u0 = UNITS * slice / SLICES, u1 = UNITS * (slice + 1) / SLICES;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const u32 base = saddr(smem), full = base + SH_BARS, empty = full + X_STAGES * 8;
  if (threadIdx.x == 0) {
    for (int i = 0; i < X_STAGES; i++) mbar_init(full + i * 8, 1), mbar_init(empty + i * 8, 4 * WM);
    show_barriers();
  }
  __syncthreads();

  if (warp == 4 * GROUPS) {
    if (lane == 0) {
      int stage = 0;
      u32 phase = 1;
      const char* from = (const char*)x + (size_t)u0 * HALVES * X_PANEL;
#pragma unroll 1
      for (int q = u0 * HALVES; q < u1 * HALVES; q++, from += X_PANEL) {
        mbar_wait(empty + stage * 8, phase);
        mbar_expect(full + stage * 8, X_PANEL);
        bulk_copy(base + stage * X_PANEL, from, X_PANEL, full + stage * 8);
        if (++stage == X_STAGES) stage = 0, phase ^= 1;
      }
    }
    if (WK > 1) __syncthreads();
    return;
  }

  const int group = warp >> 2, in_k = group / WM, piece = tile * 4 * WM + group % WM * 4 + (warp & 3);
  const int row0 = !GATED ? piece * 16 + g : OUT_BITS ? column<OUT_BITS>(piece, g) : piece * 8 + g, row1 = row0 + (GATED ? OUT : 8);
  const bool here0 = row0 < OUT, here1 = GATED ? here0 : row1 < OUT;
  const size_t place0 = here0 ? row0 : 0, place1 = here1 ? row1 : 0;  // past the end: any row
  char* ring = smem + SH_W + warp * W_STAGES * SLOT;

  int fetch_unit = u0 + in_k, fetch_slot = 0;
  auto fetch = [&] {
    if (fetch_unit < u1) {
      const u32 to = saddr(ring + fetch_slot * SLOT);
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const size_t row = j ? place1 : place0;
        copy_16_of_256(to + j * 512 + lane * 16, weights + row * ROW_BYTES + fetch_unit * UNIT_BYTES + t * 16);
        if (GROUP) {  // of two groups whose scales share four bytes, both
          const size_t at = (row * (COLUMNS / 32) + fetch_unit * 4 + t) * SCALE_BYTES / 4 * 4;
          copy_4(to + 1024 + j * 128 + lane * 4, scales + at);
          if (OFFSETS) copy_4(to + 1280 + j * 128 + lane * 4, offsets + at);
        }
      }
      fetch_unit += WK;
      if (++fetch_slot == W_STAGES) fetch_slot = 0;
    }
    copies_commit();
  };
#pragma unroll 1
  for (int i = 0; i < W_STAGES - 1; i++) fetch();

  float d[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; i++) d[i] = 0;
  u32 a[2][16];
  const int panels = u0 + in_k < u1 ? ((u1 - u0 - in_k + WK - 1) / WK) * HALVES : 0;
  int slot = 0, stage = in_k * HALVES % X_STAGES, before = 0;
  u32 phase = in_k * HALVES / X_STAGES & 1;
  auto read = [&](u32 bar) {  // this warp has
    if (lane == 0) mbar_arrive(bar);
  };
  auto next_weights = [&](u32 (&a)[16], int half) {
    if (half == 0) copies_wait<W_STAGES - 2>();
    unpack(a, ring + slot * SLOT, half, lane);
    if (half == HALVES - 1) {
      if (++slot == W_STAGES) slot = 0;
      fetch();
    }
  };
  // One panel's products, and the next one's weights while they run.
  auto step = [&](u32 (&a)[16], u32 (&next)[16], int n, int half) {
    mbar_wait(full + stage * 8, phase);
    wgmma_begin();
#pragma unroll
    for (int s = 0; s < 4; s++)
      wgmma_by_rows(d, a[4 * s], a[4 * s + 1], a[4 * s + 2], a[4 * s + 3], pieces_of(base + stage * X_PANEL + s * N * 32, N * 16));
    wgmma_commit();
    wgmma_wait_for_others();
    if (n > 0) read(empty + before * 8);
    before = stage;
    stage += HALVES == 1 || half == 1 ? 1 + (WK - 1) * HALVES : 1;
    while (stage >= X_STAGES) stage -= X_STAGES, phase ^= 1;
    if (n + 1 < panels) next_weights(next, HALVES == 2 ? half ^ 1 : 0);
  };
  if (panels) next_weights(a[0], 0);
#pragma unroll 1
  for (int n = 0; n < panels; n += 2) {
    step(a[0], a[1], n, 0);
    if (n + 1 < panels) step(a[1], a[0], n + 1, HALVES - 1);
  }
  wgmma_wait<0>(d);

  const float s0 = !GROUP && SCALE_BYTES && here0 ? ((const float*)scales)[row0] : 1.0f;
  const float s1 = !GROUP && SCALE_BYTES && here1 ? ((const float*)scales)[row1] : 1.0f;
  const float b0 = BIAS && here0 ? to_float(bias[row0]) : 0.0f, b1 = BIAS && here1 ? to_float(bias[row1]) : 0.0f;
  // Sums of rows `row0` and `row1` with two tokens.
  auto finish = [&](int i, const float* v) {
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const int token = i * 8 + 2 * t + k;
      float a = v[k] * s0, b = v[k + 2] * s1;
      if (BIAS && slice == 0) a += b0, b += b1;
      if (GATED) {
        const size_t to = OUT_BITS ? ((size_t)piece * N + token) * 8 + g : (size_t)token * OUT + row0;
        if (here0 && (OUT_BITS || token < TOKENS)) ((u16*)out)[to] = (u16)pack(activated<ACTIVATION>(a) * b, 0.0f);
      } else if (token < TOKENS) {
        float* to = (float*)out + ((size_t)slice * TOKENS + token) * OUT;
        if (here0) to[row0] = a;
        if (here1) to[row1] = b;
      }
    }
  };
  if constexpr (WK == 1) {
#pragma unroll
    for (int i = 0; i < NB; i++) finish(i, d + 4 * i);
  } else {
    const int thread = group % WM * 128 + (threadIdx.x & 127);
    float4* sums = (float4*)(smem + SH_RINGS);  // [group of columns][eight tokens][thread]
#pragma unroll
    for (int i = 0; i < NB; i++)
      sums[(in_k * NB + i) * 128 * WM + thread] = make_float4(d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]);
    __syncthreads();
#pragma unroll 1
    for (int i = in_k; i < NB; i += WK) {
      float v[4] = {0, 0, 0, 0};
#pragma unroll
      for (int k = 0; k < WK; k++) {
        const float4 part = sums[(k * NB + i) * 128 * WM + thread];
        v[0] += part.x, v[1] += part.y, v[2] += part.z, v[3] += part.w;
      }
      finish(i, v);
    }
  }
}
