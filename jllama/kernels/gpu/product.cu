// Products of a weight with the activations of few tokens: every weight is read once, at the memory's pace.
//
// y[token][row] = sum over columns of w[row][column] * x[token][column], on the tensor cores: 16 rows of weights
// times 8 tokens. Weights of 8 and 4 bits become 16-bit floats in registers. The norm in front of the product
// and what follows it (a bias, the residual, the gated activation) are done here too.
//
// A block takes MT tiles of 16 rows at a time; its WARPS share the columns, in units of 64 bytes a row. Where the
// activations are too many for one block's shared memory, the CL blocks of a cluster share the columns too. A lane
// asks for its own 16 bytes of two rows, STAGES times ahead, and only reads what it asked for itself: the ring needs
// no barrier. At the end all warps put their sums into shared memory, where they are added, always in the same
// order.
//
// The host puts before this text: TOKENS, PADDED (a multiple of 8), ROWS, COLUMNS, MT, CL, CLUSTERS, WARPS, STAGES, BITS,
// GROUP (0: none, or one scale a row), SCALE_BYTES (0: no scales), OFFSETS, RECORD (bytes that hold the scales and offsets of
// 256 weights, `layers/records.py`; 0: they have arrays of their own), NORM, EPS, AFTER (0: nothing,
// 1: the residual is added, 2: activation(first half of the rows) * second half), WIDE (1: float32 results), FP16,
// BIAS (1: there is one), NORM_OFFSET (added to the norm's weight), RESIDUAL_SCALE (of what meets the residual),
// ACTIVATION, CLUSTER (= CL), primitives.cu.

constexpr int ROW_BYTES = COLUMNS * BITS / 8, UNITS = ROW_BYTES / 64, PER_UNIT = 512 / BITS;  // columns
constexpr int NB = PADDED / 8, THREADS = 32 * WARPS;
constexpr bool GATED = AFTER == 2;
constexpr int OUT = GATED ? ROWS / 2 : ROWS, PER_TILE = (GATED ? 8 : 16) * MT, TILES = (OUT + PER_TILE - 1) / PER_TILE;
constexpr int MOST = (UNITS + CL - 1) / CL;  // units of a block, at most
// Bytes between two tokens' activations: those that are read at once lie on different banks.
constexpr int X_STRIDE = (MOST * PER_UNIT * 2 + 127) / 128 * 128 + (BITS == 16 ? 64 : BITS == 8 ? 16 : 32);
constexpr int IN_GROUP = GROUP ? GROUP : 64;  // columns
constexpr int GROUPS_A_ROW = GROUP ? COLUMNS / IN_GROUP : 0, LISTS = RECORD ? RECORD / 16 : !GROUP ? 0 : 1 + OFFSETS;
constexpr int SLOT = 2 * 32 * 16 + LISTS * 2 * 32 * 4;  // of a warp: weights, scales, offsets
constexpr int SUMS = MT * NB * 32 * 16;                 // bytes of a warp's sums
constexpr int SH_SUMS = PADDED * X_STRIDE, SH_RING = SH_SUMS + WARPS * SUMS, SH_SQUARES = SH_RING + WARPS * STAGES * SLOT;
constexpr int PARTS = WARPS >= PADDED ? WARPS / PADDED : 1;  // warps that load a token
constexpr int SHARE = MT * NB * 64 / CL, ITEMS = (SHARE + THREADS - 1) / THREADS;  // pairs of sums to be added, a thread's

#if CL > 1
#define MAYBE_IN_CLUSTERS IN_CLUSTERS
#else
#define MAYBE_IN_CLUSTERS
#endif
// All threads whose sums are added together.
__device__ __forceinline__ void arrive() { if (CL > 1) cluster_arrive(); }
__device__ __forceinline__ void wait_for_all() {
  if (CL > 1) cluster_wait();
  else __syncthreads();
}

// Where 16 bytes, 8 activations, of a token lie.
__device__ __forceinline__ int x_at(int token, int piece) {
  return token * X_STRIDE + (BITS == 4 ? piece ^ (piece >> 3 & 1) : piece) * 16;
}
// Weights of 4 and 8 bits come out of their words in the order 0 2 1 3.
__device__ __forceinline__ uint4 in_order(uint4 x) {
  if (BITS == 16) return x;
  return make_uint4(__byte_perm(x.x, x.y, 0x5410), __byte_perm(x.x, x.y, 0x7632), __byte_perm(x.z, x.w, 0x5410), __byte_perm(x.z, x.w, 0x7632));
}

