// ---- the products of a unit ----------------------------------------------------------------------------

__device__ __forceinline__ float scale_at(const char* p, int i, int bytes) {
  return bytes == 2 ? half_to_float(((const u16*)p)[i]) : ((const float*)p)[i];
}

// Where the j-th unit of a warp lies in a slice: RUN of them lie side by side.
template <class FM> __device__ __forceinline__ int unit_of(int member, int j) {
  return ((member + WPG * (j / FM::RUN)) * FM::RUN + j % FM::RUN) * FM::UNIT;
}

// A lane's part of the products of its tile's rows g and g + 8 with the activations. `load` takes one unit of all
// rows, the warp's j-th: at byte u of the slice in `slot` that begins at byte `off` of the rows. `add` multiplies it.
// `row` is the whole sum of row g + 8 * half over the lanes of a row, in ROUNDS: that of text i in that lane of the row's
// four whose `text` in that round is i.
template <class FM, int K, int KIND = FM::AS_FLOATS ? (FM::GROUP ? FLOAT_GROUPS : FLOATS) :
                                    (TEXTS > 1 && FM::KIND == GROUPS && !FM::RECORD) ? SIDE_BY_SIDE : FM::KIND> struct Sums;

// The 16-row operand takes two halves of 8 rows' weights: registers a0, a2 hold some of a row's weights, a1, a3
// others; even columns of the other operand hold the activations of the former, odd columns those of the
// latter. c[0] and c[3] are the two sums. Each text has two columns: lane t of a row holds the sums of text t. More
// than four texts take several products.
template <class FM, int K> struct Sums<FM, K, PLAIN> {
  using R = Rows<FM, K>;
  static constexpr bool SAME = NG % R::S == 0;  // every slot of a group wants the same activations: they stay in registers
  static constexpr int CHAINS = R::MOST > 4 ? 4 : 2;  // a product waits for the one before it in its chain
  static constexpr int ROUNDS = TEXTS > 4 ? TEXTS / 4 : 1;
  float c[ROUNDS][R::HALVES][CHAINS][4] = {};
  uint2 kept[ROUNDS][SAME ? R::MOST : 1];
  __device__ __forceinline__ Sums(int off) {
    const int member = (threadIdx.x >> 5) % WPG;
#pragma unroll
    for (int j = 0; SAME && j < R::MOST; j++)
#pragma unroll
      for (int s = 0; s < ROUNDS; s++) kept[s][j] = activations(off, (member + WPG * j) * FM::UNIT, s);
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < ROUNDS * R::HALVES * CHAINS * 4; i++)
      c[i / 4 / CHAINS / R::HALVES][i / 4 / CHAINS % R::HALVES][i / 4 % CHAINS][i % 4] = 0;
  }
  struct Unit {
    uint4 w[R::HALVES];
    uint2 x[ROUNDS];
  };
  __device__ __forceinline__ static uint2 activations(int off, int u, int s) {  // `Store` put them in this order
    const int text = TEXTS == 1 ? 0 : 4 * s + (threadIdx.x >> 3 & (TEXTS > 4 ? 3 : TEXTS - 1));
    return *(const uint2*)(smem + OFF_X + text * X<FM, K>::TEXT + off + u + (threadIdx.x & 3) * 16 + (threadIdx.x >> 2 & 1) * 8);
  }
  __device__ __forceinline__ static Unit load(const char* slot, int off, int u, const char* (&)[2]) {
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
    Unit unit;
#pragma unroll
    for (int s = 0; !SAME && s < ROUNDS; s++) unit.x[s] = activations(off, u, s);
#pragma unroll
    for (int h = 0; h < R::HALVES; h++) unit.w[h] = *(const uint4*)(slot + (h * 8 + g) * R::STRIDE + u + t * 16);
    return unit;
  }
  __device__ __forceinline__ void add(const Unit& unit, int, int, int j) {
#pragma unroll
    for (int i = 0; i < ROUNDS * R::HALVES; i++) {
      const int s = i / R::HALVES, h = i % R::HALVES;
      const uint2 x = SAME ? kept[s][j] : unit.x[s];
      mma(c[s][h][j % CHAINS], unit.w[h].x, unit.w[h].y, unit.w[h].z, unit.w[h].w, x.x, x.y);
    }
  }
  __device__ __forceinline__ static int text(int t, int s) { return t < TEXTS ? t + 4 * s : -1; }
  __device__ __forceinline__ float row(int half, int s) const {
    const auto& of = c[s][half];
    float even = of[0][0] + of[1][0], odd = of[0][3] + of[1][3];
    if (CHAINS > 2) even += of[CHAINS - 2][0] + of[CHAINS - 1][0], odd += of[CHAINS - 2][3] + of[CHAINS - 1][3];
    return even + odd;
  }
};

