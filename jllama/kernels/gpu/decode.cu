// One decoding step of a Llama model for one sequence, as one persistent kernel: token in, logits out.
//
// One block per multiprocessor. In each block NW consumer warps compute and one producer warp streams
// this block's share of every weight, stage after stage, into a ring in shared memory. What to stream does
// not depend on activations, so the memory bus stays busy while the blocks wait for each other.
//
// Blocks exchange activations through words of 8 bytes, {two 16-bit values, tag}: a reader polls the data
// itself, so a hand-over costs one trip through the L2 cache and no barrier. The tag is new in every layer
// of every launch, and every stage needs all of the stage before it, so one buffer per stage is enough: a
// word is rewritten only after all of its readers have written something that the writer has read.
// (That needs every block to own work in every stage: the host chooses the number of blocks so.)
//
// The products run on the tensor cores with the weights as the 16-row operand; all 8 columns of the other
// operand hold the one activation vector. Weights of 8 and 4 bits are split into 4-bit halves; `MAGIC | q`
// is then the 16-bit float BASE + q, exactly, and the sum of BASE * x is taken off afterwards.
//
// The host puts before this text: the sizes D F N K_ G H V L, EPS, NCTA, SRB (bytes of a row per ring slot),
// NSLOT (a multiple of NG), SLOT (bytes), NW (consumer warps), NG (groups of them), TC (cached tokens per block and turn),
// SHARED (bytes), the formats FMT_* = bits, group, scale bytes, offsets, KERNEL_PARAMS and LOAD_TABLE (the pointers;
// see decode.py), then primitives.cu.

#define NT (NW * 32)  // consumer threads
#define WPG (NW / NG)  // warps per group: a group takes every NG-th slot of the ring
#define PART_ROWS (NT / 4)  // rows between two reductions across warps: four threads for each
#define MAXP (NCTA / K_)
#define N_H (N * H)
#define QKV_ROWS (K_ * (G + 2) * H)

// Slots of the pointer table in shared memory.
// A weight has three: values, scales, offsets.
enum { T_TOKEN, T_LENGTH, T_COS, T_SIN, T_LIMITS, T_NORM, T_LOGITS, T_EMBED, T_HEAD = 10, T_LAYERS = 16 };
enum { Y_NORM1, Y_NORM2, Y_KEYS, Y_VALUES, Y_QKV, Y_O = 7, Y_GU = 10, Y_DOWN = 13, Y_COUNT = 16 };

constexpr int TS = TC < SLOT / (2 * H) / 16 * 16 ? TC : SLOT / (2 * H) / 16 * 16;  // cached tokens per slot
constexpr int KMAX = cmax(cmax(D, F), N_H);
constexpr int X_BYTES = KMAX * 2;
constexpr int XSUM_BYTES = KMAX / 8;  // float per 32
constexpr int QS = H * 2 + 16;  // bytes between rows of q
constexpr int TW = TC > 8 * NW ? 16 : 8;  // tokens that a warp attends to at a time
constexpr int AW = TC / TW;               // warps that attend
constexpr int A_Q = 0, A_KV = 16 * QS, A_M = A_KV + H * 4, A_L = A_M + AW * 64, A_NEW = A_L + AW * 64;
constexpr int A_O = A_NEW + 64, A_BYTES = A_O + AW * G * H * 4;
constexpr int C_BYTES = (NT / H) * (H + 2) * 4;  // the combination of splits
constexpr int OFF_RING = 0;
constexpr int OFF_X = NSLOT * SLOT;
constexpr int OFF_PART = OFF_X + (cmax(cmax(X_BYTES + XSUM_BYTES, A_BYTES), C_BYTES) + 127) / 128 * 128;
constexpr int OFF_RES = OFF_PART + PART_ROWS * NW * 4;
constexpr int OFF_ROPE = OFF_RES + (D * 2 + 15) / 16 * 16;
constexpr int OFF_RED = OFF_ROPE + H * 4;
constexpr int OFF_BAR = OFF_RED + NW * 4;
constexpr int OFF_TABLE = OFF_BAR + 2 * NSLOT * 8;
constexpr int OFF_PAST = OFF_TABLE + (T_LAYERS + L * Y_COUNT) * 8;  // 64 bytes
static_assert(OFF_PAST + 64 <= SHARED, "decode.py asks for too little shared memory");

