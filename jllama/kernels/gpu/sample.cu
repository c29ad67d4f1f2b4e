// The next token of every sequence from its logits: bias, penalties, the largest, the draw, and what follows for
// the sequence's state. The twin of `decode_state.take_token`, one cluster of blocks a row.
//
// Candidates stand in order of falling probability, and the one in whose share the draw falls is taken. Nothing
// is sorted for that. Three questions ("which one is the k-th", "where does the sum reach p", "where does it reach
// the draw") are answered alike: 2,048 bins by the distance from the largest logit over the temperature, each with
// the number and the sum of weights of its candidates, tell which bin it is; the few candidates of that bin are
// compared with each other. If they are not few, the bin is divided into 2,048 in turn: by 22 bits of the distance
// at even steps over the whole range, then by the number's own 32 bits, then, for equals, by the token's id.
//
// Weights exp(-distance) are whole numbers of 2^-42. So sums do not depend on the order of addition, nor results
// on how many blocks share a row; less than half of a unit counts as nothing.
//
// The host puts before this text: V, CLUSTER (blocks a row), NT (threads a block), STOPS (how many stop ids),
// SHARED (bytes), APART (1: one block has more logits than room for them: they lie in an array of their own), FP16 (any),
// primitives.cu.

typedef unsigned char u8;

#if APART
#define LOGITS_APART , float* apart
#else
#define LOGITS_APART
#endif

constexpr int DIGIT = 11, BINS = 1 << DIGIT;
constexpr int LIMB = 14, LIMBS = 3;    // bits of a weight in each of the words that hold it
constexpr int SLICE = (V + CLUSTER - 1) / CLUSTER;
constexpr int SHARE = BINS / CLUSTER, EACH = SHARE > NT ? SHARE / NT : 1;  // bins that a block, a thread adds up
constexpr int FEW = 128;               // candidates that are compared with each other
constexpr int AT_ONCE = 8;             // logits that a thread asks for before it looks at one
constexpr float FARTHEST = 30.0f;      // exp(-30) * 2^42 is less than a half

struct Extremes { u32 top, id, lowest, finite; };  // as `ordered` numbers; the smallest id of the largest logit
struct __align__(16) Sum { u64 mass, count; };
struct __align__(16) Found { Sum before, in; u32 digit; };  // a bin
struct __align__(16) Candidate { u64 weight; float distance; u32 id; };
struct Place { u64 before, mass; u32 id; };  // of a candidate: mass before it and its own

constexpr int up16(int n) { return (n + 15) / 16 * 16; }
constexpr int SH_HISTOGRAM = up16(APART ? 8 : SLICE * 4);                  // [BINS][LIMBS + 1], see `word_of`
constexpr int SH_BINS = SH_HISTOGRAM + BINS * (LIMBS + 1) * 4;             // this block's share, summed over the row
constexpr int SH_BEFORE = SH_BINS + SHARE * 16;                            // what lies before each thread's bins
constexpr int SH_WARPS = SH_BEFORE + NT * 16;
constexpr int SH_PEERS = SH_WARPS + NT / 32 * 16, SH_TOTALS = SH_PEERS + CLUSTER * 16;
constexpr int SH_FOUND = SH_TOTALS + CLUSTER * 16;                         // two, used in turn
constexpr int FOUND_BYTES = up16(sizeof(Found));
constexpr int SH_OWN = SH_FOUND + 2 * FOUND_BYTES, SH_LIST = SH_OWN + FEW * 16;  // a block's candidates, all blocks'
constexpr int SH_LENGTHS = SH_LIST + CLUSTER * FEW * 16;
constexpr int SH_PLACE = SH_LENGTHS + up16(CLUSTER * 4), SH_LENGTH = SH_PLACE + up16(sizeof(Place));
constexpr int SH_UNIFORM = SH_LENGTH + 4, SH_END = SH_UNIFORM + 12;
static_assert(SH_END <= SHARED, "sample.py asks for too little shared memory");