// One scale a row: columns 0, 1, 2 hold the limbs, of a second text 4, 5, 6; two more texts want products of their own. Of eight,
// weights become floats.
template <class FM, int K> struct Sums<FM, K, WHOLE> {
  using R = Rows<FM, K>;
  static constexpr int SETS = (TEXTS + 1) / 2, ROUNDS = 1;  // set s holds texts s and s + SETS
  int c[SETS][2][4] = {};
  __device__ __forceinline__ Sums(int) {}
  __device__ __forceinline__ void clear() { *this = Sums(0); }
  struct Unit { uint4 a, b, x[SETS]; };
  __device__ __forceinline__ static uint4 activations(int at, int s) {
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3, second = TEXTS == 1 ? 0 : (g >> 2) * SETS * X<FM, K>::TEXT;
    return *(const uint4*)(smem + OFF_X + second + min(g & 3, 2) * X<FM, K>::STRIDE + at + t * 16 + s * X<FM, K>::TEXT);
  }
  __device__ __forceinline__ static Unit load(const char* slot, int off, int u, const char* (&)[2]) {
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
    const char* row = slot + g * R::STRIDE + u + t * 16;
    Unit unit = {*(const uint4*)row, *(const uint4*)(row + 8 * R::STRIDE)};
#pragma unroll
    for (int s = 0; s < SETS; s++) unit.x[s] = activations(off + u, s);
    return unit;
  }
  __device__ __forceinline__ void add(const Unit& unit, int, int, int) {
    const uint4 a = unit.a, b = unit.b;
#pragma unroll
    for (int s = 0; s < SETS; s++) {
      const uint4 x = unit.x[s];
      mma_bytes<true>(c[s][0], a.x, b.x, a.y, b.y, x.x, x.y);
      mma_bytes<true>(c[s][1], a.z, b.z, a.w, b.w, x.z, x.w);
    }
  }
  __device__ __forceinline__ static int text(int t, int round) {
    if (TEXTS == 2) return t & 1 ? -1 : t >> 1;
    return t < TEXTS ? 2 * round + (t & 1) + (t >> 1) * SETS : -1;
  }
  __device__ __forceinline__ float row(int half, int round) const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < (SETS < 2 ? 1 : 2); i++) {
      const int s = 2 * round + i;
      const float first = (float)(c[s][0][2 * half] + c[s][1][2 * half]), second = (float)(c[s][0][2 * half + 1] + c[s][1][2 * half + 1]);
      const float v = (threadIdx.x & (TEXTS == 1 ? 3 : 1)) == 0 ? first * 65536.0f + second * 256.0f : first;
      const float both = v + __shfl_xor_sync(~0u, v, 1);
      if (i == 0 || threadIdx.x & 1) sum = both;
    }
    const int own = TEXTS == 1 ? 0 : TEXTS == 2 ? threadIdx.x >> 1 & 1 : text(threadIdx.x & 3, round);
    return sum * *(const float*)(smem + OFF_MAX + (NW + own) * 4);
  }
};