constexpr int X_EACH = 8, X_STEP = 32 * PARTS, PIECES = COLUMNS / 8;  // 16 bytes that a lane loads at once
constexpr bool AT_ONCE = PIECES <= X_EACH * X_STEP;                   // a whole token

__device__ __forceinline__ float gain(float weight) { return NORM_OFFSET == 0 ? weight : weight + NORM_OFFSET; }
__device__ __forceinline__ void multiply_pairs(uint4& v, float by, const uint4& n) {
  v.x = pack(to_float(v.x) * by * gain(to_float(n.x)), high(v.x) * by * gain(high(n.x)));
  v.y = pack(to_float(v.y) * by * gain(to_float(n.y)), high(v.y) * by * gain(high(n.y)));
  v.z = pack(to_float(v.z) * by * gain(to_float(n.z)), high(v.z) * by * gain(high(n.z)));
  v.w = pack(to_float(v.w) * by * gain(to_float(n.w)), high(v.w) * by * gain(high(n.w)));
}
// A row's result with its bias, as the residual meets it.
__device__ __forceinline__ float biased(float v, float bias) {
  if (BIAS) v += bias;
  return RESIDUAL_SCALE == 1 ? v : v * RESIDUAL_SCALE;
}
__device__ __forceinline__ float squares_of(const uint4 (&v)[X_EACH]) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < X_EACH; j++) {
    const u32 w[4] = {v[j].x, v[j].y, v[j].z, v[j].w};
#pragma unroll
    for (int k = 0; k < 4; k++) sum += to_float(w[k]) * to_float(w[k]) + high(w[k]) * high(w[k]);
  }
  return sum;
}

// This block's columns (16-byte pieces from `first` on) of all tokens into shared memory, normalised if that is
// asked for; the padding is zero. A token is PARTS warps' work.
__device__ __forceinline__ void load_activations(const u16* x, const u16* norm, int first, int count) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, part = warp / PADDED, from = part * 32 + lane;
  const int begin = PARTS > 1 ? warp % PADDED : warp;
  float* squares = (float*)(smem + SH_SQUARES);  // [token][part]
  uint4 n[X_EACH];
  auto load = [&](uint4 (&v)[X_EACH], int token, int start, int i, int end) {
    const uint4* row = (const uint4*)(x + (size_t)token * COLUMNS) + start;
#pragma unroll
    for (int j = 0; j < X_EACH; j++) v[j] = token < TOKENS && i + j * X_STEP < end ? row[i + j * X_STEP] : make_uint4(0, 0, 0, 0);
  };
  auto load_norm = [&](int start, int i, int end) {
#pragma unroll
    for (int j = 0; j < X_EACH; j++) n[j] = i + j * X_STEP < end ? ((const uint4*)norm)[start + i + j * X_STEP] : make_uint4(0, 0, 0, 0);
  };
  auto factor = [&](int token) {
    float sum = 0;
    for (int i = 0; i < PARTS; i++) sum += squares[token * PARTS + i];
    return rsqrtf(sum / (float)COLUMNS + EPS);
  };
  auto meet = [] {
    if (PARTS > 1) __syncthreads();
    else __syncwarp();
  };
  if constexpr (NORM && AT_ONCE) {
    uint4 v[X_EACH];
    load(v, begin, 0, from, PIECES);
    load_norm(0, from, PIECES);
#pragma unroll 1
    for (int token = begin; token < PADDED; token += WARPS) {  // once, where several warps share a token
      uint4 next[X_EACH];
      if (PADDED > WARPS) load(next, token + WARPS, 0, from, PIECES);
      const float sum = warp_sum(squares_of(v));
      if (lane == 0) squares[token * PARTS + part] = sum;
      meet();
      const float by = factor(token);
#pragma unroll
      for (int j = 0; j < X_EACH; j++) {
        const int piece = from + j * X_STEP - first;
        multiply_pairs(v[j], by, n[j]);
        if (piece >= 0 && piece < count) *(uint4*)(smem + x_at(token, piece)) = in_order(v[j]);
        if (PADDED > WARPS) v[j] = next[j];
      }
    }
    return;
  }
  if (NORM) {
    for (int token = begin; token < PADDED; token += WARPS) {
      float sum = 0;
#pragma unroll 1
      for (int i = from; i < PIECES; i += X_EACH * X_STEP) {
        uint4 v[X_EACH];
        load(v, token, 0, i, PIECES);
        sum += squares_of(v);
      }
      sum = warp_sum(sum);
      if (lane == 0) squares[token * PARTS + part] = sum;
    }
    meet();
  }
  uint4 v[X_EACH];
  int token = begin, i = from;
  load(v, token, first, i, count);
