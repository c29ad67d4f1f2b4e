// One decoding step of a model for TEXTS sequences, 1, 2, 4 or 8, as one persistent kernel: tokens in, logits out.
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
// Several texts (TEXTS > 1) would take TEXTS times the words of each block. Theirs have no tag: a pair is there if it is
// not zero (`put_bare`), in one of two buffers in turn, and whoever has handed h over in a layer, so that all have read
// what was handed over in the layer before, clears his share of that layer's words. The next layer's come there only
// after words that he puts later.
//
// Several GPUs (GPUS > 1) run the same step, each with its key heads, its part of F and of the head's rows: the sizes
// N K_ F V are a GPU's own. What a row of o or down makes on each of them is added up in the order of the GPUs, by
// words in each other's mailboxes (`peers.py`): the block that owns the row sends its sum to all others, takes theirs,
// and goes on as if alone. The same argument keeps those words safe: a GPU sends its next ones only after it has seen
// words of every block of the others that these wrote after they had read the last ones. Logits go the same way.
//
// The products run on the tensor cores with the weights as the 16-row operand; the 8 columns of the other
// operand have room for those of several texts. For weights of 8 and 4 bits it is the integer cores:
// the activations become fixed-point numbers of 16 bits, measured by the largest of 128 neighbours, or of 23 bits,
// measured by the largest of all (the 16-bit floats that they were had 8 or 11 bits), whose bytes ("limbs") lie in columns of their own, and so do those of four groups of weights: one product
// keeps apart what is scaled apart. Weights then need no conversion at all, or one `and` a byte.
//
// The host puts before this text: the sizes D F N K_ G H V L, EPS, what makes a family (`family.py`), NCTA,
// NSLOT, SLOT (bytes), TEXTS, NW (consumer warps), NG (groups of them), PW (producer
// warps), TEAM (those that stream layers), LAG (slots on their way at most), TC (cached tokens per block and turn),
// SHARED (bytes), FORMAT_EMBED, FORMATS_* (each format that the weight has in any layer), MIXED (1: some weight has
// several; FORMATS_OF_LAYERS says which layer has which), KERNEL_PARAMS and LOAD_TABLE (the pointers;
// see plan.py), JOINED (parts that every block joins), MOST_TURNS (of a block, rather than more parts), the sums of layout.py (QS TW AW, A_* and OFF_*: where things lie in shared memory), then primitives.cu.

#define NT (NW * 32)          // consumer threads
#define WPG (NW / NG)         // warps per group: a group takes every NG-th slot of the ring
#define TPO (NW / 4)          // threads that finish an output
#define OUTPUTS (NT / TPO)  // that are finished at once
#define PART_ROWS (OUTPUTS / (TEXTS > 4 ? 2 : 1))  // rows between two reductions across warps
#define PART_TEXT (PART_ROWS * NW * 4 + 16)  // bytes of a text's partial sums; the last keep texts on different banks
#define WORDS_AT_ONCE 12  // loads of words that a thread waits for together, where there are several texts
static_assert(4 % PW == 0 && PW % TEAM == 0, "producers share the rows of a tile evenly");
static_assert(TEXTS == 1 || TEXTS == 2 || TEXTS == 4 || TEXTS == 8, "each has whole warps and whole columns of a product");
#define XT (NT / TEXTS)  // threads that load a text's activations: whole warps
#define MAXP (NCTA / (K_ * TEXTS))
#define N_H (N * H)
#define QKV_ROWS (K_ * (G + 2) * H)

// Slots of the pointer table in shared memory.
// A weight has three: values, scales, offsets.
enum { T_TOKEN, T_LENGTH, T_FREQUENCIES, T_LIMITS = 4, T_NORM, T_LOGITS, T_EMBED, T_HEAD = 10, T_PEERS = 13, T_RANK, T_LAYERS = 16 };
enum { Y_NORM1, Y_NORM2, Y_KEYS, Y_VALUES, Y_QKV, Y_O = 7, Y_GU = 10, Y_DOWN = 13, Y_COUNT = LAYER_SLOTS };
enum { Y_POST1 = 16, Y_POST2, Y_Q_NORM, Y_K_NORM, Y_QKV_BIAS, Y_O_BIAS, Y_GU_BIAS, Y_DOWN_BIAS };  // where there are any