// A unit is four groups; lane t of a row holds the weights of group t. Columns 2 t and 2 t + 1 hold the limbs of
// that group's activations, zero in every other lane's part: so lane t ends up with the sums of group t.
template <class FM, int K> struct Sums<FM, K, GROUPS> {
  using R = Rows<FM, K>;
  static constexpr int CHUNKS = FM::GROUP * FM::BITS / 128;  // of 16 bytes per lane and row
  struct Activations {  // of a unit
    uint4 x[CHUNKS][2];
    float2 info;
  };
  float sum[TEXTS][2] = {};
  using RecordOf = Record<FM::RECORD ? FM::RECORD : 16>;  // of each row the one whose units are being multiplied
  RecordOf record[2] = {RecordOf({}, 0, 0), RecordOf({}, 0, 0)};
  float scaled[TEXTS][2], offset[TEXTS][2];
  __device__ __forceinline__ Sums(int) {}
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int text = 0; text < TEXTS; text++) sum[text][0] = sum[text][1] = 0;
  }
  __device__ __forceinline__ static Activations activations(int at, int j, int text) {  // byte `at` of the rows, the j-th unit
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3, group = at * 8 / FM::BITS / FM::GROUP + t;
    const char* x = smem + OFF_X + text * X<FM, K>::TEXT + (g & 1) * X<FM, K>::STRIDE + group * FM::GROUP;
    Activations a;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      a.x[i][0] = a.x[i][1] = make_uint4(0, 0, 0, 0);
      if (g >> 1 == t) {
        a.x[i][0] = *(const uint4*)(x + i * FM::X_CHUNK);
        if (FM::BITS == 4) a.x[i][1] = *(const uint4*)(x + i * FM::X_CHUNK + 16);
      }
    }
    a.info = *(const float2*)(smem + OFF_X + text * X<FM, K>::TEXT + X<FM, K>::INFO + group * 8);
    if (FM::RECORD) a.info.x *= RecordOf::scale_step(j % FM::RUN), a.info.y *= RecordOf::offset_step(j % FM::RUN);
    return a;
  }
  struct Unit {
    uint4 a[CHUNKS], b[CHUNKS];
    float scale[2], offset[2];
    const char* records[2];
  };
  __device__ __forceinline__ static Unit load(const char* slot, int, int u, const char* (&scales)[2]) {
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3, in_slice = u * 8 / FM::BITS / FM::GROUP + t;
    const char* row = slot + g * R::STRIDE + u + t * CHUNKS * 16;
    Unit unit;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      unit.a[i] = *(const uint4*)(row + i * 16);
      unit.b[i] = *(const uint4*)(row + 8 * R::STRIDE + i * 16);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      if constexpr (FM::RECORD) {
        unit.records[h] = scales[h] + in_slice / (IN_RECORD / FM::GROUP) * FM::RECORD;
      } else {
        unit.scale[h] = scale_at(scales[h], in_slice, FM::SB);
        unit.offset[h] = FM::OFFSETS ? scale_at(scales[h] + R::SCALE_BYTES, in_slice, FM::SB) : 0.0f;
      }
    }
    return unit;
  }
  __device__ __forceinline__ void add(const Unit& unit, int off, int u, int j) {
#pragma unroll
    for (int text = 0; text < TEXTS; text++) add(unit, off, u, j, text);
  }
  __device__ __forceinline__ void add(const Unit& unit, int off, int u, int j, int text) {
    const int t = threadIdx.x & 3, group = (off + u) * 8 / FM::BITS / FM::GROUP + t;
    const Activations with = activations(off + u, j, text);
    int c[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      const uint4 a = unit.a[i], b = unit.b[i];
      const uint4 x0 = with.x[i][0], x1 = with.x[i][1];
      if constexpr (FM::BITS == 8) {
        mma_bytes<true>(c, a.x, b.x, a.y, b.y, x0.x, x0.y);
        mma_bytes<true>(c, a.z, b.z, a.w, b.w, x0.z, x0.w);
      } else {  // the low halves of a group's bytes are its first half; `Store` put their activations side by side
        constexpr u32 LOW = 0x0F0F0F0Fu;
        mma_bytes<false>(c, a.x & LOW, b.x & LOW, a.x >> 4 & LOW, b.x >> 4 & LOW, x0.x, x0.y);
        mma_bytes<false>(c, a.y & LOW, b.y & LOW, a.y >> 4 & LOW, b.y >> 4 & LOW, x0.z, x0.w);
        mma_bytes<false>(c, a.z & LOW, b.z & LOW, a.z >> 4 & LOW, b.z >> 4 & LOW, x1.x, x1.y);
        mma_bytes<false>(c, a.w & LOW, b.w & LOW, a.w >> 4 & LOW, b.w >> 4 & LOW, x1.z, x1.w);
      }
    }
    if (K / FM::GROUP % 4 && group >= K / FM::GROUP) return;
    const float2 info = with.info;
    if constexpr (FM::RECORD) {
      const int i = j % FM::RUN;
#pragma unroll
      for (int h = 0; h < 2; h++) {
        if (i == 0 && text == 0) record[h] = RecordOf::of(unit.records[h], t);
        if (i == 0) scaled[text][h] = offset[text][h] = 0;
        scaled[text][h] += record[h].scale(i) * (info.x * (float)(c[2 * h] * 256 + c[2 * h + 1]));
        offset[text][h] += record[h].offset(i) * info.y;
        if (i == FM::RUN - 1) sum[text][h] += record[h].scale_unit * scaled[text][h] + record[h].offset_unit * offset[text][h];
      }
      return;
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float v = info.x * (float)(c[2 * h] * 256 + c[2 * h + 1]);
      if (FM::BITS == 4 && !FM::OFFSETS) v -= 8.0f * info.y;
      sum[text][h] += unit.scale[h] * v;
      if (FM::OFFSETS) sum[text][h] += unit.offset[h] * info.y;
    }
  }
  static constexpr int ROUNDS = TEXTS > 4 ? TEXTS / 4 : 1;
  __device__ __forceinline__ static int text(int t, int s) { return t < TEXTS ? t + 4 * s : -1; }
  __device__ __forceinline__ float row(int half, int s) const {
    float own = 0;
#pragma unroll
    for (int i = 0; i < (TEXTS < 4 ? TEXTS : 4); i++) {
      const int text = i + 4 * s;
      float v = sum[text][half] + __shfl_xor_sync(~0u, sum[text][half], 1);
      v += __shfl_xor_sync(~0u, v, 2);
      if (i == 0 || (threadIdx.x & 3) == i) own = v;
    }
    return own;
  }
};