template <class T> __device__ __forceinline__ T* shared(int at) { return (T*)(smem + at); }
// This block's logits, then distances: in shared memory, or where a pointer there says.
__device__ __forceinline__ float* slice() { return APART ? *shared<float*>(0) : shared<float>(0); }
template <class T> __device__ __forceinline__ void tell_all(T* where, const T& what) {
#pragma unroll
  for (int r = 0; r < CLUSTER; r++) *peer(where, r) = what;
}
template <class T> __device__ __forceinline__ void copy(T* to, const T* from) {  // in pieces of 16 bytes
#pragma unroll
  for (int i = 0; i < (int)sizeof(T) / 16; i++) ((uint4*)to)[i] = ((const uint4*)from)[i];
}
__device__ __forceinline__ int my_rank() { return (int)blockIdx.x % CLUSTER; }
__device__ __forceinline__ u32 id_at(int i) { return (u32)(my_rank() * SLICE + i); }
__device__ __forceinline__ int slice_size() { return min(SLICE, V - my_rank() * SLICE); }
__device__ __forceinline__ void all_sync() { cluster_arrive(), cluster_wait(); }

// ---- the draw's uniform number ---------------------------------------------------------------------------

// Threefry-2x32 with 20 rounds, as `jax.random` has it.
__device__ __forceinline__ void threefry(u32 k0, u32 k1, u32& x0, u32& x1) {
  const u32 keys[3] = {k0, k1, k0 ^ k1 ^ 0x1BD11BDAu};
  const int turns[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  x0 += k0;
  x1 += k1;
#pragma unroll
  for (int i = 0; i < 5; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      x0 += x1;
      x1 = (x1 << turns[i & 1][j] | x1 >> (32 - turns[i & 1][j])) ^ x0;
    }
    x0 += keys[(i + 1) % 3];
    x1 += keys[(i + 2) % 3] + i + 1;
  }
}
// `uniform(fold_in(key, position))` times 2^23.
__device__ __forceinline__ u32 uniform_bits(const u32* key, u32 position) {
  u32 k0 = 0, k1 = position, x0 = 0, x1 = 0;
  threefry(key[0], key[1], k0, k1);
  threefry(k0, k1, x0, x1);
  return (x0 ^ x1) >> 9;
}

// ---- extremes ----------------------------------------------------------------------------------------------