// Cached tokens of a turn are 8 runs of GT, PER of them in a slot of TS tokens. A run's values lie 16 bytes further on than those of the
// run before: so tokens of all runs lie in different banks.
constexpr int GT = TC / 8, TS = TC < (SLOT - 128) / (2 * H) / 16 * 16 ? TC : (SLOT - 128) / (2 * H) / 16 * 16, PER = TS / GT;
static_assert(TC % 8 == 0 && TS % GT == 0, "whole runs in each slot");

__device__ u32 g_epoch;
#if TEXTS > 1
typedef u32 Word;
#define BUFFERS 2
#else
typedef u64 Word;
#define BUFFERS 1
#endif
__device__ __align__(16) u64 ll_qkv[TEXTS * QKV_ROWS / 2];
__device__ __align__(16) Word ll_mix[BUFFERS * TEXTS * N_H / 2];
__device__ __align__(16) Word ll_x1[BUFFERS * TEXTS * D / 2];
__device__ __align__(16) Word ll_x2[BUFFERS * TEXTS * D / 2];
__device__ __align__(16) Word ll_h[BUFFERS * TEXTS * F / 2];
__device__ __align__(16) u64 ll_part[TEXTS * N * MAXP * (H / 2)];  // of 16 bytes: four dimensions of a part's mean, its weight

#ifdef PROFILE  // stamps in place of the logits: the clock's last 18 bits and which it is; a row of blocks for each
__device__ __forceinline__ void stamp(int which);
#define STAMP(i) if (threadIdx.x == 0) stamp(i);
#else
#define STAMP(i)
#endif

// ---- weight formats ------------------------------------------------------------------------------------

// BITS 16: plain. 8 or 4: GROUP weights share a scale of SB bytes; GROUP 0: the whole row does (float32).
// OFFSETS: weights are value * scale + offset; without, those of 4 bits are (value - 8) * scale. RECORD: so many bytes hold
// both for 256 weights (`layers/records.py`); 0: arrays of their own do.
enum { PLAIN, WHOLE, GROUPS, SIDE_BY_SIDE, FLOATS, FLOAT_GROUPS };  // the last three: several texts' products
// The rest, of rows of K weights, is summed up in layout.py: how their activations and their slices lie.
template <int BITS_, int GROUP_, int SB_, bool OFFSETS_, int RECORD_, int X_STRIDE_ = 0, int X_TEXT_ = 0, int NU_ = 0, int TR_ = 0, int STRIDE_ = 0,
          int SSTRIDE_ = 0, int SECOND_ = 0>
struct Format {
  static constexpr int BITS = BITS_, GROUP = GROUP_, SB = GROUP_ ? SB_ : 0;
  static constexpr bool OFFSETS = OFFSETS_;
  static constexpr int RECORD = RECORD_, LISTS = !GROUP_ ? 0 : OFFSETS_ && !RECORD_ ? 2 : 1;  // arrays beside the values
  static constexpr int KIND = BITS == 16 ? PLAIN : GROUP ? GROUPS : WHOLE;
  static constexpr bool AS_FLOATS = TO_FLOATS && BITS < 16, NORMED = false, HALF = FP16;
  static constexpr bool ROLLED = GROUP && (AS_FLOATS || RECORD);  // units in a loop: all of a slot's have no room in the instructions' cache
  static constexpr int UNIT = GROUP ? GROUP * BITS / 2 : 64;  // bytes of a row that a warp takes at a time
  static constexpr int RUN = RECORD ? IN_RECORD * BITS / 8 / UNIT : 1;  // units of a record, which one warp takes
  static constexpr int X_CHUNK = 128 / BITS;                  // activations for 16 bytes of weights
  static constexpr int X_STRIDE = X_STRIDE_, X_TEXT = X_TEXT_, NU = NU_, TR = TR_, STRIDE = STRIDE_, SSTRIDE = SSTRIDE_, SECOND = SECOND_;
};
// Where weights become floats, what a norm gave them to multiply is stored normalised: float16 has room for it, and 11 bits.
template <class FM, bool AFTER_NORM> struct Behind : FM {
  static constexpr bool NORMED = AFTER_NORM && FM::AS_FLOATS, HALF = FP16 || NORMED;
};
using FH = Behind<FORMATS_HEAD, true>;

