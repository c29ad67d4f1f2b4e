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