#pragma unroll 1
  while (token < PADDED) {  // the next pieces come while these are stored
    int next_token = token, next_i = i + X_EACH * X_STEP;
    if (next_i >= count) next_token += WARPS, next_i = from;
    uint4 next[X_EACH];
    load(next, next_token, first, next_i, count);
    const float by = NORM ? factor(token) : 1.0f;
    if (NORM) load_norm(first, i, count);
#pragma unroll
    for (int j = 0; j < X_EACH; j++) {
      if (NORM) multiply_pairs(v[j], by, n[j]);
      if (i + j * X_STEP < count) *(uint4*)(smem + x_at(token, i + j * X_STEP)) = in_order(v[j]);
      v[j] = next[j];
    }
    token = next_token, i = next_i;
  }
}

__device__ __forceinline__ float scale_of(const char* at, int odd) {
  if (SCALE_BYTES == 4) return *(const float*)at;
  return half_to_float(((const u16*)at)[odd]);
}

// Two weights, whole numbers from 0 to 127 in the halves of `w`, as floats above 128 or 1024.
constexpr u32 MAGIC = FP16 ? 0x64006400 : 0x43004300;
constexpr float BASE = FP16 ? 1024.0f : 128.0f;
__device__ __forceinline__ u32 scaled(u32 pair, float scale, float offset) {  // offset: for BASE too
  return pack(to_float(pair) * scale + offset, high(pair) * scale + offset);
}
// Two signed bytes, the first and third of `w`.
__device__ __forceinline__ u32 signed_pair(u32 w) {
  if (FP16) return minus_pair((w & 0x00ff00ff ^ 0x00800080) | MAGIC, 0x64806480);
  return minus_pair(w & 0x007f007f | MAGIC, w & 0x00800080 | MAGIC);
}