__device__ u32 g_epoch;
__device__ __align__(16) u64 ll_qkv[QKV_ROWS / 2];
__device__ __align__(16) u64 ll_mix[N_H / 2];
__device__ __align__(16) u64 ll_x1[D / 2];
__device__ __align__(16) u64 ll_x2[D / 2];
__device__ __align__(16) u64 ll_h[F / 2];
__device__ __align__(16) u64 ll_part[N * MAXP * (H + 2)];

#ifdef PROFILE  // clocks since the start at ten points of a layer, in place of the logits
#define STAMP(i) if (threadIdx.x == 0) ptr<float>(T_LOGITS)[blockIdx.x * L * 10 + l * 10 + i] = (float)(clock64() - start);
#else
#define STAMP(i)
#endif

// ---- the table -----------------------------------------------------------------------------------------

__device__ __forceinline__ void consumers_sync() { some_sync<NT>(); }
__device__ __forceinline__ u64 table(int slot) { return *(const u64*)(smem + OFF_TABLE + slot * 8); }
template <class T> __device__ __forceinline__ T* ptr(int slot) { return (T*)table(slot); }

// ---- weight formats ------------------------------------------------------------------------------------

// BITS 16: plain. 8 or 4: GROUP weights share a scale of SB bytes; GROUP 0: the whole row does (float32).
// OFFSETS: 4-bit weights are value * scale + offset; without, (value - 8) * scale.
template <int BITS_, int GROUP_, int SB_, bool OFFSETS_> struct Format {
  static constexpr int BITS = BITS_, GROUP = GROUP_, SB = GROUP_ ? SB_ : 0;
  static constexpr bool OFFSETS = OFFSETS_;
  static constexpr bool SUMS = BITS != 16;  // needs sums of the activations
  static constexpr bool ROW_SCALE = BITS != 16 && GROUP == 0;
  static constexpr int VW = GROUP ? GROUP * BITS / 32 : 16;  // bytes of a row per lane and step
  static constexpr int STEP = 4 * VW;                        // bytes of a row per step (four lanes)
  static constexpr int KSTEP = STEP * 8 / BITS;              // weights of a row per step
  static constexpr int STEPS = 64 / STEP;                    // steps per unit of 64 bytes
  static constexpr int XG = GROUP == 32 ? 32 : 64;           // activations per sum, see store_x
  static constexpr float TAKEN = BITS == 8 ? 17.0f * BASE + 128.0f : OFFSETS ? BASE : BASE + 8.0f;  // off a weight
  static constexpr int PAD = STEP;                           // keeps eight rows on different banks
};

// How rows of K weights lie in the ring. A tile is TR rows; a slot holds a slice of each of them, then their
// scales: one padded piece a row if there are several slices, else all in one piece.
template <class FM, int K> struct Rows {
  static constexpr int BYTES = K * FM::BITS / 8;
  static constexpr int SCALES = FM::GROUP ? K / cmax(FM::GROUP, 1) * FM::SB : 0;  // bytes per row
  static constexpr int UNITS = (BYTES + 63) / 64, LEAST = (UNITS + (BYTES - 1) / SRB) / ((BYTES - 1) / SRB + 1);
  static constexpr int NU = FM::GROUP ? (LEAST + 3) / 4 * 4 : LEAST;  // units per slice
  static constexpr int SLICE = NU * 64 < BYTES ? NU * 64 : BYTES, S = (BYTES + SLICE - 1) / SLICE;
  static constexpr int SURE = (BYTES - (S - 1) * SLICE) / 64 / WPG;  // units that every warp finds in every slice
  static constexpr int MOST = (SLICE + 64 * WPG - 1) / (64 * WPG);   // and at most
  static constexpr int HALVES = BYTES * 2 <= SRB ? 2 : 1, TR = 8 * HALVES;
  static constexpr int STRIDE = SLICE + FM::PAD, SCALE_AT = TR * STRIDE;
  static constexpr int SSTRIDE = S > 1 ? SLICE * 8 / FM::BITS / cmax(FM::GROUP, 1) * FM::SB + 16 : SCALES;
  static constexpr int SECOND = (TR / 2 * SCALES + 47) / 16 * 16;  // where the up rows' scales begin
  static constexpr bool TOGETHER = S > 1 || SCALES % 16 == 0;  // scales of a unit can be read at once
  static constexpr int SCALE_BYTES = S > 1 ? TR * SSTRIDE : 2 * SECOND;  // then as much of offsets
  static_assert(S == 1 || SCALES % 16 == 0, "scales of a slice");
  static_assert(SCALE_AT + (FM::GROUP ? (FM::OFFSETS ? 2 : 1) * SCALE_BYTES : 0) <= SLOT, "slot too small");
  static __host__ __device__ constexpr int scales(int bytes) { return FM::GROUP ? bytes * 8 / FM::BITS / cmax(FM::GROUP, 1) * FM::SB : 0; }
};

