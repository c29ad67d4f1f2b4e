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
// `row` is the whole sum of row g + 8 * half over the lanes of a row, right in the first of them.
template <class FM, int K, int KIND = FM::KIND> struct Sums;

// The 16-row operand takes two halves of 8 rows' weights: registers a0, a2 hold some of a row's weights, a1, a3
// others; even columns of the other operand hold the activations of the former, odd columns those of the
// latter. c[0] and c[3] are the two sums.
template <class FM, int K> struct Sums<FM, K, PLAIN> {
  using R = Rows<FM, K>;
  static constexpr bool SAME = NG % R::S == 0;  // every slot of a group wants the same activations: they stay in registers
  static constexpr int CHAINS = R::MOST > 4 ? 4 : 2;  // a product waits for the one before it in its chain
  float c[R::HALVES][CHAINS][4] = {};
  uint2 kept[SAME ? R::MOST : 1];
  __device__ __forceinline__ Sums(int off) {
    const int member = (threadIdx.x >> 5) % WPG;
#pragma unroll
    for (int j = 0; SAME && j < R::MOST; j++) kept[j] = activations(off, (member + WPG * j) * FM::UNIT);
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < R::HALVES * CHAINS * 4; i++) c[i / 4 / CHAINS][i / 4 % CHAINS][i % 4] = 0;
  }
  struct Unit {
    uint4 w[R::HALVES];
    uint2 x;
  };
  __device__ __forceinline__ static uint2 activations(int off, int u) {  // `Store` put them in this order
    return *(const uint2*)(smem + OFF_X + off + u + (threadIdx.x & 3) * 16 + (threadIdx.x >> 2 & 1) * 8);
  }
  __device__ __forceinline__ static Unit load(const char* slot, int off, int u, const char* (&)[2]) {
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
    Unit unit;
    if (!SAME) unit.x = activations(off, u);
#pragma unroll
    for (int h = 0; h < R::HALVES; h++) unit.w[h] = *(const uint4*)(slot + (h * 8 + g) * R::STRIDE + u + t * 16);
    return unit;
  }
  __device__ __forceinline__ void add(const Unit& unit, int, int, int j) {
    const uint2 x = SAME ? kept[j] : unit.x;
#pragma unroll
    for (int h = 0; h < R::HALVES; h++) mma(c[h][j % CHAINS], unit.w[h].x, unit.w[h].y, unit.w[h].z, unit.w[h].w, x.x, x.y);
  }
  __device__ __forceinline__ float row(int half) const {
    float even = c[half][0][0] + c[half][1][0], odd = c[half][0][3] + c[half][1][3];
    if (CHAINS > 2) even += c[half][CHAINS - 2][0] + c[half][CHAINS - 1][0], odd += c[half][CHAINS - 2][3] + c[half][CHAINS - 1][3];
    return even + odd;
  }
};

// One scale a row: columns 0, 1, 2 hold the limbs.
template <class FM, int K> struct Sums<FM, K, WHOLE> {
  using R = Rows<FM, K>;
  int c[2][4] = {};
  __device__ __forceinline__ Sums(int) {}
  __device__ __forceinline__ void clear() { *this = Sums(0); }
  struct Unit { uint4 a, b, x; };
  __device__ __forceinline__ static Unit load(const char* slot, int off, int u, const char* (&)[2]) {
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
    const char* row = slot + g * R::STRIDE + u + t * 16;
    const char* x = smem + OFF_X + min(g & 3, 2) * X<FM, K>::STRIDE + off + u + t * 16;
    return {*(const uint4*)row, *(const uint4*)(row + 8 * R::STRIDE), *(const uint4*)x};
  }
  __device__ __forceinline__ void add(const Unit& unit, int, int, int) {
    const uint4 a = unit.a, b = unit.b, x = unit.x;
    mma_bytes<true>(c[0], a.x, b.x, a.y, b.y, x.x, x.y);
    mma_bytes<true>(c[1], a.z, b.z, a.w, b.w, x.z, x.w);
  }
  __device__ __forceinline__ float row(int half) const {
    const float first = (float)(c[0][2 * half] + c[1][2 * half]), second = (float)(c[0][2 * half + 1] + c[1][2 * half + 1]);
    const float v = (threadIdx.x & 3) == 0 ? first * 65536.0f + second * 256.0f : first;
    return (v + __shfl_xor_sync(~0u, v, 1)) * *(const float*)(smem + OFF_MAX + NW * 4);
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
  static constexpr bool SAME = R::S == 1 && R::MOST * FM::GROUP <= 128;  // every tile wants the same: they stay in registers
  Activations kept[SAME ? R::MOST : 1];
  float sum[2] = {};
  using RecordOf = Record<FM::RECORD ? FM::RECORD : 16>;  // of each row the one whose units are being multiplied
  RecordOf record[2] = {RecordOf({}, 0, 0), RecordOf({}, 0, 0)};
  float scaled[2], offset[2];
  __device__ __forceinline__ Sums(int) {
    const int member = (threadIdx.x >> 5) % WPG;
#pragma unroll
    for (int j = 0; SAME && j < R::MOST; j++) kept[j] = activations(unit_of<FM>(member, j), j);
  }
  __device__ __forceinline__ void clear() { sum[0] = sum[1] = 0; }
  __device__ __forceinline__ static Activations activations(int at, int j) {  // byte `at` of the rows, the j-th unit
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3, group = at * 8 / FM::BITS / FM::GROUP + t;
    const char* x = smem + OFF_X + (g & 1) * X<FM, K>::STRIDE + group * FM::GROUP;
    Activations a;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      a.x[i][0] = a.x[i][1] = make_uint4(0, 0, 0, 0);
      if (g >> 1 == t) {
        a.x[i][0] = *(const uint4*)(x + i * FM::X_CHUNK);
        if (FM::BITS == 4) a.x[i][1] = *(const uint4*)(x + i * FM::X_CHUNK + 16);
      }
    }
    a.info = *(const float2*)(smem + OFF_X + X<FM, K>::INFO + group * 8);
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
    const int t = threadIdx.x & 3, group = (off + u) * 8 / FM::BITS / FM::GROUP + t;
    const Activations& with = SAME ? kept[j] : kept[0] = activations(off + u, j);
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
        if (i == 0) record[h] = RecordOf::of(unit.records[h], t), scaled[h] = offset[h] = 0;
        scaled[h] += record[h].scale(i) * (info.x * (float)(c[2 * h] * 256 + c[2 * h + 1]));
        offset[h] += record[h].offset(i) * info.y;
        if (i == FM::RUN - 1) sum[h] += record[h].scale_unit * scaled[h] + record[h].offset_unit * offset[h];
      }
      return;
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float v = info.x * (float)(c[2 * h] * 256 + c[2 * h + 1]);
      if (FM::BITS == 4 && !FM::OFFSETS) v -= 8.0f * info.y;
      sum[h] += unit.scale[h] * v;
      if (FM::OFFSETS) sum[h] += unit.offset[h] * info.y;
    }
  }
  __device__ __forceinline__ float row(int half) const {
    const float v = sum[half] + __shfl_xor_sync(~0u, sum[half], 1);
    return v + __shfl_xor_sync(~0u, v, 2);
  }
};