extern "C" __global__ void MAYBE_IN_CLUSTERS __launch_bounds__(THREADS, 1)
jllama_product(const u16* x, const u16* norm, const u16* residual, const u16* bias, const char* weights, const char* scales,
               const char* offsets, void* out) {
  const int rank = blockIdx.x % CL, cluster = blockIdx.x / CL;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int u0 = UNITS * rank / CL, u1 = UNITS * (rank + 1) / CL;
  char* ring = smem + SH_RING + warp * STAGES * SLOT;

  int fetch_tile = cluster, fetch_unit = u0 + warp, fetch_m = 0, fetch_slot = 0;
  auto fetch = [&] {
    if (fetch_tile < TILES && fetch_unit < u1) {
      const u32 to = saddr(ring + fetch_slot * SLOT) + lane * 16;
      const int byte = fetch_unit * 64 + t * 16;
#pragma unroll
      for (int j = 0; j < 2; j++) {  // past the end: the last row
        const int in_tile = fetch_tile * PER_TILE + (GATED ? fetch_m * 8 : fetch_m * 16 + j * 8) + g;
        const size_t row = min(in_tile, OUT - 1) + (GATED && j ? OUT : 0);
        copy_16_of_256(to + j * 512, weights + row * ROW_BYTES + byte);
        if (RECORD) {  // which a row's four lanes copy together
          const size_t at = (row * (COLUMNS / IN_RECORD) + byte * 8 / BITS / IN_RECORD) * RECORD + t * 4;
          const u32 small = saddr(ring + fetch_slot * SLOT + 1024) + lane * 4 + j * 128;
          copy_4(small, scales + at);
          if (RECORD == 32) copy_4(small + 256, scales + at + 16);
        } else if (GROUP) {  // of two groups whose scales share four bytes, both
          const size_t at = (row * GROUPS_A_ROW + byte * 8 / BITS / IN_GROUP) * SCALE_BYTES / 4 * 4;
          const u32 small = saddr(ring + fetch_slot * SLOT + 1024) + lane * 4 + j * 128;
          copy_4(small, scales + at);
          if (OFFSETS) copy_4(small + 256, offsets + at);
        }
      }
      if (++fetch_m == MT) {
        fetch_m = 0;
        if ((fetch_unit += WARPS) >= u1) fetch_unit = u0 + warp, fetch_tile += CLUSTERS;
      }
      if (++fetch_slot == STAGES) fetch_slot = 0;
    }
    copies_commit();
  };
  fetch();  // some weights, so that the memory is busy: all of them would hold up the activations
  load_activations(x, norm, u0 * PER_UNIT / 8, (u1 - u0) * PER_UNIT / 8);
#pragma unroll 1
  for (int i = 1; i < STAGES - 1; i++) fetch();
  __syncthreads();

  float c[MT][NB][4];
  int slot = 0;
  auto x_of = [&](int token, int piece) { return *(const uint4*)(smem + x_at(token, piece)); };

  // The products of one unit of 16 rows, 16-byte pieces of two of which lie at `from`.
  auto multiply = [&](float (&c)[NB][4], int unit, const char* from) {
    const uint4 v0 = *(const uint4*)(from + lane * 16), v1 = *(const uint4*)(from + 512 + lane * 16);
    const u32 w[2][4] = {{v0.x, v0.y, v0.z, v0.w}, {v1.x, v1.y, v1.z, v1.w}};
    if constexpr (BITS == 16) {
#pragma unroll
      for (int n = 0; n < NB; n++) {
        const uint4 b = x_of(n * 8 + g, (unit - u0) * 4 + t);
        mma(c[n], w[0][0], w[1][0], w[0][1], w[1][1], b.x, b.y);
        mma(c[n], w[0][2], w[1][2], w[0][3], w[1][3], b.z, b.w);
      }
    } else {
      float scale[2], offset[2];
      const int byte = unit * 64 + t * 16, group = byte * 8 / BITS / IN_GROUP;
#pragma unroll
      for (int j = 0; j < 2; j++) {
        if (!GROUP) break;
        if (RECORD) {
          const char* head = from + 1024 + j * 128 + g * 16;
          const Record<RECORD ? RECORD : 16> r(*(const uint4*)head, *(const u32*)(head + (RECORD - 16) * 16 + t * 4), t);
          const int i = unit % (BITS == 4 ? 2 : 4);
          scale[j] = r.whole_scale(i), offset[j] = r.whole_offset(i);
          if (BITS == 4) offset[j] -= BASE * scale[j];
          continue;
        }
        const char* at = from + 1024 + j * 128 + lane * 4;
        scale[j] = scale_of(at, group & 1);
        offset[j] = OFFSETS ? scale_of(at + 256, group & 1) : BITS == 4 ? -8.0f * scale[j] : 0.0f;
        if (BITS == 4) offset[j] -= BASE * scale[j];
      }
      // Columns of all weights, or of the low halves; those of the high halves lie half a group behind.
      const int column = BITS == 8 ? byte : byte / (IN_GROUP / 2) * IN_GROUP + byte % (IN_GROUP / 2);
      const int piece = column / 8 - u0 * (PER_UNIT / 8);
#pragma unroll
      for (int half = 0; half < (BITS == 4 ? 2 : 1); half++) {
        uint4 b[NB][2];
#pragma unroll
        for (int n = 0; n < NB; n++)
#pragma unroll
          for (int i = 0; i < 2; i++) b[n][i] = x_of(n * 8 + g, piece + half * (IN_GROUP / 16) + i);
#pragma unroll
        for (int r = 0; r < 4; r++) {
          u32 lo[2], hi[2];
#pragma unroll
          for (int j = 0; j < 2; j++) {
            const u32 v = w[j][r];
            if (BITS == 4) {
              lo[j] = scaled(v >> 4 * half & 0x000f000f | MAGIC, scale[j], offset[j]);
              hi[j] = scaled(v >> (8 + 4 * half) & 0x000f000f | MAGIC, scale[j], offset[j]);
            } else {
              lo[j] = signed_pair(v), hi[j] = signed_pair(v >> 8);
              if (GROUP) lo[j] = scaled(lo[j], scale[j], offset[j]), hi[j] = scaled(hi[j], scale[j], offset[j]);
            }
          }
#pragma unroll
          for (int n = 0; n < NB; n++) {
            const uint4 v = b[n][r / 2];
            mma(c[n], lo[0], lo[1], hi[0], hi[1], r & 1 ? v.z : v.x, r & 1 ? v.w : v.y);
          }
        }
      }
    }
  };

#pragma unroll 1
  for (int tile = cluster; tile < TILES; tile += CLUSTERS) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int n = 0; n < NB; n++) c[m][n][0] = c[m][n][1] = c[m][n][2] = c[m][n][3] = 0;