__device__ __forceinline__ void spread(u32 halves, u32& even, u32& odd) {
  even = __byte_perm(halves, MAGIC, 0x4140);
  odd = __byte_perm(halves, MAGIC, 0x4342);
}

template <int BYTES> struct Words { u32 w[BYTES / 4]; };
template <int BYTES> __device__ __forceinline__ Words<BYTES> lds(const char* p) {
  Words<BYTES> r;
  if constexpr (BYTES >= 16) {
#pragma unroll
    for (int i = 0; i < BYTES / 16; i++) {
      const uint4 v = *(const uint4*)(p + i * 16);
      r.w[4 * i] = v.x; r.w[4 * i + 1] = v.y; r.w[4 * i + 2] = v.z; r.w[4 * i + 3] = v.w;
    }
  } else if constexpr (BYTES == 8) { const uint2 v = *(const uint2*)p; r.w[0] = v.x; r.w[1] = v.y; }
  else r.w[0] = *(const u32*)p;
  return r;
}
// COUNT scales of 2 or 4 bytes; `together`: they lie at a multiple of their whole size.
template <int COUNT, int SB> __device__ __forceinline__ void load_scales(float (&to)[COUNT], const char* p, bool together) {
  if (together && COUNT * SB >= 4 && COUNT * SB <= 16) {
    const Words<COUNT * SB> w = lds<COUNT * SB>(p);
#pragma unroll
    for (int i = 0; i < COUNT; i++) to[i] = SB == 4 ? __uint_as_float(w.w[i]) : half_to_float((u16)(w.w[i / 2] >> i % 2 * 16));
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; i++) to[i] = SB == 2 ? half_to_float(((const u16*)p)[i]) : ((const float*)p)[i];
  }
}
__device__ __forceinline__ float scale_at(const char* p, int i, int bytes) {
  return bytes == 2 ? half_to_float(((const u16*)p)[i]) : ((const float*)p)[i];
}

// The product of 8 weight rows with the activations takes both 8-row halves of the 16-row operand: a lane's
// registers a0, a2 hold some of its row's weights, a1, a3 others; even columns of the other operand hold
// the activations of the former, odd columns those of the latter. c[0] and c[3] are the two sums.
//
// One unit: 64 bytes of each of 8 rows. row: the lane's row, at the unit. x: the activations at the unit's
// first element. xsum: what `BASE` adds for each XG of them, negated. steps: how many there are, if fewer than STEPS.
template <class FM, int OFFSETS_AT, bool TOGETHER> __device__ __forceinline__ void unit(float (&c)[4], float& sum, const char* row, const char* x,
                                                         const float* xsum, const char* scales, int steps) {
  const int t = threadIdx.x & 3, odd = (threadIdx.x >> 2) & 1;
  if constexpr (FM::BITS == 16) {
    const uint4 w = *(const uint4*)(row + t * 16);
    const uint2 xv = *(const uint2*)(x + t * 16 + odd * 8);  // store_x put them in this order
    mma(c, w.x, w.y, w.z, w.w, xv.x, xv.y);
  } else {
    constexpr bool NIBBLES = FM::BITS == 4;
    float scale[FM::STEPS], offset[FM::STEPS];
    if constexpr (FM::GROUP != 0) load_scales<FM::STEPS, FM::SB>(scale, scales, TOGETHER);
    if constexpr (FM::OFFSETS) load_scales<FM::STEPS, FM::SB>(offset, scales + OFFSETS_AT, TOGETHER);
#pragma unroll
    for (int s = 0; s < FM::STEPS; s++) {
      if (s >= steps) break;
      const Words<FM::VW> w = lds<FM::VW>(row + s * FM::STEP + t * FM::VW);
      const Words<FM::VW * 2> xv = lds<FM::VW * 2>(x + (s * FM::KSTEP + t * FM::VW + (NIBBLES ? odd * FM::KSTEP / 2 : 0)) * 2);
      float xs = 0;
#pragma unroll
      for (int i = 0; i < (FM::KSTEP + FM::XG - 1) / FM::XG; i++) xs += xsum[s * FM::KSTEP / FM::XG + i];
      float fresh[4] = {xs, 0, 0, 0};
      float(&d)[4] = FM::GROUP ? fresh : c;
#pragma unroll
      for (int j = 0; j < FM::VW / 4; j++) {
        u32 a0, a1, a2, a3;
        spread(w.w[j] & 0x0F0F0F0Fu, a0, a2);
        spread(((w.w[j] >> 4) & 0x0F0F0F0Fu) ^ (NIBBLES ? 0u : 0x08080808u), a1, a3);
        mma(d, a0, a1, a2, a3, xv.w[2 * j], xv.w[2 * j + 1]);
      }
      if constexpr (FM::GROUP != 0) sum += scale[s] * (d[0] + (NIBBLES ? 1.0f : 16.0f) * d[3]);
      if constexpr (FM::OFFSETS) sum += offset[s] * (xs * (-1.0f / BASE));
      if constexpr (FM::GROUP == 0) sum += xs;
    }
  }
}
// The finished sum of a row from what `unit` left.
template <class FM> __device__ __forceinline__ float finish(float c0, float c3, float sum) {
  if constexpr (FM::BITS == 16) return c0 + c3;
  else if constexpr (FM::GROUP != 0) return sum;
  else return c0 + 16.0f * c3 + sum;
}

