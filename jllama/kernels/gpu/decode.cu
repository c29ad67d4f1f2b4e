// One decoding step of a Llama model for one sequence, as one persistent kernel: token in, logits out.
//
// One block per multiprocessor. In each block NW consumer warps compute and PW producer warps stream
// this block's share of every weight, stage after stage, into a ring in shared memory. What to stream does
// not depend on activations, so the memory bus stays busy while the blocks wait for each other.
//
// Blocks exchange activations through words of 8 bytes, {two 16-bit values, tag}: a reader polls the data
// itself, so a hand-over costs one trip through the L2 cache and no barrier. The tag is new in every layer
// of every launch, and every stage needs all of the stage before it, so one buffer per stage is enough: a
// word is rewritten only after all of its readers have written something that the writer has read.
// (That needs every block to own work in every stage: the host chooses the number of blocks so.)
//
// The products run on the tensor cores with the weights as the 16-row operand; the 8 columns of the other
// operand have room for more than one activation vector. For weights of 8 and 4 bits it is the integer cores:
// the activations become fixed-point numbers of 16 bits, measured by the largest of 128 neighbours, or of 23 bits,
// measured by the largest of all (the 16-bit floats that they were had 8 or 11 bits), whose bytes ("limbs") lie in columns of their own, and so do those of four groups of weights: one product
// keeps apart what is scaled apart. Weights then need no conversion at all, or one `and` a byte.
//
// The host puts before this text: the sizes D F N K_ G H V L, EPS, ROPE_SCALE, NCTA, SRB (bytes of a row per ring slot),
// NSLOT (a multiple of NG), SLOT (bytes), NW (consumer warps), NG (groups of them), PW (producer
// warps), LAG (slots on their way at most), TC (cached tokens per block and turn),
// SHARED (bytes), the formats FMT_* = bits, group, scale bytes, offsets, KERNEL_PARAMS and LOAD_TABLE (the pointers;
// see plan.py), then primitives.cu.

#define NT (NW * 32)          // consumer threads
#define WPG (NW / NG)         // warps per group: a group takes every NG-th slot of the ring
#define TPO (NW / 4)          // threads that finish an output
#define PART_ROWS (NT / TPO)  // rows between two reductions across warps
static_assert(4 % PW == 0, "producers share the rows of a tile evenly");
#define MAXP (NCTA / K_)
#define N_H (N * H)
#define QKV_ROWS (K_ * (G + 2) * H)

// Slots of the pointer table in shared memory.
// A weight has three: values, scales, offsets.
enum { T_TOKEN, T_LENGTH, T_FREQUENCIES, T_LIMITS = 4, T_NORM, T_LOGITS, T_EMBED, T_HEAD = 10, T_LAYERS = 16 };
enum { Y_NORM1, Y_NORM2, Y_KEYS, Y_VALUES, Y_QKV, Y_O = 7, Y_GU = 10, Y_DOWN = 13, Y_COUNT = 16 };

constexpr int TS = TC < SLOT / (2 * H) / 16 * 16 ? TC : SLOT / (2 * H) / 16 * 16;  // cached tokens per slot
constexpr int QS = H * 2 + 16;  // bytes between rows of q
constexpr int TW = TC > 8 * NW ? 16 : 8;  // tokens that a warp attends to at a time
constexpr int AW = TC / TW;               // warps that attend
constexpr int A_Q = 0, A_KV = 16 * QS, A_M = A_KV + H * 4, A_L = A_M + AW * 64, A_NEW = A_L + AW * 64;
constexpr int A_O = A_NEW + 64, A_BYTES = A_O + AW * G * H * 4;
constexpr int C_BYTES = (NT / H) * (H + 2) * 4;  // the combination of splits

__device__ u32 g_epoch;
__device__ __align__(16) u64 ll_qkv[QKV_ROWS / 2];
__device__ __align__(16) u64 ll_mix[N_H / 2];
__device__ __align__(16) u64 ll_x1[D / 2];
__device__ __align__(16) u64 ll_x2[D / 2];
__device__ __align__(16) u64 ll_h[F / 2];
__device__ __align__(16) u64 ll_part[N * MAXP * (H + 2)];

#ifdef PROFILE  // clocks since the start at nine points of a layer, in place of the logits
#define STAMP(i) if (threadIdx.x == 0) ptr<float>(T_LOGITS)[blockIdx.x * L * 9 + l * 9 + i] = (float)(clock64() - start);
#else
#define STAMP(i)
#endif

// ---- weight formats ------------------------------------------------------------------------------------

// BITS 16: plain. 8 or 4: GROUP weights share a scale of SB bytes; GROUP 0: the whole row does (float32).
// OFFSETS: 4-bit weights are value * scale + offset; without, (value - 8) * scale.
enum { PLAIN, WHOLE, GROUPS };
template <int BITS_, int GROUP_, int SB_, bool OFFSETS_> struct Format {
  static constexpr int BITS = BITS_, GROUP = GROUP_, SB = GROUP_ ? SB_ : 0;
  static constexpr bool OFFSETS = OFFSETS_;
  static constexpr int KIND = BITS == 16 ? PLAIN : GROUP ? GROUPS : WHOLE;
  static constexpr int UNIT = GROUP ? GROUP * BITS / 2 : 64;  // bytes of a row that a warp takes at a time
  static constexpr int X_CHUNK = 128 / BITS;                  // activations for 16 bytes of weights
  static constexpr int PAD = UNIT == 64 ? 64 : 16;             // keeps the rows of a load on different banks
};
using FQ = Format<FMT_QKV>;
using FO = Format<FMT_O>;
using FG = Format<FMT_GU>;
using FD = Format<FMT_DOWN>;
using FH = Format<FMT_HEAD>;

// How K activations lie in shared memory: 16-bit floats, or limbs, the highest first, then for each group of
// weights {what one unit of the lowest limb means, the sum of the group's activations}.
template <class FM, int K> struct X {
  static constexpr int LIMBS = FM::KIND == GROUPS ? 2 : 3;
  static constexpr int STRIDE = (K + 127) / 128 * 128 + 64;  // between limbs
  static constexpr int INFO = LIMBS * STRIDE;
  static constexpr int BYTES = FM::KIND == PLAIN ? 2 * K : INFO + (FM::GROUP ? K / cmax(FM::GROUP, 1) * 8 : 0);
};
constexpr int X_MOST = cmax(cmax(X<FQ, D>::BYTES, X<FO, N_H>::BYTES), cmax(cmax(X<FG, D>::BYTES, X<FD, F>::BYTES), X<FH, D>::BYTES));