__device__ __forceinline__ u32 ordered(float v) {  // whole numbers in the order of the floats
  const u32 bits = __float_as_uint(v);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float unordered(u32 n) { return __uint_as_float(n >> 31 ? n & 0x7fffffffu : ~n); }

__device__ __forceinline__ Extremes of_warp(const Extremes& e) {
  const u32 top = __reduce_max_sync(~0u, e.top);
  return {top, __reduce_min_sync(~0u, e.top == top ? e.id : ~0u), __reduce_min_sync(~0u, e.lowest), __reduce_min_sync(~0u, e.finite)};
}

// Of each thread's extremes the row's, for all threads of the cluster; `meanwhile` is one warp's work.
template <class Work> __device__ __forceinline__ Extremes of_row(Extremes mine, Work meanwhile) {
  const int lane = threadIdx.x & 31;
  const Extremes none = {0, ~0u, ~0u, 1};
  Extremes *warps = shared<Extremes>(SH_WARPS), *peers = shared<Extremes>(SH_PEERS);
  mine = of_warp(mine);
  if (lane == 0) warps[threadIdx.x >> 5] = mine;
  __syncthreads();
  mine = of_warp(lane < NT / 32 ? warps[lane] : none);
  cluster_wait();  // all blocks have begun
  if (threadIdx.x < CLUSTER) *peer(peers + my_rank(), threadIdx.x) = mine;
  cluster_arrive();
  if (threadIdx.x >= NT - 32) meanwhile();
  cluster_wait();
  return of_warp(lane < CLUSTER ? peers[lane] : none);
}

// ---- bins --------------------------------------------------------------------------------------------------

__device__ __forceinline__ u64 weight(float distance) {  // nothing for what is not a number
  return distance < FARTHEST ? __float2ull_rn(expf(-distance) * 4398046511104.0f) : 0;
}

// Where a descent stands: the digits chosen so far, in three words: two for the distance, one for the token's id.
struct Path {
  float fine;       // steps of the first word per unit of distance
  float low, high;  // distances with the first digit lie between these
  u32 coarse, exact, id;
  __device__ __forceinline__ static int shift_of(int level) { return level == 4 ? 0 : (level < 2 ? level : level < 5 ? level - 2 : level - 5) ? 10 : 21; }
  __device__ __forceinline__ u32 word(int level, float distance, u32 id) const {
    return level < 2 ? (u32)(distance * fine) << 10 : level < 5 ? __float_as_uint(distance) : id << 10;
  }
  __device__ __forceinline__ u32 digit(int level, float distance, u32 id) const {
    return word(level, distance, id) >> shift_of(level) & (level == 4 ? BINS / 2 - 1 : BINS - 1);
  }
  // Whether the digits up to `level` are the chosen ones.
  __device__ __forceinline__ bool holds(int level, float distance, u32 id) const {
    if (!(distance >= low && distance <= high)) return false;  // most of them
    if (level >= 2 && word(0, distance, id) != coarse) return false;
    if (level >= 5 && word(2, distance, id) != exact) return false;
    return (word(level, distance, id) ^ (level < 2 ? coarse : level < 5 ? exact : this->id)) >> shift_of(level) == 0;
  }
  __device__ __forceinline__ void choose(int level, u32 digit) {
    (level < 2 ? coarse : level < 5 ? exact : id) |= digit << shift_of(level);
    if (level) return;
    low = fine > 0 ? (float)(digit << DIGIT) / fine * 0.99999f : 0.0f;
    high = fine > 0 ? (float)((digit + 1) << DIGIT) / fine * 1.00001f : FARTHEST;
  }
  __device__ __forceinline__ void clear() { coarse = exact = id = 0; }
};

// The word of a bin's number (0) or of a part of its mass: equal words of 32 bins lie on different banks.
__device__ __forceinline__ u32 word_of(u32 bin, u32 which) { return bin * 4 + ((which + (bin >> 3)) & 3); }

__device__ __forceinline__ void clear_histogram() {
  for (int i = threadIdx.x; i < BINS; i += NT) shared<uint4>(SH_HISTOGRAM)[i] = make_uint4(0, 0, 0, 0);
}

__device__ __forceinline__ void add_to(u32 bin, u64 w) {
  u32* const histogram = shared<u32>(SH_HISTOGRAM);
  if (w == 0) return;
  atomicAdd(histogram + word_of(bin, 0), 1u);
#pragma unroll
  for (int limb = 0; limb < LIMBS; limb++) {
    const u32 part = (u32)(w >> LIMB * limb) & (limb + 1 < LIMBS ? (1u << LIMB) - 1 : ~0u);
    if (part) atomicAdd(histogram + word_of(bin, limb + 1), part);
  }
}

// Turns this block's logits into distances, and counts all candidates.
__device__ __forceinline__ void count_all(const Path& path, float top, float temperature) {
  float* values = slice();
  constexpr int TOGETHER = 4;
  for (int i0 = threadIdx.x, size = slice_size(); i0 < size; i0 += NT * TOGETHER) {
    u64 w[TOGETHER];
    u32 bin[TOGETHER];
#pragma unroll
    for (int j = 0; j < TOGETHER; j++) {
      const int i = i0 + j * NT;
      const float distance = i < size ? (top - values[i]) / temperature : FARTHEST;
      w[j] = weight(distance);
      bin[j] = path.digit(0, distance, 0);
      if (i < size) values[i] = distance;
    }
#pragma unroll
    for (int j = 0; j < TOGETHER; j++) add_to(bin[j], w[j]);
  }
}

// Counts those below the path.
__device__ void count_below(const Path& path, int level) {
  const float* distances = slice();
  for (int i = threadIdx.x, size = slice_size(); i < size; i += NT)
    if (!level || path.holds(level - 1, distances[i], id_at(i)))
      add_to(path.digit(level, distances[i], id_at(i)), weight(distances[i]));
}

// A bin's number and mass, summed over the row's blocks.
__device__ __forceinline__ Sum of_all(u32 bin) {
  u64 mass = 0;
  u32 count = 0;
#pragma unroll
  for (int r = 0; r < CLUSTER; r++) {
    const uint4 v = *peer(shared<const uint4>(SH_HISTOGRAM) + bin, r);
    const u32 turned = bin >> 3 & 3;  // undoes `word_of`
    const u32 a = turned & 1 ? v.y : v.x, b = turned & 1 ? v.z : v.y, c = turned & 1 ? v.w : v.z, d = turned & 1 ? v.x : v.w;
    count += turned & 2 ? c : a;
    mass += (turned & 2 ? d : b) + ((u64)(turned & 2 ? a : c) << LIMB) + ((u64)(turned & 2 ? b : d) << 2 * LIMB);
  }
  return {mass, count};
}

// From the histograms of all blocks the bins' sums, and what lies before each.
__device__ __noinline__ void add_up() {
  all_sync();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  Sum *bins = shared<Sum>(SH_BINS), *warps = shared<Sum>(SH_WARPS), own = {0, 0};
  for (int i = threadIdx.x * EACH; i < min(SHARE, (int)(threadIdx.x + 1) * EACH); i++) {
    bins[i] = of_all(my_rank() * SHARE + i);
    own.mass += bins[i].mass;
    own.count += bins[i].count;
  }
  Sum to = own;
#pragma unroll
  for (int s = 1; s < 32; s *= 2) {
    const u64 mass = __shfl_up_sync(~0u, to.mass, s);
    const u32 count = __shfl_up_sync(~0u, (u32)to.count, s);
    if (lane >= s) to.mass += mass, to.count += count;
  }
  if (lane == 31) warps[warp] = to;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < NT / 32; w++)
    if (w < warp) to.mass += warps[w].mass, to.count += warps[w].count;
  shared<Sum>(SH_BEFORE)[threadIdx.x] = {to.mass - own.mass, to.count - own.count};
  if (threadIdx.x == NT - 1) tell_all(shared<Sum>(SH_TOTALS) + my_rank(), to);
  all_sync();
}