// ---- shares: which rows of a stage belong to this block ------------------------------------------------

// Pairs of rows [first, last) of `pairs`; rotated from stage to stage so that odd ones out even up.
struct Share { int first, last; };
__device__ __forceinline__ Share share(int pairs, int stage) {
  const u32 c = (blockIdx.x + (u32)stage * 53u) % NCTA;
  return {(int)((u64)pairs * c / NCTA), (int)((u64)pairs * (c + 1) / NCTA)};
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

template <class FM, int K, bool PAIRS>
__device__ void produce(Ring& ring, Share rows, int weight, u64 policy) {
  using R = Rows<FM, K>;
  constexpr int TP = PAIRS ? R::TR / 2 : R::TR, LISTS = FM::OFFSETS ? 2 : 1;  // outputs per tile; scales, offsets
  const char* const weights = ptr<char>(weight);
  const int lane = threadIdx.x & 31, i = lane % TP;
  const bool up = lane >= TP;
#pragma unroll 1
  for (int r0 = rows.first * 2; r0 < rows.last * 2; r0 += TP) {
    const int n = min(TP, rows.last * 2 - r0), nr = PAIRS ? 2 * n : n;
    const bool mine = lane < R::TR && i < n;
    const long long row = r0 + i + (up ? F : 0);
#pragma unroll 1
    for (int off = 0; off < R::BYTES; off += R::SLICE) {
      const int bytes = min(R::SLICE, R::BYTES - off), sbytes = R::scales(bytes);
      mbar_wait(ring.empty(0), ring.parity(0) ^ 1);
      const u32 dst = saddr(ring.data(0)), bar = ring.full(0);
      if (FM::GROUP == 0 || R::S > 1) {
        if (lane == 0) mbar_expect(bar, nr * (bytes + LISTS * sbytes));
        __syncwarp();
      } else {  // whole rows: the scales of the tile in one piece, widened to 16 bytes at both ends
        const char* from = ptr<char>(weight + 1 + (lane >> 1 & 1)) + (r0 + (lane & 1 ? F : 0)) * (long long)R::SCALES;
        const u32 shift = (u32)(u64)from & 15, total = (n * R::SCALES + shift + 15) & ~15u;
        const u32 both = __shfl_sync(~0u, total, 0) + (PAIRS ? __shfl_sync(~0u, total, 1) : 0);
        if (lane == 0) mbar_expect(bar, nr * bytes + LISTS * both);
        __syncwarp();
        if (lane < 2 * LISTS && (PAIRS || !(lane & 1)))
          bulk_copy(dst + R::SCALE_AT + lane * R::SECOND, from - shift, total, bar, policy);
      }
      if (mine) {
        bulk_copy(dst + lane * R::STRIDE, weights + row * R::BYTES + off, bytes, bar, policy);
        if (FM::GROUP && R::S > 1)
          for (int i = 0; i < LISTS; i++)
            bulk_copy(dst + R::SCALE_AT + i * R::SCALE_BYTES + lane * R::SSTRIDE,
                      ptr<char>(weight + 1 + i) + row * R::SCALES + R::scales(off), sbytes, bar, policy);
      }
      ring.pos++;
    }
  }
}

__device__ __forceinline__ void produce_past(Ring& ring, const Past& p, const char* keys, const char* values, u64 policy) {
  if (p.head < 0) return;
  const int lane = threadIdx.x & 31;
  for (int c = p.begin; c < p.end; c++) {
    const size_t at = ((size_t)p.head * p.capacity + p.first + c * TC) * H * 2;
    const int tokens = min(TC, p.count - c * TC);
    for (int i = 0; i < 2; i++)
      for (int done = 0; done < tokens; done += TS) {
        const u32 bytes = min(TS, tokens - done) * H * 2;
        mbar_wait(ring.empty(0), ring.parity(0) ^ 1);
        if (lane == 0) {
          mbar_expect(ring.full(0), bytes);
          bulk_copy(saddr(ring.data(0)), (i ? values : keys) + at + done * H * 2, bytes, ring.full(0), policy);
        }
        __syncwarp();
        ring.pos++;
      }
  }
}

__device__ void producer() {
  const u64 once = read_once_policy();
  Ring ring;
  const Past& p = past();
  for (int l = 0; l < L; l++) {
    const int y = T_LAYERS + l * Y_COUNT;
    produce<Format<FMT_QKV>, D, false>(ring, share(QKV_ROWS / 2, 4 * l), y + Y_QKV, once);
    produce_past(ring, p, ptr<char>(y + Y_KEYS), ptr<char>(y + Y_VALUES), once);
    produce<Format<FMT_O>, N_H, false>(ring, share(D / 2, 4 * l + 1), y + Y_O, once);
    produce<Format<FMT_GU>, D, true>(ring, share(F / 2, 4 * l + 2), y + Y_GU, once);
    produce<Format<FMT_DOWN>, F, false>(ring, share(D / 2, 4 * l + 3), y + Y_DOWN, once);
  }
  produce<Format<FMT_HEAD>, D, false>(ring, share(V / 2, 4 * L), T_HEAD, once);
}

// ---- consumers -----------------------------------------------------------------------------------------

// Takes K elements of a tagged buffer; sink(index of the first, {e0,e1}, {e2,e3}) for every four.
template <int K, class Sink> __device__ __forceinline__ void gather(const u64* from, u32 tag, Sink sink) {
  constexpr int IT = (K / 4 + NT - 1) / NT;
  u64 a[IT], b[IT];
  for (u32 spins = 0;; patience(spins)) {
    bool missing = false;
#pragma unroll
    for (int i = 0; i < IT; i++) {
      const int at = threadIdx.x + i * NT;
      if (at < K / 4) peek2(from + at * 2, a[i], b[i]);
    }
#pragma unroll
    for (int i = 0; i < IT; i++)
      if ((int)threadIdx.x + i * NT < K / 4) missing |= (u32)(a[i] >> 32) != tag || (u32)(b[i] >> 32) != tag;
    if (!__any_sync(~0u, missing)) break;
    // Until its own first word has come, only one lane of the warp asks: less traffic.
    if ((threadIdx.x & 31) == 31 && threadIdx.x < K / 4) take(from + threadIdx.x * 2 + 1, tag);
    __syncwarp();
  }
#pragma unroll
  for (int i = 0; i < IT; i++) sink((int)(threadIdx.x + i * NT) * 4, (u32)a[i], (u32)b[i]);  // beyond K: ignored there
}

// Stores four activations for weights of format FM: for 16-bit weights the pairs of each eight in the order
// 0 2 1 3; for others as they are, and what BASE will add for each XG of them, negated.
template <class FM, int K> __device__ __forceinline__ void store_x(int k, u32 lo, u32 hi) {
  char* x = smem + OFF_X;
  if constexpr (!FM::SUMS) {
    if (k < K) {
      *(u32*)(x + (k & ~7) * 2 + (k & 4)) = lo;
      *(u32*)(x + (k & ~7) * 2 + (k & 4) + 8) = hi;
    }
  } else {
    if (k < K) *(uint2*)(x + k * 2) = make_uint2(lo, hi);
    float s = (to_float(lo) + high(lo)) + (to_float(hi) + high(hi));
    s += __shfl_xor_sync(~0u, s, 1);
    s += __shfl_xor_sync(~0u, s, 2);
    s += __shfl_xor_sync(~0u, s, 4);
    if (FM::XG == 64) s += __shfl_xor_sync(~0u, s, 8);
    if (k < K && k % FM::XG == 0) ((float*)(x + X_BYTES))[k / FM::XG] = -FM::TAKEN * s;
  }
}

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
  float squares = 0;
  int i = 0;
  load([&](int k, u32 lo, u32 hi) {
    const float e0 = to_float(lo), e1 = high(lo), e2 = to_float(hi), e3 = high(hi);
    if (k < D) {
      squares += (e0 * e0 + e1 * e1) + (e2 * e2 + e3 * e3);
      *(uint2*)(smem + OFF_RES + k * 2) = make_uint2(lo, hi);
    }
    const uint2 w = g[i++];
    store_x<FM, D>(k, pack(e0 * to_float(w.x), e1 * high(w.x)), pack(e2 * to_float(w.y), e3 * high(w.y)));
  });
  squares = warp_sum(squares);
  if ((threadIdx.x & 31) == 0) ((float*)(smem + OFF_RED))[threadIdx.x >> 5] = squares;
  consumers_sync();
}
template <class FM, int K> __device__ __forceinline__ void load_plain(const u64* from, u32 tag) {
  gather<K>(from, tag, [](int k, u32 lo, u32 hi) { store_x<FM, K>(k, lo, hi); });
  consumers_sync();
}
__device__ __forceinline__ float inverse_rms() {
  const float4* red = (const float4*)(smem + OFF_RED);
  float s = 0;
#pragma unroll
  for (int w = 0; w < NW / 4; w++) s += (red[w].x + red[w].y) + (red[w].z + red[w].w);
  return rsqrtf(s * (1.0f / D) + EPS);
}