#pragma unroll 1
    for (int unit = u0 + warp; unit < u1; unit += WARPS) {
#pragma unroll
      for (int m = 0; m < MT; m++) {
        copies_wait<STAGES - 2>();
        if (RECORD) __syncwarp();  // lanes read each other's copies; what they read last, they no longer need
        multiply(c[m], unit, ring + slot * SLOT);
        if (++slot == STAGES) slot = 0;
        fetch();
      }
    }
    if (tile != cluster) arrive(), wait_for_all();  // the sums of the tile before are added
    float4* mine = (float4*)(smem + SH_SUMS + warp * SUMS) + lane;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int n = 0; n < NB; n++) mine[(m * NB + n) * 32] = make_float4(c[m][n][0], c[m][n][1], c[m][n][2], c[m][n][3]);
    arrive();

    // This block's share of the sums: pairs of rows g and g + 8 for one token. What they meet comes meanwhile.
    int token[ITEMS], row0[ITEMS], row1[ITEMS];
    float s0[ITEMS], s1[ITEMS], before0[ITEMS], before1[ITEMS], bias0[ITEMS], bias1[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      const int item = rank * SHARE + i * THREADS + threadIdx.x, lane_of = item / 2 % 32, n = item / 64 % NB, m = item / 64 / NB;
      token[i] = i * THREADS + threadIdx.x < SHARE ? n * 8 + lane_of % 4 * 2 + item % 2 : TOKENS;
      row0[i] = tile * PER_TILE + (GATED ? m * 8 : m * 16) + lane_of / 4, row1[i] = row0[i] + (GATED ? OUT : 8);
      const bool here = token[i] < TOKENS && row0[i] < OUT, both = here && (GATED || row1[i] < OUT);
      s0[i] = !GROUP && SCALE_BYTES && here ? ((const float*)scales)[row0[i]] : 1.0f;
      s1[i] = !GROUP && SCALE_BYTES && both ? ((const float*)scales)[row1[i]] : 1.0f;
      before0[i] = AFTER == 1 && here ? to_float(residual[(size_t)token[i] * OUT + row0[i]]) : 0.0f;
      before1[i] = AFTER == 1 && both ? to_float(residual[(size_t)token[i] * OUT + row1[i]]) : 0.0f;
      bias0[i] = BIAS && here ? to_float(bias[row0[i]]) : 0.0f;
      bias1[i] = BIAS && both ? to_float(bias[row1[i]]) : 0.0f;
    }
    wait_for_all();
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      if (token[i] >= TOKENS || row0[i] >= OUT) continue;
      const int item = rank * SHARE + i * THREADS + threadIdx.x, at = item / 2 * 4 + item % 2;
      float a = 0, b = 0;
#pragma unroll
      for (int block = 0; block < CL; block++) {
        const float* own = (const float*)(smem + SH_SUMS);
        const float* from = (CL > 1 ? peer(own, block) : own) + at;
#pragma unroll
        for (int k = 0; k < WARPS; k++) a += from[k * (SUMS / 4)], b += from[k * (SUMS / 4) + 2];
      }
      a = biased(a * s0[i], bias0[i]) + before0[i], b = biased(b * s1[i], bias1[i]) + before1[i];
      const size_t to = (size_t)token[i] * OUT + row0[i];
      if (GATED && ACTIVATION == SILU) a = a / (1.0f + exp2_fast(-1.44269504f * a)) * b;
      else if (GATED) a = activated<ACTIVATION>(a) * b;
      if (WIDE) ((float*)out)[to] = a;
      else ((u16*)out)[to] = (u16)pack(a, 0.0f);
      if (GATED || row1[i] >= OUT) continue;
      if (WIDE) ((float*)out)[to + 8] = b;
      else ((u16*)out)[to + 8] = (u16)pack(b, 0.0f);
    }
  }
  if (CL > 1) arrive(), wait_for_all();  // no block ends while others read its sums
}