// How rows of K weights lie in the ring. A tile is TR rows; a slot holds a slice of each of them, then their
// scales, then as much of offsets: a padded piece a row, or, where rows of scales are no multiple of 16 bytes,
// one piece for all rows.
template <class FM, int K> struct Rows {
  static constexpr int BYTES = K * FM::BITS / 8;
  static __host__ __device__ constexpr int scales(int bytes) { return FM::GROUP ? bytes * 8 / FM::BITS / cmax(FM::GROUP, 1) * FM::SB : 0; }
  static constexpr int SCALES = scales(BYTES);  // bytes per row
  static constexpr int ROUGHLY = (BYTES - 1) / SRB + 1;
  static constexpr int PIECES = FM::GROUP && ROUGHLY > 1 ? (ROUGHLY + NG - 1) / NG * NG : ROUGHLY;  // shares them evenly
  static constexpr int UNITS = (BYTES + 63) / 64, LEAST = (UNITS + PIECES - 1) / PIECES;
  static constexpr int NU = FM::GROUP ? (LEAST + 3) / 4 * 4 : LEAST;  // per slice
  static constexpr int SLICE = NU * 64 < BYTES ? NU * 64 : BYTES, S = (BYTES + SLICE - 1) / SLICE;
  static constexpr int SURE = (BYTES - (S - 1) * SLICE) / FM::UNIT / WPG;       // units that every warp finds in every slice
  static constexpr int MOST = ((SLICE + FM::UNIT - 1) / FM::UNIT + WPG - 1) / WPG;  // and at most
  static constexpr int HALVES = FM::KIND != PLAIN || BYTES * 2 <= SRB ? 2 : 1, TR = 8 * HALVES;
  static constexpr int STRIDE = (SLICE + 127) / 128 * 128 + FM::PAD, SCALE_AT = TR * STRIDE;
  static constexpr bool PER_ROW = SCALES % 16 == 0;
  static constexpr int SSTRIDE = PER_ROW ? scales(SLICE) + 16 : SCALES;
  static constexpr int SECOND = (TR / 2 * SCALES + 47) / 16 * 16;  // where the up rows' scales begin, in one piece
  static constexpr int SCALE_BYTES = FM::GROUP == 0 ? 0 : PER_ROW ? TR * SSTRIDE : 2 * SECOND;
  static_assert(S == 1 || PER_ROW, "scales of a slice");
  static_assert(SCALE_AT + (FM::OFFSETS ? 2 : 1) * SCALE_BYTES <= SLOT, "slot too small");
};

// ---- where things lie in shared memory -----------------------------------------------------------------

constexpr int OFF_RING = 0;
constexpr int OFF_X = NSLOT * SLOT;
constexpr int OFF_PART = OFF_X + (cmax(cmax(X_MOST, A_BYTES), C_BYTES) + 127) / 128 * 128;
constexpr int OFF_RES = OFF_PART + PART_ROWS * NW * 4;
constexpr int OFF_ROPE = OFF_RES + (D * 2 + 15) / 16 * 16;
constexpr int OFF_RED = OFF_ROPE + H * 4;
constexpr int OFF_MAX = OFF_RED + NW * 4;
constexpr int OFF_BAR = OFF_MAX + NW * 4 + 16;  // the whole vector's scale lies before it
constexpr int OFF_TABLE = OFF_BAR + 2 * NSLOT * 8;
constexpr int OFF_PAST = OFF_TABLE + (T_LAYERS + L * Y_COUNT) * 8;  // 64 bytes
static_assert(OFF_PAST + 64 <= SHARED, "plan.py asks for too little shared memory");

// ---- the table -----------------------------------------------------------------------------------------

__device__ __forceinline__ void consumers_sync() { some_sync<NT>(); }
__device__ __forceinline__ u64 table(int slot) { return *(const u64*)(smem + OFF_TABLE + slot * 8); }
template <class T> __device__ __forceinline__ T* ptr(int slot) { return (T*)table(slot); }

// ---- the products of a unit ----------------------------------------------------------------------------

__device__ __forceinline__ float scale_at(const char* p, int i, int bytes) {
  return bytes == 2 ? half_to_float(((const u16*)p)[i]) : ((const float*)p)[i];
}

// A lane's part of the products of its tile's rows g and g + 8 with the activations. `add` takes one unit of all
// rows: at byte u of the slice in `slot` that begins at byte `off` of the rows. `row` is the whole sum of row
// g + 8 * half over the lanes of a row, right in the first of them.
template <class FM, int K, int KIND = FM::KIND> struct Sums;

// The 16-row operand takes two halves of 8 rows' weights: registers a0, a2 hold some of a row's weights, a1, a3
// others; even columns of the other operand hold the activations of the former, odd columns those of the
// latter. c[0] and c[3] are the two sums.
template <class FM, int K> struct Sums<FM, K, PLAIN> {
  using R = Rows<FM, K>;
  float c[R::HALVES][2][4] = {};  // two chains
  __device__ __forceinline__ void clear() { *this = Sums(); }
  __device__ __forceinline__ void add(const char* slot, int off, int u, int j, const char* (&)[2]) {
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
    const uint2 x = *(const uint2*)(smem + OFF_X + off + u + t * 16 + (g & 1) * 8);  // `Store` put them in this order
#pragma unroll
    for (int h = 0; h < R::HALVES; h++) {
      const uint4 w = *(const uint4*)(slot + (h * 8 + g) * R::STRIDE + u + t * 16);
      mma(c[h][j & 1], w.x, w.y, w.z, w.w, x.x, x.y);
    }
  }
  __device__ __forceinline__ float row(int half) const {
    return (c[half][0][0] + c[half][1][0]) + (c[half][0][3] + c[half][1][3]);
  }
};