// Several texts: a product takes one group, whose weights lie in all four lanes of a row, and columns 2 t and 2 t + 1 hold the
// limbs of text t. So lane t ends up with the sums of text t.
template <class FM, int K> struct Sums<FM, K, SIDE_BY_SIDE> {
  using R = Rows<FM, K>;
  static constexpr int WORDS = FM::GROUP * FM::BITS / 128;  // of a group and row, in each lane
  static constexpr int ROUNDS = TEXTS > 4 ? TEXTS / 4 : 1;
  float sum[ROUNDS][2] = {};
  __device__ __forceinline__ Sums(int) {}
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int s = 0; s < ROUNDS; s++) sum[s][0] = sum[s][1] = 0;
  }
  struct Unit {
    u32 w[4][WORDS][2];  // of rows g and g + 8
    int scales[2];       // where they lie
  };
  __device__ __forceinline__ static Unit load(const char* slot, int, int u, const char* (&scales)[2]) {
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
    Unit unit;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const char* row = slot + (h * 8 + g) * R::STRIDE + u + t * 4;
#pragma unroll
      for (int i = 0; i < 4 * WORDS; i++) unit.w[i / WORDS][i % WORDS][h] = *(const u32*)(row + i * 16);
      unit.scales[h] = (int)(scales[h] - smem) + u * 8 / FM::BITS / FM::GROUP * FM::SB;
    }
    return unit;
  }
  // What the four groups have, of a list: scales or offsets.
  __device__ __forceinline__ static void read(float (&of)[4], int at) {
    if constexpr (R::PER_ROW && FM::SB == 4) {
      const float4 v = *(const float4*)(smem + at);
      of[0] = v.x, of[1] = v.y, of[2] = v.z, of[3] = v.w;
    } else if constexpr (R::PER_ROW) {
      const uint2 v = *(const uint2*)(smem + at);
      of[0] = half_to_float((u16)v.x), of[1] = half_to_float((u16)(v.x >> 16));
      of[2] = half_to_float((u16)v.y), of[3] = half_to_float((u16)(v.y >> 16));
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) of[i] = scale_at(smem + at, i, FM::SB);
    }
  }
  __device__ __forceinline__ static void multiply(int (&c)[4], const u32 (&w)[WORDS][2], const char* x) {
    const int t = threadIdx.x & 3;
    constexpr u32 LOW = 0x0F0F0F0Fu;
    if constexpr (FM::BITS == 4) {
#pragma unroll
      for (int q = 0; q < WORDS; q++) {  // the low halves of a group's bytes are its first half, as `Store` has it
        const uint2 b = *(const uint2*)(x + q * 32 + t * 8);
        mma_bytes<false>(c, w[q][0] & LOW, w[q][1] & LOW, w[q][0] >> 4 & LOW, w[q][1] >> 4 & LOW, b.x, b.y);
      }
    } else {
#pragma unroll
      for (int q = 0; q < WORDS; q += 2) {
        constexpr bool BOTH = WORDS > 1;
        const int next = BOTH ? q + 1 : q;
        const u32 b0 = *(const u32*)(x + q * 16 + t * 4), b1 = BOTH ? *(const u32*)(x + next * 16 + t * 4) : 0;
        mma_bytes<true>(c, w[q][0], w[q][1], BOTH ? w[next][0] : 0, BOTH ? w[next][1] : 0, b0, b1);
      }
    }
  }
  __device__ __forceinline__ void add(const Unit& unit, int off, int u, int) {
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3, first = (off + u) * 8 / FM::BITS;  // weight
    float scale[2][4], offset[2][4];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      read(scale[h], unit.scales[h]);
      if (FM::OFFSETS) read(offset[h], unit.scales[h] + R::SCALE_BYTES);
    }