// A layer's weight is in one of these formats: `go` is called with that one.
template <class... EACH> struct Formats {};
enum { OF_QKV, OF_O, OF_GU, OF_DOWN };
#if MIXED
__constant__ unsigned char g_formats[L] = FORMATS_OF_LAYERS;
__device__ __forceinline__ int format_of(int l, int weight) { return g_formats[l] >> 2 * weight & 3; }
#else
__device__ __forceinline__ int format_of(int, int) { return 0; }
#endif
template <class First, class... Rest, class Go> __device__ __forceinline__ void in_format(Formats<First, Rest...>, int which, Go go) {
  if constexpr (sizeof...(Rest) == 0) go(First());
  else if (which == 0) go(First());
  else in_format(Formats<Rest...>(), which - 1, go);
}
using QKV = Formats<FORMATS_QKV>;
using O = Formats<FORMATS_O>;
using GU = Formats<FORMATS_GU>;
using DOWN = Formats<FORMATS_DOWN>;

// How K activations lie in shared memory: 16-bit floats, or limbs, the highest first, then for each group of
// weights {what one unit of the lowest limb means, the sum of the group's activations}.
template <class FM, int K> struct X {
  static constexpr int LIMBS = FM::KIND == GROUPS ? 2 : 3;
  static constexpr int STRIDE = FM::X_STRIDE;  // between limbs
  static constexpr int INFO = LIMBS * STRIDE;
  static constexpr int TEXT = FM::X_TEXT;  // between texts
};

// How rows of K weights lie in the ring. A tile is TR rows; a slot holds a slice of each of them, then their
// scales, then as much of offsets: a padded piece a row, or, where rows of scales are no multiple of 16 bytes,
// one piece for all rows.
template <class FM, int K> struct Rows {
  static constexpr int BYTES = K * FM::BITS / 8;
  static __host__ __device__ constexpr int scales(int bytes) {
    const int weights = bytes * 8 / FM::BITS;
    return FM::RECORD ? weights / IN_RECORD * FM::RECORD : FM::GROUP ? weights / cmax(FM::GROUP, 1) * FM::SB : 0;
  }
  static constexpr int SCALES = scales(BYTES);  // bytes per row
  static constexpr int NU = FM::NU;  // units of 64 bytes per slice; every group of warps gets as many
  static constexpr int SLICE = NU * 64 < BYTES ? NU * 64 : BYTES, S = (BYTES + SLICE - 1) / SLICE;
  static constexpr int SURE = (BYTES - (S - 1) * SLICE) / FM::UNIT / FM::RUN / WPG * FM::RUN;  // units that every warp finds in every slice
  static constexpr int MOST = ((SLICE + FM::UNIT - 1) / FM::UNIT / FM::RUN + WPG - 1) / WPG * FM::RUN;  // and at most
  static constexpr int TR = FM::TR, HALVES = TR / 8, STRIDE = FM::STRIDE, SCALE_AT = TR * STRIDE;
  static constexpr bool PER_ROW = FM::SECOND == 0;
  static constexpr int SSTRIDE = FM::SSTRIDE, SECOND = FM::SECOND;  // SECOND: where the up rows' scales begin, in one piece
  static constexpr int SCALE_BYTES = FM::GROUP == 0 ? 0 : PER_ROW ? TR * SSTRIDE : 2 * SECOND;
  static_assert(S == 1 || PER_ROW, "scales of a slice");
  static_assert(SCALE_AT + FM::LISTS * SCALE_BYTES <= SLOT, "slot too small");
};


// ---- the table -----------------------------------------------------------------------------------------

// The text whose activations this thread loads, and which of that text's threads it is.
__device__ __forceinline__ int own_text() { return TEXTS == 1 ? 0 : threadIdx.x / XT; }
__device__ __forceinline__ u32 own_place() { return TEXTS == 1 ? threadIdx.x : threadIdx.x % XT; }
__device__ __forceinline__ void consumers_sync() { some_sync<NT>(); }
__device__ __forceinline__ u64 table(int slot) { return *(const u64*)(smem + OFF_TABLE + slot * 8); }
template <class T> __device__ __forceinline__ T* ptr(int slot) { return (T*)table(slot); }