// The sum over COLUMNS * 4 partial sums of a row; four neighbouring threads share one row.
template <int COLUMNS> __device__ __forceinline__ float across_warps(int row) {
  float s = 0;
  if ((threadIdx.x & 3) < COLUMNS) {
    const float4 v = *(const float4*)(smem + OFF_PART + (row * NW + (threadIdx.x & 3) * 4) * 4);
    s = (v.x + v.y) + (v.z + v.w);
  }
  s += __shfl_xor_sync(~0u, s, 1);
  s += __shfl_xor_sync(~0u, s, 2);
  return s;
}

// All rows of a stage that belong to this block. Slot i of the ring always goes to group i % NG, so that the
// same warps wait for each turn of its barrier; within a group, warp m takes unit m, m + WPG, ... of a row. done(row, valid, gate or plain value, up value): called by all
// four threads of an output alike.
template <class FM, int K, bool PAIRS, class Done>
__device__ __forceinline__ void products(Ring& ring, Share rows, const float* row_scales, Done done) {
  using R = Rows<FM, K>;
  constexpr int TP = PAIRS ? R::TR / 2 : R::TR, SEG = PART_ROWS / R::TR * TP;
  constexpr int COLUMNS = (R::S < NG ? R::S : NG) * WPG / 4;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2;
  const int group = warp / WPG, member = warp % WPG;
  const int last = rows.last * 2;
  const char* x = smem + OFF_X;
  const float* xsum = (const float*)(x + X_BYTES);
  float* part = (float*)(smem + OFF_PART);
#pragma unroll 1
  for (int seg = rows.first * 2; seg < last; seg += SEG) {
    const int end = min(seg + SEG, last);
    const int mine = seg + (int)(threadIdx.x >> 2);  // the output that this thread finishes
    float s0 = 1.0f, s1 = 1.0f;
    if (FM::ROW_SCALE && mine < end) {
      s0 = __ldg(row_scales + mine);
      if (PAIRS) s1 = __ldg(row_scales + F + mine);
    }
    const int chunks = (end - seg + TP - 1) / TP * R::S;
    float c[R::HALVES][2][4] = {}, sum[R::HALVES] = {};  // two chains each
    const int start = (group - (int)ring.pos) & (NG - 1);  // the group's first chunk
#pragma unroll 1
    for (int chunk = start; chunk < chunks; chunk += NG) {
      const int tile = chunk / R::S, s = chunk % R::S;
      mbar_wait(ring.full(chunk), ring.parity(chunk));
      const char* slot = ring.data(chunk);
      const int off = s * R::SLICE, bytes = min(R::SLICE, R::BYTES - off);
      const char* xs = x + off * 16 / FM::BITS;
      const float* xss = xsum + off * 8 / FM::BITS / FM::XG;
#pragma unroll
      for (int j = 0; j < R::MOST; j++) {
        const int u = (member + WPG * j) * 64;
        if (j >= R::SURE && u >= bytes) break;
        const int steps = R::BYTES % 64 && j >= R::SURE ? (bytes - u) / FM::STEP : FM::STEPS;
#pragma unroll
        for (int h = 0; h < R::HALVES; h++) {
          const int r = h * 8 + g;
          const char* scales = nullptr;
          if constexpr (FM::GROUP != 0) {
            scales = slot + R::SCALE_AT + R::scales(u);
            if constexpr (R::S > 1) scales += r * R::SSTRIDE;
            else {  // the address of the first scale of the tile, modulo 16, is where its copy begins
              const bool up = PAIRS && r >= TP;
              const long long first = (long long)(seg + tile * TP + (up ? F : 0)) * R::SCALES;
              scales += (up ? R::SECOND + (r - TP) * R::SCALES : r * R::SCALES) + (int)(first & 15);
            }
          }
          unit<FM, R::SCALE_BYTES, R::TOGETHER>(c[h][j & 1], sum[h], slot + r * R::STRIDE + u, xs + u * 16 / FM::BITS, xss + u * 8 / FM::BITS / FM::XG, scales, steps);
        }
      }
      __syncwarp();
      if (lane == 0) mbar_arrive(ring.empty(chunk));
      if (s + NG >= R::S) {  // the group's last slice of this tile
        const int column = ((start - tile * R::S) & (NG - 1)) * WPG + member;
#pragma unroll
        for (int h = 0; h < R::HALVES; h++) {
          const float v = finish<FM>(c[h][0][0] + c[h][1][0], c[h][0][3] + c[h][1][3], sum[h]);
          if ((lane & 3) == 0) part[(tile * R::TR + h * 8 + g) * NW + column] = v;
          c[h][0][0] = c[h][0][3] = c[h][1][0] = c[h][1][3] = sum[h] = 0;
        }
      }
    }
    ring.pos += chunks;
    consumers_sync();
    const int e = threadIdx.x >> 2;
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
  const float next = __shfl_down_sync(~0u, v, 4);
  if (valid && (threadIdx.x & 7) == 0) put(to + row / 2, pack(v, next), tag);
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
      const float alpha0 = exp2f(m0 - top0), alpha1 = exp2f(m1 - top1);
      m0 = top0; m1 = top1;
      l0 *= alpha0; l1 *= alpha1;
      u32 a[4] = {0, 0, 0, 0};
#pragma unroll
      for (int n = 0; n < TW / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) s[n][i] = exp2f(s[n][i] - (i < 2 ? m0 : m1));
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
    float top = fresh ? fresh_score[h] : MINUS_INF;
    for (int w = 0; w < used; w++) top = fmaxf(top, M[w * 16 + h]);
    float o0 = 0, o1 = 0, sum = 0;
    if (fresh) {
      const u32 v = *(const u32*)(A + A_KV + H * 2 + d * 2);
      sum = exp2f(fresh_score[h] - top);
      o0 = sum * to_float(v);
      o1 = sum * high(v);
    }
#pragma unroll 4
    for (int w = 0; w < used; w++) {
      const float weight = exp2f(M[w * 16 + h] - top);
      const float2 v = *(const float2*)(A + A_O + ((w * G + h) * H + d) * 4);
      o0 += weight * v.x;
      o1 += weight * v.y;
      sum += weight * LS[w * 16 + h];
    }
    const int q = p.head * G + h;
    if (p.splits == 1) {
      const float inv = 1.0f / sum;
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
  constexpr int GROUPS = NT / H;
  const int d = threadIdx.x % H, group = threadIdx.x / H;
  float* C = (float*)(smem + OFF_X);
  if (group < GROUPS) {
    float m = MINUS_INF, sum = 0, o = 0;
    for (int s = group; s < p.splits; s += GROUPS) {
      const u64* from = ll_part + (q * MAXP + s) * (H + 2);
      const float os = __uint_as_float(take(from + d, tag));
      const float ms = __uint_as_float(take(from + H, tag)), ls = __uint_as_float(take(from + H + 1, tag));
      const float top = fmaxf(m, ms), a = exp2f(m - top), b = exp2f(ms - top);
      o = o * a + os * b;
      sum = sum * a + ls * b;
      m = top;
    }
    C[group * (H + 2) + d] = o;
    if (d == 0) { C[group * (H + 2) + H] = m; C[group * (H + 2) + H + 1] = sum; }
  }
  consumers_sync();
  if (threadIdx.x < H / 2) {
    float m = MINUS_INF, sum = 0, o0 = 0, o1 = 0;
    for (int k = 0; k < min(GROUPS, p.splits); k++) {
      const float* c = C + k * (H + 2);
      const float top = fmaxf(m, c[H]), a = exp2f(m - top), b = exp2f(c[H] - top);
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
  const int token = *ptr<const int>(T_TOKEN);
  for (int i = threadIdx.x; i < H; i += NT)
    ((float*)(smem + OFF_ROPE))[i] = i < H / 2 ? ptr<const float>(T_COS)[i] : ptr<const float>(T_SIN)[i - H / 2];
  using FQ = Format<FMT_QKV>;
  using FO = Format<FMT_O>;
  using FG = Format<FMT_GU>;
  using FD = Format<FMT_DOWN>;
  using FH = Format<FMT_HEAD>;
#ifdef PROFILE
  const long long start = clock64();
#endif
  Ring ring;
  for (int l = 0; l < L; l++) {
    const int y = T_LAYERS + l * Y_COUNT;
    const u32 tag = epoch + l + 1;
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
    products<FQ, D, false>(ring, share(QKV_ROWS / 2, 4 * l), ptr<const float>(y + Y_QKV + 1),
                           [&](int row, bool valid, float v, float) { put_pair(ll_qkv, row, valid, v * inverse_rms(), tag); });
    STAMP(1)
    if (p.head >= 0) attend(ring, p, ptr<char>(y + Y_KEYS), ptr<char>(y + Y_VALUES), tag);
    if (p.splits > 1)
      for (int q = NCTA - 1 - (int)blockIdx.x; q < N; q += NCTA) combine(p, q, tag);
    STAMP(2)
    load_plain<FO, N_H>(ll_mix, tag);
    STAMP(3)
    products<FO, N_H, false>(ring, share(D / 2, 4 * l + 1), ptr<const float>(y + Y_O + 1), [&](int row, bool valid, float v, float) {
      put_pair(ll_x1, row, valid, valid ? residual(row) + rounded(v) : 0.0f, tag);
    });
    STAMP(4)
    load_normed<FG>(ptr<const u16>(y + Y_NORM2), [&](auto sink) { gather<D>(ll_x1, tag, sink); });
    STAMP(5)
    products<FG, D, true>(ring, share(F / 2, 4 * l + 2), ptr<const float>(y + Y_GU + 1), [&](int row, bool valid, float gate, float up) {
      const float inv = inverse_rms();
      const float gr = rounded(gate * inv), ur = rounded(up * inv);
      put_pair(ll_h, row, valid, gr / (1.0f + exp2f(-1.4426950408889634f * gr)) * ur, tag);
    });
    STAMP(6)
    load_plain<FD, F>(ll_h, tag);
    STAMP(7)
    products<FD, F, false>(ring, share(D / 2, 4 * l + 3), ptr<const float>(y + Y_DOWN + 1), [&](int row, bool valid, float v, float) {
      put_pair(ll_x2, row, valid, valid ? residual(row) + rounded(v) : 0.0f, tag);
    });
    STAMP(8)
  }
  load_normed<FH>(ptr<const u16>(T_NORM), [&](auto sink) { gather<D>(ll_x2, epoch + L, sink); });
  const float inv = inverse_rms();
  float* logits = ptr<float>(T_LOGITS);
  products<FH, D, false>(ring, share(V / 2, 4 * L), ptr<const float>(T_HEAD + 1), [&](int row, bool valid, float v, float) {
#ifndef PROFILE
    if (valid && (threadIdx.x & 3) == 0) logits[row] = v * inv;
#endif
  });
  // Every block has read the epoch: this block has seen words of all of them.
  if (blockIdx.x == 0 && threadIdx.x == 0) g_epoch = epoch + L + 1;
}

extern "C" __global__ void __launch_bounds__(NT + 32, 1) jllama_decode(KERNEL_PARAMS) {
  u64* T = (u64*)(smem + OFF_TABLE);
  const int warp = threadIdx.x >> 5;
  if ((threadIdx.x & 31) == 0) {
    LOAD_TABLE
  }
  if (threadIdx.x == NT) {
#pragma unroll 1
    for (int i = 0; i < NSLOT; i++) {
      mbar_init(saddr(smem + OFF_BAR) + i * 8, 1);
      mbar_init(saddr(smem + OFF_BAR) + (NSLOT + i) * 8, WPG);
    }
    show_barriers();
  }
  __syncthreads();
  if (threadIdx.x == NT) find_past();
  __syncthreads();
  if (warp == NW) producer();
  else consumer();
}