#pragma unroll
    for (int s = 0; s < ROUNDS; s++) {
      const int column = 4 * s + (g >> 1 & (TEXTS > 4 ? 3 : TEXTS - 1)), own = 4 * s + (t & (TEXTS > 4 ? 3 : TEXTS - 1));
      const char* x = smem + OFF_X + column * X<FM, K>::TEXT + (g & 1) * X<FM, K>::STRIDE + first;
      int c[4][4] = {};
#pragma unroll
      for (int i = 0; i < 4; i++) multiply(c[i], unit.w[i], x + i * FM::GROUP);
      const char* infos = smem + OFF_X + own * X<FM, K>::TEXT + X<FM, K>::INFO + first / FM::GROUP * 8;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (K / FM::GROUP % 4 && first / FM::GROUP + i >= K / FM::GROUP) break;
        const float2 info = *(const float2*)(infos + i * 8);
#pragma unroll
        for (int h = 0; h < 2; h++) {
          float v = info.x * (float)(c[i][2 * h] * 256 + c[i][2 * h + 1]);
          if (FM::BITS == 4 && !FM::OFFSETS) v -= 8.0f * info.y;
          sum[s][h] += scale[h][i] * v;
          if (FM::OFFSETS) sum[s][h] += offset[h][i] * info.y;
        }
      }
    }
  }
  __device__ __forceinline__ static int text(int t, int s) { return t < TEXTS ? t + 4 * s : -1; }
  __device__ __forceinline__ float row(int half, int s) const { return sum[s][half]; }
};