// One scale a row: columns 0, 1, 2 hold the limbs.
template <class FM, int K> struct Sums<FM, K, WHOLE> {
  using R = Rows<FM, K>;
  int c[2][4] = {};
  __device__ __forceinline__ void clear() { *this = Sums(); }
  __device__ __forceinline__ void add(const char* slot, int off, int u, int, const char* (&)[2]) {
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
    const char* row = slot + g * R::STRIDE + u + t * 16;
    const uint4 a = *(const uint4*)row, b = *(const uint4*)(row + 8 * R::STRIDE);
    const uint4 x = *(const uint4*)(smem + OFF_X + min(g & 3, 2) * X<FM, K>::STRIDE + off + u + t * 16);
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
  __device__ __forceinline__ Sums() {
    const int member = (threadIdx.x >> 5) % WPG;
#pragma unroll
    for (int j = 0; SAME && j < R::MOST; j++) kept[j] = activations((member + WPG * j) * FM::UNIT);
  }
  __device__ __forceinline__ void clear() { sum[0] = sum[1] = 0; }
  __device__ __forceinline__ static Activations activations(int at) {  // byte `at` of the rows
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
    return a;
  }
  __device__ __forceinline__ void add(const char* slot, int off, int u, int j, const char* (&scales)[2]) {
    const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
    const int group = (off + u) * 8 / FM::BITS / FM::GROUP + t, in_slice = u * 8 / FM::BITS / FM::GROUP + t;
    const char* row = slot + g * R::STRIDE + u + t * CHUNKS * 16;
    const Activations& with = SAME ? kept[j] : kept[0] = activations(off + u);
    int c[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      const uint4 a = *(const uint4*)(row + i * 16), b = *(const uint4*)(row + 8 * R::STRIDE + i * 16);
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
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float v = info.x * (float)(c[2 * h] * 256 + c[2 * h + 1]);
      if (FM::BITS == 4 && !FM::OFFSETS) v -= 8.0f * info.y;
      sum[h] += scale_at(scales[h], in_slice, FM::SB) * v;
      if (FM::OFFSETS) sum[h] += scale_at(scales[h] + R::SCALE_BYTES, in_slice, FM::SB) * info.y;
    }
  }
  __device__ __forceinline__ float row(int half) const {
    const float v = sum[half] + __shfl_xor_sync(~0u, sum[half], 1);
    return v + __shfl_xor_sync(~0u, v, 2);
  }
};

// ---- shares: which rows of a stage belong to this block ------------------------------------------------

// Pairs of rows [first, last) of `pairs`; rotated from stage to stage so that odd ones out even up.
struct Share { int first, last; };
__device__ __forceinline__ Share share(int pairs, int stage) {
  const u32 c = (blockIdx.x + (u32)stage * 53u) % NCTA;
  return {(int)(pairs * c / NCTA), (int)(pairs * (c + 1) / NCTA)};
}

// The cached tokens that attention reads, and how they are split among blocks.
struct Past {
  int first, count, chunks, splits;  // positions [first, first + count)
  int head, split, begin, end;       // this block's kv head (-1: none) and chunks [begin, end)
  bool append;                       // the new token has a place in the cache
  int length, capacity;
};
__device__ __forceinline__ const Past& past() { return *(const Past*)(smem + OFF_PAST); }
__device__ __forceinline__ void find_past() {
  Past& p = *(Past*)(smem + OFF_PAST);
  const int* limits = ptr<const int>(T_LIMITS);
  p.length = *ptr<const int>(T_LENGTH);
  p.capacity = limits[0];
  const int window = limits[1];
  p.append = p.length < p.capacity;
  p.first = window > 0 ? max(0, p.length + 1 - window) : 0;
  p.count = max(0, min(p.length, p.capacity) - p.first);
  p.chunks = (p.count + TC - 1) / TC;
  p.splits = max(1, min(p.chunks, MAXP));
  const int b = blockIdx.x;
  p.head = b < K_ * p.splits ? b / p.splits : -1;
  p.split = b % p.splits;
  p.begin = p.chunks * p.split / p.splits;
  p.end = p.chunks * (p.split + 1) / p.splits;
}

// ---- producer ------------------------------------------------------------------------------------------

struct Ring {
  u32 pos = 0;  // slots used so far
  __device__ __forceinline__ u32 full(u32 c) const { return saddr(smem + OFF_BAR) + (pos + c) % NSLOT * 8; }
  __device__ __forceinline__ u32 empty(u32 c) const { return full(c) + NSLOT * 8; }
  __device__ __forceinline__ u32 parity(u32 c) const { return (pos + c) / NSLOT & 1; }
  __device__ __forceinline__ char* data(u32 c) const { return smem + OFF_RING + (pos + c) % NSLOT * SLOT; }
};

// Waits until the next slot is free, and until no more than LAG others are on their way: a longer queue would
// only hold up the words that blocks wait for.
__device__ __forceinline__ void wait_for_slot(const Ring& ring) {
  mbar_wait(ring.empty(0), ring.parity(0) ^ 1);
  if (LAG < NSLOT && ring.pos >= LAG) mbar_wait(ring.full(-LAG), ring.parity(-LAG));
}

// Of the rows of a tile, producer p copies p, p + PW, ...: a copy costs its warp some 60 clocks.
template <class FM, int K, bool PAIRS>
__device__ void produce(Ring& ring, int p, Share rows, int weight, u64 policy) {
  using R = Rows<FM, K>;
  constexpr int TP = PAIRS ? R::TR / 2 : R::TR, LISTS = FM::GROUP == 0 ? 0 : FM::OFFSETS ? 2 : 1;  // outputs per tile; scales, offsets
  const char* const weights = ptr<char>(weight);
  constexpr int MINE = R::TR / PW;
  const int lane = threadIdx.x & 31, r = lane % MINE * PW + p, i = r % TP, list = lane / MINE;  // lanes beyond the rows copy offsets
  const bool up = r >= TP;
#pragma unroll 1
  for (int r0 = rows.first * 2; r0 < rows.last * 2; r0 += TP) {
    const int n = min(TP, rows.last * 2 - r0), nr = (n - p + PW - 1) / PW * (PAIRS ? 2 : 1);
    const long long row = r0 + i + (up ? F : 0);
#pragma unroll 1
    for (int off = 0; off < R::BYTES; off += R::SLICE) {
      const int bytes = min(R::SLICE, R::BYTES - off), sbytes = R::scales(bytes);
      wait_for_slot(ring);
      const u32 dst = saddr(ring.data(0)), bar = ring.full(0);
      if (R::PER_ROW) {
        if (lane == 0) mbar_expect(bar, nr * (bytes + LISTS * sbytes));
        __syncwarp();
        if (i < n && list < LISTS)
          bulk_copy(dst + R::SCALE_AT + list * R::SCALE_BYTES + r * R::SSTRIDE,
                    ptr<char>(weight + 1 + list) + row * R::SCALES + R::scales(off), sbytes, bar, policy);
      } else {  // the scales of the tile in one piece, widened to 16 bytes at both ends
        const char* from = ptr<char>(weight + 1 + (lane >> 1 & 1)) + (r0 + (lane & 1 ? F : 0)) * (long long)R::SCALES;
        const u32 shift = (u32)(u64)from & 15, total = (n * R::SCALES + shift + 15) & ~15u;
        const u32 both = __shfl_sync(~0u, total, 0) + (PAIRS ? __shfl_sync(~0u, total, 1) : 0);
        if (lane == 0) mbar_expect(bar, nr * bytes + (p ? 0 : LISTS * both));
        __syncwarp();
        if (p == 0 && lane < 2 * LISTS && (PAIRS || !(lane & 1)))
          bulk_copy(dst + R::SCALE_AT + lane * R::SECOND, from - shift, total, bar, policy);
      }
      if (i < n && list == 0) bulk_copy(dst + r * R::STRIDE, weights + row * R::BYTES + off, bytes, bar, policy);
      ring.pos++;
    }
  }
}

__device__ __forceinline__ void produce_past(Ring& ring, int producer, const Past& p, const char* keys, const char* values, u64 policy) {
  if (p.head < 0) return;
  const int lane = threadIdx.x & 31;
  for (int c = p.begin; c < p.end; c++) {
    const size_t at = ((size_t)p.head * p.capacity + p.first + c * TC) * H * 2;
    const int tokens = min(TC, p.count - c * TC);
    for (int i = 0; i < 2; i++)
      for (int done = 0; done < tokens; done += TS) {
        const u32 bytes = min(TS, tokens - done) * H * 2;
        wait_for_slot(ring);
        if (lane == 0) {
          mbar_expect(ring.full(0), producer ? 0 : bytes);
          if (producer == 0) bulk_copy(saddr(ring.data(0)), (i ? values : keys) + at + done * H * 2, bytes, ring.full(0), policy);
        }
        __syncwarp();
        ring.pos++;
      }
  }
}

__device__ void produce_all(int p) {
  const u64 once = read_once_policy();
  Ring ring;
  for (int l = 0; l < L; l++) {
    const int y = T_LAYERS + l * Y_COUNT;
    produce<FQ, D, false>(ring, p, share(QKV_ROWS / 2, 4 * l), y + Y_QKV, once);
    produce_past(ring, p, past(), ptr<char>(y + Y_KEYS), ptr<char>(y + Y_VALUES), once);
    produce<FO, N_H, false>(ring, p, share(D / 2, 4 * l + 1), y + Y_O, once);
    produce<FG, D, true>(ring, p, share(F / 2, 4 * l + 2), y + Y_GU, once);
    produce<FD, F, false>(ring, p, share(D / 2, 4 * l + 3), y + Y_DOWN, once);
  }
  produce<FH, D, false>(ring, p, share(V / 2, 4 * L), T_HEAD, once);
}

// ---- consumers -----------------------------------------------------------------------------------------

// Takes K elements of a tagged buffer; sink(index of the first, {e0,e1}, {e2,e3}) for every four.
template <int K, class Sink> __device__ __forceinline__ void gather(const u64* from, u32 tag, Sink sink) {
  constexpr int IT = (K / 4 + NT - 1) / NT;
  u64 a[IT], b[IT];
#pragma unroll
  for (int i = 0; i < IT; i++) a[i] = b[i] = (u64)~tag << 32;
  // Until its own first word has come, only one lane of the warp asks, and then only for words that miss: less traffic.
  if ((threadIdx.x & 31) == 31 && threadIdx.x < K / 4) take(from + threadIdx.x * 2 + 1, tag);
  __syncwarp();
  for (u32 spins = 0;; patience(spins)) {
    bool missing = false;
#pragma unroll
    for (int i = 0; i < IT; i++) {
      const int at = threadIdx.x + i * NT;
      if (at < K / 4 && ((u32)(a[i] >> 32) != tag || (u32)(b[i] >> 32) != tag)) peek2(from + at * 2, a[i], b[i]);
    }
#pragma unroll
    for (int i = 0; i < IT; i++)
      if ((int)threadIdx.x + i * NT < K / 4) missing |= (u32)(a[i] >> 32) != tag || (u32)(b[i] >> 32) != tag;
    if (!__any_sync(~0u, missing)) break;
  }
#pragma unroll
  for (int i = 0; i < IT; i++) sink((int)(threadIdx.x + i * NT) * 4, (u32)a[i], (u32)b[i]);  // beyond K: ignored there
}

// Stores activations for weights of format FM, four at a time as `gather` hands them out, of all threads alike;
// `finish` makes them visible to the whole block.
template <class FM, int K, int KIND = FM::KIND> struct Store;

// 16-bit floats, the pairs of each eight in the order 0 2 1 3.
template <class FM, int K> struct Store<FM, K, PLAIN> {
  __device__ __forceinline__ void words(int k, u32 lo, u32 hi) {
    if (k >= K) return;
    char* to = smem + OFF_X + (k & ~7) * 2 + (k & 4);
    *(u32*)to = lo;
    *(u32*)(to + 8) = hi;
  }
  __device__ __forceinline__ void four(int, int k, float e0, float e1, float e2, float e3) {
    words(k, pack(e0, e1), pack(e2, e3));
  }
  __device__ __forceinline__ void finish() { consumers_sync(); }
};

constexpr float ROUNDS = 12582912.0f;  // 1.5 * 2^23: in the low bits of ROUNDS + v stands the integer next to v
constexpr u32 ROUNDS_BITS = 0x4B400000u;

// All of a thread's activations, four at a time; the largest of a warp's.
template <int K> struct Kept {
  static constexpr int IT = (K / 4 + NT - 1) / NT;
  float e[IT][4];
  __device__ __forceinline__ void four(int i, int k, float e0, float e1, float e2, float e3) {
    const bool in = k < K;
    e[i][0] = in ? e0 : 0; e[i][1] = in ? e1 : 0; e[i][2] = in ? e2 : 0; e[i][3] = in ? e3 : 0;
  }
  __device__ __forceinline__ static int k(int i) { return (int)(threadIdx.x + i * NT) * 4; }
  __device__ __forceinline__ u32 magnitude(int i) const {  // as an integer: NaN is the largest
    const u32 abs = 0x7fffffffu;
    return max(max(__float_as_uint(e[i][0]) & abs, __float_as_uint(e[i][1]) & abs),
               max(__float_as_uint(e[i][2]) & abs, __float_as_uint(e[i][3]) & abs));
  }
  __device__ __forceinline__ u32 fixed(int i, int j, float by) const { return __float_as_uint(e[i][j] * by + ROUNDS); }
};
__device__ __forceinline__ float steps_per(float top, float most) { return top > 1e-30f ? __fdividef(most, top) : 0.0f; }

// Two limbs; each 128 activations, those of one warp, have a scale of their own.
template <class FM, int K> struct Store<FM, K, GROUPS> : Kept<K> {
  using Kept<K>::IT;
  static constexpr float MOST = 32512.0f;
  __device__ __forceinline__ void finish() {
    float unit[IT];
    u32 w[IT][4];
    int sum[IT];
#pragma unroll
    for (int i = 0; i < IT; i++) unit[i] = __uint_as_float(__reduce_max_sync(~0u, this->magnitude(i)));
#pragma unroll
    for (int i = 0; i < IT; i++) {
      const float by = steps_per(unit[i], MOST);
      unit[i] *= 1.0f / MOST;
#pragma unroll
      for (int j = 0; j < 4; j++) w[i][j] = this->fixed(i, j, by);
      sum[i] = (int)(w[i][0] + w[i][1] + w[i][2] + w[i][3] - 4 * ROUNDS_BITS);
    }
#pragma unroll
    for (int s = 1; s < FM::GROUP / 4; s *= 2)
#pragma unroll
      for (int i = 0; i < IT; i++) sum[i] += __shfl_xor_sync(~0u, sum[i], s);
#pragma unroll
    for (int i = 0; i < IT; i++) {
      const int k = this->k(i);
      if (k >= K) break;
      const u32 p01 = __byte_perm(w[i][0] + 128, w[i][1] + 128, 0x5140), p23 = __byte_perm(w[i][2] + 128, w[i][3] + 128, 0x5140);
      const int word = k % FM::GROUP / 4, half = FM::GROUP / 8;  // 4 bit: of the first half and of the second, in turn
      char* to = smem + OFF_X + (FM::BITS == 8 ? k : k - k % FM::GROUP + (word % half * 2 + word / half) * 4);
      *(u32*)to = __byte_perm(p01, p23, 0x7632);
      *(u32*)(to + X<FM, K>::STRIDE) = __byte_perm(p01, p23, 0x5410) ^ 0x80808080u;
      if (k % FM::GROUP == 0)
        *(float2*)(smem + OFF_X + X<FM, K>::INFO + k / FM::GROUP * 8) = make_float2(unit[i], unit[i] * (float)sum[i]);
    }
    consumers_sync();
  }
};

// Three limbs with one scale for all: it must be known first.
template <class FM, int K> struct Store<FM, K, WHOLE> : Kept<K> {
  using Kept<K>::IT;
  static constexpr int MOST = (1 << 22) - (1 << 15);
  __device__ __forceinline__ void finish() {
    u32 most = 0;
#pragma unroll
    for (int i = 0; i < IT; i++) most = max(most, this->magnitude(i));
    float top = __uint_as_float(__reduce_max_sync(~0u, most));
    float* maxima = (float*)(smem + OFF_MAX);
    if ((threadIdx.x & 31) == 0) maxima[threadIdx.x >> 5] = top;
    consumers_sync();
#pragma unroll
    for (int w = 0; w < NW; w++) top = maxima[w] <= top ? top : maxima[w];
    const float by = steps_per(top, (float)MOST);
    char* x = smem + OFF_X;
#pragma unroll
    for (int i = 0; i < IT; i++) {
      const int k = this->k(i);
      if (k >= K) break;
      u32 w[4];
#pragma unroll
      for (int j = 0; j < 4; j++) w[j] = this->fixed(i, j, by) - ROUNDS_BITS + 0x8080u;
      const u32 p01 = __byte_perm(w[0], w[1], 0x5140), p23 = __byte_perm(w[2], w[3], 0x5140);
      *(u32*)(x + k) = __byte_perm(__byte_perm(w[0], w[1], 0x0062), __byte_perm(w[2], w[3], 0x0062), 0x5410);
      *(u32*)(x + X<FM, K>::STRIDE + k) = __byte_perm(p01, p23, 0x7632) ^ 0x80808080u;
      *(u32*)(x + 2 * X<FM, K>::STRIDE + k) = __byte_perm(p01, p23, 0x5410) ^ 0x80808080u;
    }
    if (K % 64 && threadIdx.x < 24) *(u32*)(x + threadIdx.x / 8 * X<FM, K>::STRIDE + K + threadIdx.x % 8 * 4) = 0;  // a unit's rest
    if (threadIdx.x == 0) maxima[NW] = top * (1.0f / MOST);
    consumers_sync();
  }
};

// The residual stream: kept as it is, stored times the norm's weight; its mean square is applied after the
// product. `gain` is read before the wait for the data.
template <class FM, class Load> __device__ __forceinline__ void load_normed(const u16* gain, Load load) {
  constexpr int IT = (D / 4 + NT - 1) / NT;
  uint2 g[IT];
#pragma unroll
  for (int i = 0; i < IT; i++) {
    const int k = (threadIdx.x + i * NT) * 4;
    g[i] = k < D ? __ldg((const uint2*)(gain + k)) : make_uint2(0, 0);
  }
  Store<FM, D> store;
  float squares = 0;
  int i = 0;
  load([&](int k, u32 lo, u32 hi) {
    const float e0 = to_float(lo), e1 = high(lo), e2 = to_float(hi), e3 = high(hi);
    if (k < D) {
      squares += (e0 * e0 + e1 * e1) + (e2 * e2 + e3 * e3);
      *(uint2*)(smem + OFF_RES + k * 2) = make_uint2(lo, hi);
    }
    const uint2 w = g[i];
    store.four(i++, k, e0 * to_float(w.x), e1 * high(w.x), e2 * to_float(w.y), e3 * high(w.y));
  });
  squares = warp_sum(squares);
  if ((threadIdx.x & 31) == 0) ((float*)(smem + OFF_RED))[threadIdx.x >> 5] = squares;
  store.finish();
}
template <class FM, int K> __device__ __forceinline__ void load_plain(const u64* from, u32 tag) {
  Store<FM, K> store;
  int i = 0;
  gather<K>(from, tag, [&](int k, u32 lo, u32 hi) {
    if constexpr (FM::KIND == PLAIN) store.words(k, lo, hi);
    else store.four(i++, k, to_float(lo), high(lo), to_float(hi), high(hi));
  });
  store.finish();
}
__device__ __forceinline__ float inverse_rms() {
  const float4* red = (const float4*)(smem + OFF_RED);
  float s = 0;
#pragma unroll
  for (int w = 0; w < NW / 4; w++) s += (red[w].x + red[w].y) + (red[w].z + red[w].w);
  return rsqrtf(s * (1.0f / D) + EPS);
}

// The sum over COLUMNS * 4 partial sums of a row; TPO neighbouring threads share one row.
template <int COLUMNS> __device__ __forceinline__ float across_warps(int row) {
  const int mine = threadIdx.x % TPO;
  float s = 0;
  if (mine < COLUMNS) {
    const float4 v = *(const float4*)(smem + OFF_PART + (row * NW + mine * 4) * 4);
    s = (v.x + v.y) + (v.z + v.w);
  }
#pragma unroll
  for (int i = 1; i < TPO; i *= 2) s += __shfl_xor_sync(~0u, s, i);
  return s;
}

// All rows of a stage that belong to this block. Slot i of the ring always goes to group i % NG, so that the
// same warps wait for each turn of its barrier; within a group, warp m takes unit m, m + WPG, ... of a row.
// done(row, valid, gate or plain value, up value): called by all threads of an output alike.
template <class FM, int K, bool PAIRS, class Done>
__device__ __forceinline__ void products(Ring& ring, Share rows, const float* row_scales, Done done) {
  using R = Rows<FM, K>;
  constexpr int TP = PAIRS ? R::TR / 2 : R::TR, SEG = PART_ROWS / R::TR * TP;
  constexpr int COLUMNS = (R::S < NG ? R::S : NG) * WPG / 4;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2;
  const int group = warp / WPG, member = warp % WPG;
  const int last = rows.last * 2;
  float* part = (float*)(smem + OFF_PART);
#pragma unroll 1
  for (int seg = rows.first * 2; seg < last; seg += SEG) {
    const int end = min(seg + SEG, last);
    const int mine = seg + (int)(threadIdx.x / TPO);  // the output that this thread finishes
    float s0 = 1.0f, s1 = 1.0f;
    if (FM::KIND == WHOLE && mine < end) {
      s0 = __ldg(row_scales + mine);
      if (PAIRS) s1 = __ldg(row_scales + F + mine);
    }
    const int chunks = (end - seg + TP - 1) / TP * R::S;
    Sums<FM, K> sums;
    const int start = (group - (int)ring.pos) & (NG - 1);  // the group's first chunk
#pragma unroll 1
    for (int chunk = start; chunk < chunks; chunk += NG) {
      const int tile = chunk / R::S, s = chunk % R::S;
      mbar_wait(ring.full(chunk), ring.parity(chunk));
      const char* slot = ring.data(chunk);
      const char* scales[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int r = h * 8 + g;
        const bool up = PAIRS && r >= TP;
        scales[h] = slot + R::SCALE_AT + (r - (!R::PER_ROW && up ? TP : 0)) * R::SSTRIDE;
        if (!R::PER_ROW)  // the address of the tile's first scale, modulo 16, is where its copy begins
          scales[h] += (up ? R::SECOND : 0) + (int)((long long)(seg + tile * TP + (up ? F : 0)) * R::SCALES & 15);
      }
      const int off = s * R::SLICE, bytes = min(R::SLICE, R::BYTES - off);
#pragma unroll
      for (int j = 0; j < R::MOST; j++) {
        const int u = (member + WPG * j) * FM::UNIT;
        if (j >= R::SURE && u >= bytes) break;
        sums.add(slot, off, u, j, scales);
      }
      __syncwarp();
      if (lane == 0) mbar_arrive(ring.empty(chunk));
      if (s + NG >= R::S) {  // the group's last slice of this tile
        const int column = ((start - tile * R::S) & (NG - 1)) * WPG + member;
#pragma unroll
        for (int h = 0; h < R::HALVES; h++) {
          const float v = sums.row(h);
          if ((lane & 3) == 0) part[(tile * R::TR + h * 8 + g) * NW + column] = v;
        }
        sums.clear();
      }
    }
    ring.pos += chunks;
    consumers_sync();
    const int e = threadIdx.x / TPO;
    if constexpr (PAIRS) {
      const int row = e / TP * R::TR + e % TP;
      if (e < SEG) {  // whole warps
        const float gate = across_warps<COLUMNS>(row) * s0, up = across_warps<COLUMNS>(row + TP) * s1;
        done(mine, mine < end, gate, up);
      }
    } else {
      done(mine, mine < end, across_warps<COLUMNS>(e) * s0, 0.0f);
    }
    if (end < last) consumers_sync();
  }
}

// Two neighbouring outputs, each held by four threads, become one tagged word.
__device__ __forceinline__ void put_pair(u64* to, int row, bool valid, float v, u32 tag) {
  const float next = __shfl_down_sync(~0u, v, TPO);
  if (valid && threadIdx.x % (2 * TPO) == 0) put(to + row / 2, pack(v, next), tag);
}

__device__ __forceinline__ float residual(int row) { return to_float(*(const u16*)(smem + OFF_RES + row * 2)); }

// ---- attention: one kv head, one stretch of the cache --------------------------------------------------

__device__ __forceinline__ void rotate(u32& first, u32& second, int j) {  // elements 2j, 2j+1 and their partners
  const float* c = (const float*)(smem + OFF_ROPE);
  const float* s = c + H / 2;
  const float a0 = to_float(first), a1 = high(first), b0 = to_float(second), b1 = high(second);
  first = pack(a0 * c[2 * j] - b0 * s[2 * j], a1 * c[2 * j + 1] - b1 * s[2 * j + 1]);
  second = pack(b0 * c[2 * j] + a0 * s[2 * j], b1 * c[2 * j + 1] + a1 * s[2 * j + 1]);
}

__device__ void attend(Ring& ring, const Past& p, char* keys, char* values, u32 tag) {
  char* A = smem + OFF_X;
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;
  const bool fresh = p.split == p.splits - 1 && p.append;  // this block adds the new token
  constexpr int R4 = H / 4;
  for (int i = tid; i < (G + 2) * R4; i += NT) {
    const int r = i / R4, j = i % R4;
    if (r >= G && !fresh) break;
    const u64* from = ll_qkv + (p.head * (G + 2) + r) * (H / 2);
    u64 wl = peek(from + j), wh = peek(from + j + R4);
    for (u32 spins = 0; (u32)(wl >> 32) != tag || (u32)(wh >> 32) != tag; patience(spins))
      wl = peek(from + j), wh = peek(from + j + R4);
    u32 lo = (u32)wl, hi = (u32)wh;
    if (r <= G) rotate(lo, hi, j);
    char* to = r < G ? A + A_Q + r * QS : A + A_KV + (r - G) * H * 2;
    *(u32*)(to + j * 4) = lo;
    *(u32*)(to + (j + R4) * 4) = hi;
    if (r >= G) {
      char* row = (r == G ? keys : values) + ((size_t)p.head * p.capacity + p.length) * H * 2;
      *(u32*)(row + j * 4) = lo;
      *(u32*)(row + (j + R4) * 4) = hi;
    }
  }
  float *M = (float*)(A + A_M), *LS = (float*)(A + A_L), *fresh_score = (float*)(A + A_NEW);
  const float log2e_scale = 1.4426950408889634f * rsqrtf((float)H);
  consumers_sync();

  for (int h = NW - 1 - warp; fresh && h < G; h += NW) {
    float s = 0;
    for (int d = lane * 2; d < H; d += 64) {
      const u32 q = *(const u32*)(A + A_Q + h * QS + d * 2), k = *(const u32*)(A + A_KV + d * 2);
      s += to_float(q) * to_float(k) + high(q) * high(k);
    }
    s = warp_sum(s);
    if (lane == 0) fresh_score[h] = s * log2e_scale;
  }
  // Each warp keeps its own running softmax; lane (g, t) that of heads g and g + 8.
  float m0 = MINUS_INF, m1 = MINUS_INF, l0 = 0, l1 = 0;
  char* O = A + A_O + warp * G * H * 4;
  int used = 0;
#pragma unroll 1
  for (int c = p.begin; c < p.end; c++) {
    const int tokens = min(TC, p.count - c * TC), n0 = warp * TW;
    const int slots = (tokens + TS - 1) / TS;  // of keys, then as many of values
    if (c == p.begin) used = (tokens + TW - 1) / TW;
    if (n0 < tokens) {
      const int ks = n0 / TS, vs = slots + ks, in = n0 % TS;
      mbar_wait(ring.full(ks), ring.parity(ks));
      const char* kt = ring.data(ks) + in * H * 2;
      float s[TW / 8][4] = {};
      bool in0[TW / 8], in1[TW / 8];
      float top0 = m0, top1 = m1;
#pragma unroll
      for (int n = 0; n < TW / 8; n++) {
#pragma unroll
        for (int i = 0; i < H / 32; i++) {
          const uint4 kv = *(const uint4*)(kt + (n * 8 + g) * H * 2 + i * 64 + t * 16);
          const uint4 qa = *(const uint4*)(A + A_Q + g * QS + i * 64 + t * 16);
          uint4 qb = make_uint4(0, 0, 0, 0);
          if (G > 8) qb = *(const uint4*)(A + A_Q + (g + 8) * QS + i * 64 + t * 16);
          mma(s[n], qa.x, qb.x, qa.y, qb.y, kv.x, kv.y);
          mma(s[n], qa.z, qb.z, qa.w, qb.w, kv.z, kv.w);
        }
        in0[n] = n0 + n * 8 + 2 * t < tokens;
        in1[n] = n0 + n * 8 + 2 * t + 1 < tokens;
        s[n][0] = in0[n] ? s[n][0] * log2e_scale : MINUS_INF;
        s[n][1] = in1[n] ? s[n][1] * log2e_scale : MINUS_INF;
        s[n][2] = in0[n] ? s[n][2] * log2e_scale : MINUS_INF;
        s[n][3] = in1[n] ? s[n][3] * log2e_scale : MINUS_INF;
        top0 = fmaxf(top0, fmaxf(s[n][0], s[n][1]));
        top1 = fmaxf(top1, fmaxf(s[n][2], s[n][3]));
      }
      top0 = fmaxf(top0, __shfl_xor_sync(~0u, top0, 1));
      top1 = fmaxf(top1, __shfl_xor_sync(~0u, top1, 1));
      top0 = fmaxf(top0, __shfl_xor_sync(~0u, top0, 2));
      top1 = fmaxf(top1, __shfl_xor_sync(~0u, top1, 2));
      const float alpha0 = exp2_fast(m0 - top0), alpha1 = exp2_fast(m1 - top1);
      m0 = top0; m1 = top1;
      l0 *= alpha0; l1 *= alpha1;
      u32 a[4] = {0, 0, 0, 0};
#pragma unroll
      for (int n = 0; n < TW / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) s[n][i] = exp2_fast(s[n][i] - (i < 2 ? m0 : m1));
        l0 += s[n][0] + s[n][1];
        l1 += s[n][2] + s[n][3];
        a[2 * n] = pack(s[n][0], s[n][1]);
        a[2 * n + 1] = G > 8 ? pack(s[n][2], s[n][3]) : 0u;
      }
      mbar_wait(ring.full(vs), ring.parity(vs));
      const char* vt = ring.data(vs) + (in + 2 * t) * H * 2;
#pragma unroll
      for (int d0 = 0; d0 < H; d0 += 32) {  // column g of product j is dimension d0 + 4 g + j
        uint2 v0[2] = {}, v1[2] = {};
#pragma unroll
        for (int n = 0; n < TW / 8; n++) {
          if (in0[n]) v0[n] = *(const uint2*)(vt + n * 16 * H + d0 * 2 + g * 8);
          if (in1[n]) v1[n] = *(const uint2*)(vt + n * 16 * H + H * 2 + d0 * 2 + g * 8);
        }
        float o[4][4] = {};
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const u32 order = j & 1 ? 0x7632 : 0x5410;
          const u32 b0 = j < 2 ? __byte_perm(v0[0].x, v1[0].x, order) : __byte_perm(v0[0].y, v1[0].y, order);
          const u32 b1 = j < 2 ? __byte_perm(v0[1].x, v1[1].x, order) : __byte_perm(v0[1].y, v1[1].y, order);
          mma(o[j], a[0], a[1], a[2], a[3], b0, b1);
        }
#pragma unroll
        for (int half = 0; half < (G > 8 ? 2 : 1); half++) {
          if (half * 8 + g >= G) break;
          float4* to = (float4*)(O + ((half * 8 + g) * H + d0 + 8 * t) * 4);
          float4 x = make_float4(o[0][2 * half], o[1][2 * half], o[2][2 * half], o[3][2 * half]);
          float4 y = make_float4(o[0][2 * half + 1], o[1][2 * half + 1], o[2][2 * half + 1], o[3][2 * half + 1]);
          if (c > p.begin) {
            const float al = half ? alpha1 : alpha0;
            const float4 a = to[0], b = to[1];
            x = make_float4(x.x + a.x * al, x.y + a.y * al, x.z + a.z * al, x.w + a.w * al);
            y = make_float4(y.x + b.x * al, y.y + b.y * al, y.z + b.z * al, y.w + b.w * al);
          }
          to[0] = x;
          to[1] = y;
        }
      }
      if (c + 1 == p.end || n0 + TC >= p.count - c * TC) {  // this warp's last tokens
        l0 += __shfl_xor_sync(~0u, l0, 1);
        l1 += __shfl_xor_sync(~0u, l1, 1);
        l0 += __shfl_xor_sync(~0u, l0, 2);
        l1 += __shfl_xor_sync(~0u, l1, 2);
        if (t == 0) {
          M[warp * 16 + g] = m0; M[warp * 16 + 8 + g] = m1;
          LS[warp * 16 + g] = l0; LS[warp * 16 + 8 + g] = l1;
        }
      }
    }
    consumers_sync();
    if (warp < WPG && lane < 2 * slots) mbar_arrive(ring.empty(lane));
    ring.pos += 2 * slots;
  }
  if (p.begin == p.end) consumers_sync();
  for (int i = tid; i < G * H / 2; i += NT) {
    const int h = i / (H / 2), d = i % (H / 2) * 2;
    float top = fresh ? fresh_score[h] : MINUS_INF, m[AW];
#pragma unroll
    for (int w = 0; w < AW; w++) top = fmaxf(top, m[w] = w < used ? M[w * 16 + h] : MINUS_INF);
    float o0 = 0, o1 = 0, sum = 0;
    if (fresh) {
      const u32 v = *(const u32*)(A + A_KV + H * 2 + d * 2);
      sum = exp2_fast(fresh_score[h] - top);
      o0 = sum * to_float(v);
      o1 = sum * high(v);
    }
#pragma unroll
    for (int w = 0; w < AW; w++) {
      if (w >= used) continue;  // nothing was written there
      const float weight = exp2_fast(m[w] - top);
      const float2 v = *(const float2*)(A + A_O + ((w * G + h) * H + d) * 4);
      o0 += weight * v.x;
      o1 += weight * v.y;
      sum += weight * LS[w * 16 + h];
    }
    const int q = p.head * G + h;
    if (p.splits == 1) {
      const float inv = __fdividef(1.0f, sum);
      put(ll_mix + (q * H + d) / 2, pack(o0 * inv, o1 * inv), tag);
    } else {
      u64* to = ll_part + (q * MAXP + p.split) * (H + 2);
      put(to + d, __float_as_uint(o0), tag);
      put(to + d + 1, __float_as_uint(o1), tag);
      if (d == 0) { put(to + H, __float_as_uint(top), tag); put(to + H + 1, __float_as_uint(sum), tag); }
    }
  }
  consumers_sync();
}