// The bins of `level` below the path.
__device__ __noinline__ void divide(const Path& path, int level) {
  clear_histogram();
  __syncthreads();
  count_below(path, level);
  add_up();
}

__device__ __forceinline__ Sum total_before(int rank) {
  Sum sum = {0, 0};
#pragma unroll
  for (int r = 0; r < CLUSTER; r++)
    if (r < rank) sum.mass += shared<const Sum>(SH_TOTALS)[r].mass, sum.count += shared<const Sum>(SH_TOTALS)[r].count;
  return sum;
}

// The bin in which the running number or mass passes `target`; `turn` alternates from call to call.
__device__ __noinline__ Found find(bool by_count, u64 target, u32 turn) {
  Found* const found = (Found*)(smem + SH_FOUND + (turn & 1) * FOUND_BYTES);
  const Sum *bins = shared<const Sum>(SH_BINS), mine = shared<const Sum>(SH_BEFORE)[threadIdx.x];
  Sum before = total_before(my_rank());
  before.mass += mine.mass;
  before.count += mine.count;
  for (int i = threadIdx.x * EACH; i < min(SHARE, (int)(threadIdx.x + 1) * EACH); i++) {
    const Sum in = bins[i];
    const u64 passed = by_count ? before.count : before.mass;
    if (target >= passed && target - passed < (by_count ? in.count : in.mass))
      tell_all(found, Found{before, in, (u32)(my_rank() * SHARE + i)});
    before.mass += in.mass;
    before.count += in.count;
  }
  all_sync();
  return *found;
}

// ---- a few candidates --------------------------------------------------------------------------------------

// Every block gets the candidates below the path, those of block r from place r * FEW on.
__device__ __noinline__ void gather(const Path& path, int level) {
  const float* distances = slice();
  Candidate *own = shared<Candidate>(SH_OWN), *list = shared<Candidate>(SH_LIST) + my_rank() * FEW;
  u32* const length = shared<u32>(SH_LENGTH);
#pragma unroll 4
  for (int i = threadIdx.x, size = slice_size(); i < size; i += NT) {
    const float distance = distances[i];
    if (!path.holds(level, distance, id_at(i))) continue;
    const u64 w = weight(distance);
    if (w) own[atomicAdd(length, 1u)] = {w, distance, id_at(i)};
  }
  __syncthreads();
  const int count = *length;
  for (int i = threadIdx.x; i < count * CLUSTER; i += NT) copy(peer(list + i / CLUSTER, i % CLUSTER), own + i / CLUSTER);
  if (threadIdx.x < CLUSTER) *peer(shared<u32>(SH_LENGTHS) + my_rank(), threadIdx.x) = count;
  all_sync();
  if (threadIdx.x == 0) *length = 0;
}