// ---- several texts: weights become 16-bit floats -------------------------------------------------------

// Bytes 0 and 2 of a word, signed, as float16 (HALF) or bfloat16.
template <bool HALF> __device__ __forceinline__ u32 signed_bytes(u32 w) {
  if constexpr (HALF) return minus_half(w & 0x00ff00ffu ^ 0x64806480u, 0x64806480u);
  else return minus_pair(w & 0x007f007fu | 0x43004300u, w & 0x00800080u | 0x43004300u);
}
// The I-th lowest four bits of a word's halves, and 16.
template <bool HALF, int I> __device__ __forceinline__ u32 nibbles(u32 w) {
  constexpr int LEFT = (HALF ? 6 : 3) - 4 * I;
  return (LEFT < 0 ? w >> cmax(-LEFT, 0) : w << cmax(LEFT, 0)) & (HALF ? 0x03c003c0u : 0x00780078u) | (HALF ? 0x4c004c00u : 0x41804180u);
}
template <bool HALF> __device__ __forceinline__ void mma_as(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  if constexpr (HALF) mma_half(c, a0, a1, a2, a3, b0, b1);
  else mma(c, a0, a1, a2, a3, b0, b1);
}

// Each text has a column, of fewer than eight several: lane t of a row ends up with the sums of texts 2 t and 2 t + 1.
struct ByColumn {
  static constexpr int ROUNDS = 2;
  __device__ __forceinline__ static int text(int t, int s) { return 2 * t + s < TEXTS ? 2 * t + s : -1; }
  __device__ __forceinline__ static int column() { return threadIdx.x >> 2 & 7 & (TEXTS - 1); }  // the text of this lane's
};

// One scale a row: a lane has 16 bytes of a row's unit.
template <class FM, int K> struct Sums<FM, K, FLOATS> : ByColumn {
  using R = Rows<FM, K>;
  float c[2][4] = {};  // two chains
  __device__ __forceinline__ Sums(int) {}
  __device__ __forceinline__ void clear() { *this = Sums(0); }
  struct Unit { uint4 a, b; };
  __device__ __forceinline__ static Unit load(const char* slot, int, int u, const char* (&)[2]) {
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
    const char* row = slot + g * R::STRIDE + u + t * 16;
    return {*(const uint4*)row, *(const uint4*)(row + 8 * R::STRIDE)};
  }
  __device__ __forceinline__ void word(int chain, u32 a, u32 b, u32 x, u32 y) {
    constexpr bool HALF = FM::HALF;
    mma_as<HALF>(c[chain], signed_bytes<HALF>(a), signed_bytes<HALF>(b), signed_bytes<HALF>(a >> 8), signed_bytes<HALF>(b >> 8), x, y);
  }
  __device__ __forceinline__ void add(const Unit& unit, int off, int u, int) {
    const char* from = smem + OFF_X + column() * X<FM, K>::TEXT + (off + u) * 2 + (threadIdx.x & 3) * 16;
    const uint4 x = *(const uint4*)from, y = *(const uint4*)(from + 64);
    word(0, unit.a.x, unit.b.x, x.x, x.y), word(1, unit.a.y, unit.b.y, x.z, x.w);
    word(0, unit.a.z, unit.b.z, y.x, y.y), word(1, unit.a.w, unit.b.w, y.z, y.w);
  }
  __device__ __forceinline__ float row(int half, int s) const { return c[0][2 * half + s] + c[1][2 * half + s]; }
};