// Joins the splits of one query head.
__device__ void combine(const Past& p, int q, u32 tag) {
  constexpr int GROUPS = NT / H, AT_ONCE = 4;  // splits whose words are asked for together
  const int d = threadIdx.x % H, group = threadIdx.x / H;
  float* C = (float*)(smem + OFF_X);
  if (group < GROUPS) {
    float m = MINUS_INF, sum = 0, o = 0;
    for (int s0 = group; s0 < p.splits; s0 += AT_ONCE * GROUPS) {
      u64 w[AT_ONCE][3];  // this dimension's sum, the maximum, the sum of the weights
      for (u32 spins = 0;; patience(spins)) {
        bool missing = false;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
          if (s0 + i * GROUPS >= p.splits) break;
          const u64* from = ll_part + (q * MAXP + s0 + i * GROUPS) * (H + 2);
          w[i][0] = peek(from + d);
          w[i][1] = peek(from + H);
          w[i][2] = peek(from + H + 1);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
          if (s0 + i * GROUPS < p.splits)
            missing |= (u32)(w[i][0] >> 32) != tag || (u32)(w[i][1] >> 32) != tag || (u32)(w[i][2] >> 32) != tag;
        if (!missing) break;
      }
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++) {
        if (s0 + i * GROUPS >= p.splits) break;
        const float os = __uint_as_float((u32)w[i][0]), ms = __uint_as_float((u32)w[i][1]), ls = __uint_as_float((u32)w[i][2]);
        const float top = fmaxf(m, ms), a = exp2_fast(m - top), b = exp2_fast(ms - top);
        o = o * a + os * b;
        sum = sum * a + ls * b;
        m = top;
      }
    }
    C[group * (H + 2) + d] = o;
    if (d == 0) { C[group * (H + 2) + H] = m; C[group * (H + 2) + H + 1] = sum; }
  }
  consumers_sync();
  if (threadIdx.x < H / 2) {
    float m = MINUS_INF, sum = 0, o0 = 0, o1 = 0;
    for (int k = 0; k < min(GROUPS, p.splits); k++) {
      const float* c = C + k * (H + 2);
      const float top = fmaxf(m, c[H]), a = exp2_fast(m - top), b = exp2_fast(c[H] - top);
      o0 = o0 * a + c[2 * threadIdx.x] * b;
      o1 = o1 * a + c[2 * threadIdx.x + 1] * b;
      sum = sum * a + c[H + 1] * b;
      m = top;
    }
    put(ll_mix + q * (H / 2) + threadIdx.x, pack(o0 / sum, o1 / sum), tag);
  }
  consumers_sync();
}