// The candidate of the list at which the running number or mass passes `target`: eight threads look at each.
__device__ __noinline__ Place compare(bool by_count, u64 target, u64 before) {
  const Candidate* list = shared<const Candidate>(SH_LIST);
  const u32* lengths = shared<const u32>(SH_LENGTHS);
  Candidate* all = shared<Candidate>(SH_HISTOGRAM);  // without gaps
  static_assert(CLUSTER * FEW * 16 <= BINS * (LIMBS + 1) * 4, "room for the list");
  int n = 0;
#pragma unroll
  for (int r = 0; r < CLUSTER; r++) {
    for (int i = threadIdx.x; i < (int)lengths[r]; i += NT) copy(all + n + i, list + r * FEW + i);
    n += lengths[r];
  }
  __syncthreads();
  constexpr int EIGHT = 8;
  for (int i0 = 0; i0 < n; i0 += NT / EIGHT) {
    const int i = i0 + (int)threadIdx.x / EIGHT;
    const Candidate mine = all[min(i, n - 1)];
    u64 mass = 0;
    u32 count = 0;
#pragma unroll 4
    for (int j = threadIdx.x % EIGHT; j < n; j += EIGHT) {
      const Candidate other = all[j];
      const bool first = other.distance < mine.distance || (other.distance == mine.distance && other.id < mine.id);
      mass += first ? other.weight : 0;
      count += first;
    }
#pragma unroll
    for (int s = 1; s < EIGHT; s *= 2) mass += __shfl_xor_sync(~0u, mass, s), count += __shfl_xor_sync(~0u, count, s);
    const u64 passed = by_count ? count : mass;
    if (i < n && target >= passed && target - passed < (by_count ? 1 : mine.weight))
      *shared<Place>(SH_PLACE) = {before + mass, mine.weight, mine.id};  // all eight say the same
  }
  __syncthreads();
  return *shared<const Place>(SH_PLACE);
}

// ---- the row -----------------------------------------------------------------------------------------------

struct Descents {
  Path path;
  u32 turn = 0;
  bool at_first = true;  // the bins are those of level 0

  // The candidate at which the running number or mass passes `target`, which is less than all there is; its id
  // is told with `whose` only.
  __device__ __noinline__ Place to(bool by_count, u64 target, bool whose) {
    u64 before = 0;
    path.clear();
    if (!at_first) divide(path, 0);
    at_first = true;
    for (int level = 0;; level++) {
      if (level) divide(path, level), at_first = false;
      const Found found = find(by_count, target, turn++);
      before += found.before.mass;
      target -= by_count ? found.before.count : found.before.mass;
      path.choose(level, found.digit);
      if (found.in.count == 1 && !whose) return {before, found.in.mass, 0};
      if (found.in.count > FEW) continue;
      gather(path, level);
      return compare(by_count, target, before);
    }
  }
};

struct Row {  // the settings of `jllama.layers.sampling.Sampling`
  float temperature, top_p, min_p, repetition, presence, frequency;
  int top_k;
  bool biased, penalized;
};

// Step 1 to 3 of `Sampling`; with settings that change nothing neither bias nor counts are read.
__device__ __forceinline__ float changed(float v, const Row& r, size_t at, const float* bias, const u8* prompt, const int* answer) {
  if (r.biased) v += __ldg(bias + at);
  if (!r.penalized) return v;
  const int times = answer[at];
  if (times > 0 || __ldg(prompt + at)) v = v > 0 ? v / r.repetition : v * r.repetition;
  return times > 0 ? fmaf(-r.frequency, (float)times, v - r.presence) : v;
}

// Puts the row's changed logits into shared memory, a slice a block; this thread's extremes.
__device__ Extremes load(const Row& r, const float* logits, const float* bias, const u8* prompt, const int* answer) {
  float* values = slice();
  const size_t start = (size_t)(blockIdx.x / CLUSTER) * V + my_rank() * SLICE;
  const int size = slice_size();
  Extremes all = {0, ~0u, ~0u, 1};
  for (int i0 = threadIdx.x; i0 < size; i0 += NT * AT_ONCE) {
    float v[AT_ONCE];
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) v[j] = i0 + j * NT < size ? __ldg(logits + start + i0 + j * NT) : 0;
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) {
      const int i = i0 + j * NT;
      if (i >= size) break;
      if (!(fabsf(v[j]) < -MINUS_INF)) all.finite = 0;
      const float y = changed(v[j], r, start + i, bias, prompt, answer) + 0.0f;  // minus nothing equals nothing
      values[i] = y;
      if (!(y == y)) continue;
      const u32 o = ordered(y);
      if (o > all.top) all.top = o, all.id = id_at(i);
      all.lowest = min(all.lowest, o);
    }
  }
  return all;
}