// A unit is four groups; a lane has a few weights of each. Products with ones are the sums of a group's activations, which offsets want.
template <class FM, int K> struct Sums<FM, K, FLOAT_GROUPS> : ByColumn {
  static_assert(!FM::RECORD, "eight texts' records are slower than product.cu");
  using R = Rows<FM, K>;
  using Beside = Sums<FM, K, SIDE_BY_SIDE>;  // has a unit's weights in the same lanes
  using Unit = typename Beside::Unit;
  static constexpr bool SUMMED = FM::BITS == 4 || FM::OFFSETS;
  float sum[2][2] = {};
  __device__ __forceinline__ Sums(int) {}
  __device__ __forceinline__ void clear() { *this = Sums(0); }
  __device__ __forceinline__ static Unit load(const char* slot, int off, int u, const char* (&scales)[2]) { return Beside::load(slot, off, u, scales); }
  // What the four groups have: scale, and what their activations' sum is to be multiplied with.
  __device__ __forceinline__ static void read(float (&scale)[4], float (&offset)[4], int at) {
    constexpr float BASE = FM::BITS == 8 ? 0.0f : FM::OFFSETS ? 16.0f : 24.0f;
    Beside::read(scale, at);
    if (FM::OFFSETS) Beside::read(offset, at + R::SCALE_BYTES);
#pragma unroll
    for (int i = 0; i < 4; i++) offset[i] = (FM::OFFSETS ? offset[i] : 0.0f) - BASE * scale[i];
  }
  __device__ __forceinline__ static void multiply(float (&c)[4], float (&ones)[4], const u32 (&w)[Beside::WORDS][2], const char* x) {
    constexpr bool HALF = FM::HALF;
    constexpr u32 ONES = HALF ? 0x3c003c00 : 0x3f803f80;
    const auto with = [&](u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
      mma_as<HALF>(c, a0, a1, a2, a3, b0, b1);
      if (SUMMED) mma_as<HALF>(ones, ONES, ONES, ONES, ONES, b0, b1);
    };
#pragma unroll
    for (int q = 0; q < Beside::WORDS; q++) {
      const u32 a = w[q][0], b = w[q][1];
      if constexpr (FM::BITS == 4) {
        const uint4 v = *(const uint4*)(x + q * 64);
        with(nibbles<HALF, 0>(a), nibbles<HALF, 0>(b), nibbles<HALF, 2>(a), nibbles<HALF, 2>(b), v.x, v.y);
        with(nibbles<HALF, 1>(a), nibbles<HALF, 1>(b), nibbles<HALF, 3>(a), nibbles<HALF, 3>(b), v.z, v.w);
      } else {
        const uint2 v = *(const uint2*)(x + q / 2 * 64 + q % 2 * 8);
        with(signed_bytes<HALF>(a), signed_bytes<HALF>(b), signed_bytes<HALF>(a >> 8), signed_bytes<HALF>(b >> 8), v.x, v.y);
      }
    }
  }
  __device__ __forceinline__ void add(const Unit& unit, int off, int u, int) {
    const int first = (off + u) * 8 / FM::BITS;  // weight
    float scale[2][4], offset[2][4];
#pragma unroll
    for (int h = 0; h < 2; h++) read(scale[h], offset[h], unit.scales[h]);
    const char* x = smem + OFF_X + column() * X<FM, K>::TEXT + (threadIdx.x & 3) * 16;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int k = first + i * FM::GROUP;
      if (K / FM::GROUP % 4 && k >= K) break;
      float c[4] = {}, ones[4] = {};
      multiply(c, ones, unit.w[i], x + (FM::GROUP == 16 ? k / 32 * 64 + k / 16 % 2 * 8 : k * 2));
#pragma unroll
      for (int e = 0; e < 4; e++) {
        sum[e / 2][e % 2] += scale[e / 2][i] * c[e];
        if (SUMMED) sum[e / 2][e % 2] += offset[e / 2][i] * ones[e % 2];
      }
    }
  }
  __device__ __forceinline__ float row(int half, int s) const { return sum[half][s]; }
};