// ---- the step ------------------------------------------------------------------------------------------

// Four elements of the token's embedding; not a number for a token outside the vocabulary.
__device__ __forceinline__ uint2 embedding(int token, int k) {
  using FM = Format<FMT_EMBED>;
  if (k >= D) return make_uint2(0, 0);
  if (token < 0 || token >= V) return make_uint2(0x7FFF7FFFu, 0x7FFF7FFFu);
  if constexpr (FM::BITS == 16) {
    return __ldg((const uint2*)(ptr<const u16>(T_EMBED) + (size_t)token * D + k));
  } else {
    constexpr int GR = FM::GROUP ? FM::GROUP : D;
    float v[4];
    const size_t at = (size_t)token * (D / GR) * (FM::GROUP ? FM::SB : 4);
    const char* sp = ptr<char>(T_EMBED + 1) + at;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int e = k + i, in = e % GR;
      float q;
      if (FM::BITS == 8) q = (float)ptr<const signed char>(T_EMBED)[(size_t)token * D + e];
      else {
        const unsigned char b = ptr<const unsigned char>(T_EMBED)[((size_t)token * D + e - in) / 2 + in % (GR / 2)];
        q = (float)(in < GR / 2 ? b & 15 : b >> 4) - (FM::OFFSETS ? 0.0f : 8.0f);
      }
      v[i] = q * scale_at(sp, e / GR, FM::GROUP ? FM::SB : 4);
      if (FM::OFFSETS) v[i] += scale_at(ptr<char>(T_EMBED + 2) + at, e / GR, FM::SB);
    }
    return make_uint2(pack(v[0], v[1]), pack(v[2], v[3]));
  }
}