// The mass of the candidates that are at least `least` times as probable as the first one.
__device__ u64 mass_from(float least) {
  const float* distances = slice();
  u64 sum = 0;
  for (int i = threadIdx.x, size = slice_size(); i < size; i += NT)
    if (expf(-distances[i]) >= least) sum += weight(distances[i]);
#pragma unroll
  for (int i = 16; i; i >>= 1) sum += __shfl_xor_sync(~0u, sum, i);
  u64* const warps = shared<u64>(SH_WARPS);
  if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = sum;
  __syncthreads();
  sum = 0;
  for (int w = 0; w < NT / 32; w++) sum += warps[w];
  if (threadIdx.x == 0) tell_all(shared<u64>(SH_PEERS) + my_rank(), sum);
  all_sync();
  sum = 0;
  for (int r = 0; r < CLUSTER; r++) sum += shared<const u64>(SH_PEERS)[r];
  return sum;
}

// Steps 4 to 7 and the draw; `largest` if there is nothing to draw from.
__device__ u32 draw(const Row& r, float top, float lowest, u32 largest) {
  const float reach = fminf((top - lowest) / r.temperature, FARTHEST);
  Descents descents;
  descents.path.fine = reach > 1e-30f ? 4194000.0f / reach : 0.0f;  // a little less than 2^22 steps to the end
  count_all(descents.path, top, r.temperature);
  add_up();
  const Sum all = total_before(CLUSTER);
  if (all.mass == 0) return largest;
  u64 kept = all.mass;  // each cut leaves the first few candidates: their mass says how many
  if (r.top_k > 0 && r.top_k < all.count) {
    const Place last = descents.to(true, r.top_k - 1, false);
    kept = last.before + last.mass;
  }
  if (r.top_p < 1.0f) {
    const u64 wanted = (u64)ceil((double)r.top_p * (double)kept);
    const Place last = descents.to(false, min(max(wanted, (u64)1), kept) - 1, false);
    kept = last.before + last.mass;
  }
  if (r.min_p > 0.0f) kept = min(kept, mass_from(r.min_p));
  return descents.to(false, __umul64hi(kept, (u64)*shared<const u32>(SH_UNIFORM) << 41), true).id;
}

extern "C" __global__ void IN_CLUSTERS __launch_bounds__(NT, 1024 / NT)
jllama_sample(const float* logits, const float* temperature, const int* top_k, const float* top_p, const float* min_p,
              const float* repetition, const float* presence, const float* frequency, const float* bias, const u8* biased,
              const u8* prompt, const u32* keys, const int* limit, const int* stop_ids, const int*, const int*, const u8*,
              const u8*, const int*, int* token, int* generated, u8* done, u8* healthy, int* answer LOGITS_APART) {
  const int row = (int)blockIdx.x / CLUSTER;
  const bool penalized = repetition[row] != 1.0f || presence[row] != 0.0f || frequency[row] != 0.0f;
  const Row r = {temperature[row], top_p[row], min_p[row], repetition[row], presence[row], frequency[row],
                 top_k[row], biased[row] != 0, penalized};
  const int position = generated[row];
  if (done[row]) return;
#if APART
  *shared<float*>(0) = apart + (size_t)row * V;
  __syncthreads();
#endif
  cluster_arrive();
  const Extremes mine = load(r, logits, bias, prompt, answer);
  const bool draws = r.temperature > 0.0f;
  if (draws) clear_histogram();
  if (threadIdx.x == 0) *shared<u32>(SH_LENGTH) = 0;
  const Extremes all = of_row(mine, [&] {
    if (draws && threadIdx.x == NT - 1) *shared<u32>(SH_UNIFORM) = uniform_bits(keys + 2 * row, position);
  });
  const u32 largest = min(all.id, (u32)V - 1);
  const int next = draws && all.finite ? draw(r, unordered(all.top), unordered(all.lowest), largest) : largest;

  if (my_rank() || threadIdx.x) return;
  bool ended = position + 1 >= limit[row];
  for (int i = 0; i < STOPS; i++) ended |= stop_ids[row * STOPS + i] == next;
  token[row] = next;
  generated[row] = position + 1;
  done[row] = ended || !all.finite;
  healthy[row] = healthy[row] && all.finite;
  answer[(size_t)row * V + next] += 1;
}