__device__ void consumer() {
  const u32 epoch = *(volatile u32*)&g_epoch;
  const Past& p = past();
  const int token = p.append ? *ptr<const int>(T_TOKEN) : -1;  // in a full cache: not a number
  for (int i = threadIdx.x; i < H; i += NT) {  // cosines, then sines; attention waits behind a barrier
    const float angle = (float)p.length * ptr<const float>(T_FREQUENCIES)[i % (H / 2)];
    ((float*)(smem + OFF_ROPE))[i] = (i < H / 2 ? cosf(angle) : sinf(angle)) * ROPE_SCALE;
  }
#ifdef PROFILE
  const long long start = clock64();
#endif
  Ring ring;
  for (int l = 0; l < L; l++) {
    const int y = T_LAYERS + l * Y_COUNT;
    const u32 tag = epoch + l + 1;
    const Share qkv = share(QKV_ROWS / 2, 4 * l), o = share(D / 2, 4 * l + 1);
    const Share gate_up = share(F / 2, 4 * l + 2), down = share(D / 2, 4 * l + 3);
    load_normed<FQ>(ptr<const u16>(y + Y_NORM1), [&](auto sink) {
      if (l) return gather<D>(ll_x2, tag - 1, sink);
      constexpr int IT = (D / 4 + NT - 1) / NT;
#pragma unroll
      for (int i = 0; i < IT; i++) {
        const int k = (threadIdx.x + i * NT) * 4;
        const uint2 e = embedding(token, k);
        sink(k, e.x, e.y);
      }
    });
    STAMP(0)
    products<FQ, D, false>(ring, qkv, ptr<const float>(y + Y_QKV + 1),
                           [&](int row, bool valid, float v, float) { put_pair(ll_qkv, row, valid, v * inverse_rms(), tag); });
    STAMP(1)
    if (p.head >= 0) attend(ring, p, ptr<char>(y + Y_KEYS), ptr<char>(y + Y_VALUES), tag);
    if (p.splits > 1)
      for (int q = NCTA - 1 - (int)blockIdx.x; q < N; q += NCTA) combine(p, q, tag);
    STAMP(2)
    load_plain<FO, N_H>(ll_mix, tag);
    STAMP(3)
    products<FO, N_H, false>(ring, o, ptr<const float>(y + Y_O + 1), [&](int row, bool valid, float v, float) {
      put_pair(ll_x1, row, valid, valid ? residual(row) + rounded(v) : 0.0f, tag);
    });
    STAMP(4)
    load_normed<FG>(ptr<const u16>(y + Y_NORM2), [&](auto sink) { gather<D>(ll_x1, tag, sink); });
    STAMP(5)
    products<FG, D, true>(ring, gate_up, ptr<const float>(y + Y_GU + 1), [&](int row, bool valid, float gate, float up) {
      const float inv = inverse_rms();
      const float gr = rounded(gate * inv), ur = rounded(up * inv);
      put_pair(ll_h, row, valid, __fdividef(gr, 1.0f + exp2_fast(-1.4426950408889634f * gr)) * ur, tag);
    });
    STAMP(6)
    load_plain<FD, F>(ll_h, tag);
    STAMP(7)
    products<FD, F, false>(ring, down, ptr<const float>(y + Y_DOWN + 1), [&](int row, bool valid, float v, float) {
      put_pair(ll_x2, row, valid, valid ? residual(row) + rounded(v) : 0.0f, tag);
    });
    STAMP(8)
  }
  load_normed<FH>(ptr<const u16>(T_NORM), [&](auto sink) { gather<D>(ll_x2, epoch + L, sink); });
  const float inv = inverse_rms();
  float* logits = ptr<float>(T_LOGITS);
  products<FH, D, false>(ring, share(V / 2, 4 * L), ptr<const float>(T_HEAD + 1), [&](int row, bool valid, float v, float) {
#ifndef PROFILE
    if (valid && threadIdx.x % TPO == 0) logits[row] = v * inv;
#endif
  });
  // Every block has read the epoch: this block has seen words of all of them.
  if (blockIdx.x == 0 && threadIdx.x == 0) g_epoch = epoch + L + 1;
}

extern "C" __global__ void __launch_bounds__(NT + 32 * PW, 1) jllama_decode(KERNEL_PARAMS) {
  u64* T = (u64*)(smem + OFF_TABLE);
  const int warp = threadIdx.x >> 5;
  if ((threadIdx.x & 31) == 0) {
    LOAD_TABLE
  }
  if (threadIdx.x == NT) {
#pragma unroll 1
    for (int i = 0; i < NSLOT; i++) {
      mbar_init(saddr(smem + OFF_BAR) + i * 8, PW);
      mbar_init(saddr(smem + OFF_BAR) + (NSLOT + i) * 8, WPG);
    }
    show_barriers();
  }
  __syncthreads();
  if (threadIdx.x == NT) find_past();
  __syncthreads();
  if (warp >= NW) produce_all(warp - NW);
  else consumer();
}
