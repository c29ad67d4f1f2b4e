// ---- consumers -----------------------------------------------------------------------------------------

// Where a text's K elements of a hand-over lie.
template <int K> __device__ __forceinline__ u64* words_of(u64* all, int, u32) { return all; }
template <int K> __device__ __forceinline__ u32* words_of(u32* all, int text, u32 tag) { return all + ((tag & 1) * TEXTS + text) * (K / 2); }

// Waits for word after word; only one lane of a warp asks.
__device__ __forceinline__ void await(const u64* p, u32 tag) { take(p, tag); }
__device__ __forceinline__ void await(const u32* p, u32) {
  for (u32 spins = 0; !peek_bare(p).y; patience(spins)) {}
}

// The activations that a thread takes together: four, or eight side by side.
template <class FM> constexpr bool BY_EIGHT = TEXTS > 1 && (FM::KIND != GROUPS || FM::AS_FLOATS);
template <int K, bool EIGHT> constexpr int FOURS = (EIGHT ? 2 : 1) * ((K / (EIGHT ? 8 : 4) + XT - 1) / XT);  // of a thread
// The first element of a thread's i-th four.
template <bool EIGHT> __device__ __forceinline__ int element(int i) {
  return EIGHT ? (int)(own_place() + i / 2 * XT) * 8 + i % 2 * 4 : (int)(own_place() + i * XT) * 4;
}

// Words that a thread asks for at once: of four elements, or of eight.
struct Tagged {
  u64 a, b;
  __device__ __forceinline__ void nothing(u32 tag) { a = b = (u64)~tag << 32; }
  __device__ __forceinline__ bool missing(u32 tag) const { return (u32)(a >> 32) != tag || (u32)(b >> 32) != tag; }
  __device__ __forceinline__ void ask(const u64* p) { peek2(p, a, b); }
  __device__ __forceinline__ u32 lo() const { return (u32)a; }
  __device__ __forceinline__ u32 hi() const { return (u32)b; }
};
struct BareEight {
  uint4 w;
  __device__ __forceinline__ void nothing(u32) { w = make_uint4(0, 0, 0, 0); }
  __device__ __forceinline__ bool missing(u32) const { return !w.x || !w.y || !w.z || !w.w; }
  __device__ __forceinline__ void ask(const u32* p) { w = peek4_bare(p); }
};
struct Bare {
  uint2 w;
  __device__ __forceinline__ void nothing(u32) { w = make_uint2(0, 0); }
  __device__ __forceinline__ bool missing(u32) const { return !w.x || !w.y; }
  __device__ __forceinline__ void ask(const u32* p) { w = peek_bare(p); }
  __device__ __forceinline__ u32 lo() const { return ~w.x; }
  __device__ __forceinline__ u32 hi() const { return ~w.y; }
};
#if TEXTS > 1
template <bool EIGHT> struct WordsOf : Bare {};
template <> struct WordsOf<true> : BareEight {};
#else
template <bool> struct WordsOf : Tagged {};
#endif

// Takes a text's K elements of a buffer; sink(index of the first, {e0,e1}, {e2,e3}) for every four.
template <int K, bool EIGHT, class Sink> __device__ __forceinline__ void gather(const Word* all, u32 tag, Sink sink) {
  constexpr int EACH = EIGHT ? 8 : 4, ALL = (K / EACH + XT - 1) / XT;
  constexpr int PARTS = TEXTS == 1 ? 1 : (ALL + WORDS_AT_ONCE - 1) / WORDS_AT_ONCE, IT = (ALL + PARTS - 1) / PARTS;
  const u32 place = own_place();
  const Word* from = words_of<K>((Word*)all, own_text(), tag);
  // Until its own first word has come, only one lane of the warp asks, and then only for words that miss: less traffic.
  if ((threadIdx.x & 31) == 31 && place < K / EACH) await(from + place * (EACH / 2) + (TEXTS == 1), tag);
  __syncwarp();
  STAMP(16)
#pragma unroll
  for (int part = 0; part < PARTS; part++) {
    WordsOf<EIGHT> w[IT];
    const auto at = [&](int i) { return (int)(place + (part * IT + i) * XT); };
#pragma unroll
    for (int i = 0; i < IT; i++) w[i].nothing(tag);
    for (u32 spins = 0;; patience(spins)) {
      bool missing = false;
#pragma unroll
      for (int i = 0; i < IT; i++)
        if (at(i) < K / EACH && w[i].missing(tag)) w[i].ask(from + at(i) * (EACH / 2));
#pragma unroll
      for (int i = 0; i < IT; i++)
        if (at(i) < K / EACH) missing |= w[i].missing(tag);
      if (!__any_sync(~0u, missing)) break;
    }
    STAMP(17)
#pragma unroll
    for (int i = 0; i < IT; i++) {  // beyond K: ignored there
      if (part * IT + i >= ALL) break;
      if constexpr (EIGHT) {
        sink(at(i) * 8, ~w[i].w.x, ~w[i].w.y);
        sink(at(i) * 8 + 4, ~w[i].w.z, ~w[i].w.w);
      } else sink(at(i) * 4, w[i].lo(), w[i].hi());
    }
  }
}

// Stores activations for weights of format FM, four at a time as `gather` hands them out, of all threads alike;
// `finish` makes them visible to the whole block. HALF: `words` alone hands them over, and they are kept as they are.
template <class FM, int K, bool HALF = false, int KIND = FM::AS_FLOATS ? FLOATS : FM::KIND> struct Store;

// 16-bit floats, the pairs of each eight in the order 0 2 1 3.
template <class FM, int K, bool HALF> struct Store<FM, K, HALF, PLAIN> {
  u32 first[2];  // pairs of an eight
  __device__ __forceinline__ void words(int i, int k, u32 lo, u32 hi) {
    if (k >= K) return;
    char* to = smem + OFF_X + own_text() * X<FM, K>::TEXT + (k & ~7) * 2;
    if (!BY_EIGHT<FM>) *(u32*)(to + (k & 4)) = lo, *(u32*)(to + (k & 4) + 8) = hi;
    else if (i % 2 == 0) first[0] = lo, first[1] = hi;
    else *(uint4*)to = make_uint4(first[0], lo, first[1], hi);
  }
  __device__ __forceinline__ void four(int i, int k, float e0, float e1, float e2, float e3) {
    words(i, k, pack(e0, e1), pack(e2, e3));
  }
  __device__ __forceinline__ void finish() { consumers_sync(); }
};

// 16-bit floats for weights that become some: elements 0, 2, 1, 3 of each four, where the lane that multiplies them finds
// eight together: of 16 bytes of weights, or of two chunks of 16 weights, which are halves of a group of 4 bits.
template <class FM, int K, bool HALF> struct Store<FM, K, HALF, FLOATS> {
  u32 first[2];  // pairs of an eight
  static __device__ __forceinline__ int at(int k) {  // byte
    if (!FM::GROUP) return k / 64 * 128 + k / 8 % 2 * 64 + k / 16 % 4 * 16 + k / 4 % 2 * 8;
    constexpr int FAR = FM::BITS == 4 ? FM::GROUP / 32 : 1;  // chunks apart
    const int chunk = k / 16;
    return chunk / (2 * FAR) * (FAR * 64) + chunk % FAR * 64 + k / 4 % 4 * 16 + chunk / FAR % 2 * 8;
  }
  __device__ __forceinline__ void put(int i, int k, u32 even, u32 odd) {
    char* to = smem + OFF_X + own_text() * X<FM, K>::TEXT;
    if (k >= K) return;
    if (FM::GROUP) *(uint2*)(to + at(k)) = make_uint2(even, odd);
    else if (i % 2 == 0) first[0] = even, first[1] = odd;
    else *(uint4*)(to + at(k - 4)) = make_uint4(first[0], first[1], even, odd);
  }
  __device__ __forceinline__ void words(int i, int k, u32 lo, u32 hi) { put(i, k, __byte_perm(lo, hi, 0x5410), __byte_perm(lo, hi, 0x7632)); }
  __device__ __forceinline__ void four(int i, int k, float e0, float e1, float e2, float e3) {
    if constexpr (FM::NORMED) put(i, k, pack_half(e0, e2), pack_half(e1, e3));
    else put(i, k, pack(e0, e2), pack(e1, e3));
  }
  __device__ __forceinline__ void finish() {
    if (!FM::GROUP && K % 64 && own_place() < 8)  // a unit's rest
      *(uint2*)(smem + OFF_X + own_text() * X<FM, K>::TEXT + at(K + (int)own_place() * 4)) = make_uint2(0, 0);
    consumers_sync();
  }
};

constexpr float ROUNDS = 12582912.0f;  // 1.5 * 2^23: in the low bits of ROUNDS + v stands the integer next to v
constexpr u32 ROUNDS_BITS = 0x4B400000u;

// All of a thread's activations, four at a time; the largest of a warp's.
template <int K, bool EIGHT, bool HALF> struct Kept {
  static constexpr int IT = FOURS<K, EIGHT>;
  float e[HALF ? 1 : IT][4];
  u32 pairs[HALF ? IT : 1][2];
  __device__ __forceinline__ void four(int i, int k, float e0, float e1, float e2, float e3) {
    const bool in = k < K;
    e[i][0] = in ? e0 : 0; e[i][1] = in ? e1 : 0; e[i][2] = in ? e2 : 0; e[i][3] = in ? e3 : 0;
  }
  __device__ __forceinline__ void words(int i, int k, u32 lo, u32 hi) {
    if (HALF) pairs[i][0] = k < K ? lo : 0, pairs[i][1] = k < K ? hi : 0;
    else four(i, k, to_float(lo), high(lo), to_float(hi), high(hi));
  }
  __device__ __forceinline__ float at(int i, int j) const {
    if (!HALF) return e[i][j];
    return j % 2 ? high(pairs[i][j / 2]) : to_float(pairs[i][j / 2]);
  }
  __device__ __forceinline__ static int k(int i) { return element<EIGHT>(i); }
  __device__ __forceinline__ u32 magnitude(int i) const {  // as an integer: NaN is the largest
    const u32 abs = 0x7fffffffu;
    return max(max(__float_as_uint(at(i, 0)) & abs, __float_as_uint(at(i, 1)) & abs),
               max(__float_as_uint(at(i, 2)) & abs, __float_as_uint(at(i, 3)) & abs));
  }
  __device__ __forceinline__ u32 fixed(int i, int j, float by) const { return __float_as_uint(at(i, j) * by + ROUNDS); }
};
__device__ __forceinline__ float steps_per(float top, float most) { return top > 1e-30f ? __fdividef(most, top) : 0.0f; }

// Two limbs; each 128 activations, those of one warp, have a scale of their own.
template <class FM, int K, bool HALF> struct Store<FM, K, HALF, GROUPS> : Kept<K, BY_EIGHT<FM>, HALF> {
  static constexpr int ALL = Kept<K, BY_EIGHT<FM>, HALF>::IT, IT = HALF ? 4 : ALL;  // at once: few registers, or few waits
  static constexpr float MOST = 32512.0f;
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int first = 0; first < ALL; first += IT) some(first);
    consumers_sync();
  }
  __device__ __forceinline__ void some(int first) {
    float unit[IT];
    u32 w[IT][4];
    int sum[IT];
#pragma unroll
    for (int i = 0; i < IT; i++) unit[i] = __uint_as_float(__reduce_max_sync(~0u, this->magnitude(min(first + i, ALL - 1))));
#pragma unroll
    for (int i = 0; i < IT; i++) {
      const float by = steps_per(unit[i], MOST);
      unit[i] *= 1.0f / MOST;
#pragma unroll
      for (int j = 0; j < 4; j++) w[i][j] = this->fixed(min(first + i, ALL - 1), j, by);
      sum[i] = (int)(w[i][0] + w[i][1] + w[i][2] + w[i][3] - 4 * ROUNDS_BITS);
    }
    char* x = smem + OFF_X + own_text() * X<FM, K>::TEXT;
#pragma unroll
    for (int s = 1; s < FM::GROUP / 4; s *= 2)
#pragma unroll
      for (int i = 0; i < IT; i++) sum[i] += __shfl_xor_sync(~0u, sum[i], s);
#pragma unroll
    for (int i = 0; i < IT; i++) {
      const int k = this->k(first + i);
      if (k >= K) break;
      const u32 p01 = __byte_perm(w[i][0] + 128, w[i][1] + 128, 0x5140), p23 = __byte_perm(w[i][2] + 128, w[i][3] + 128, 0x5140);
      const int word = k % FM::GROUP / 4, half = FM::GROUP / 8;  // 4 bit: of the first half and of the second, in turn
      char* to = x + (FM::BITS == 8 ? k : k - k % FM::GROUP + (word % half * 2 + word / half) * 4);
      *(u32*)to = __byte_perm(p01, p23, 0x7632);
      *(u32*)(to + X<FM, K>::STRIDE) = __byte_perm(p01, p23, 0x5410) ^ 0x80808080u;
      if (k % FM::GROUP == 0)
        *(float2*)(x + X<FM, K>::INFO + k / FM::GROUP * 8) = make_float2(unit[i], unit[i] * (float)sum[i]);
    }
  }
};

// Three limbs with one scale for all of a text: it must be known first.
template <class FM, int K, bool HALF> struct Store<FM, K, HALF, WHOLE> : Kept<K, BY_EIGHT<FM>, HALF> {
  using Kept<K, BY_EIGHT<FM>, HALF>::IT;
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
    for (int i = 0; i < NW / TEXTS; i++) {
      const int w = own_text() * (NW / TEXTS) + i;
      top = maxima[w] <= top ? top : maxima[w];
    }
    const float by = steps_per(top, (float)MOST);
    char* x = smem + OFF_X + own_text() * X<FM, K>::TEXT;
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
    const u32 place = own_place();
    if (K % 64 && place < 24) *(u32*)(x + place / 8 * X<FM, K>::STRIDE + K + place % 8 * 4) = 0;  // a unit's rest
    if (place == 0) maxima[NW + own_text()] = top * (1.0f / MOST);
    consumers_sync();
  }
};

__device__ __forceinline__ float block_sum(int at, int text) {  // of what each of a text's warps left there
#if TEXTS > 1
  const float* own = (const float*)(smem + at) + text * (NW / TEXTS);
  float sum = 0;
#pragma unroll
  for (int w = 0; w < NW / TEXTS; w++) sum += own[w];
  return sum;
#endif
  const float4* red = (const float4*)(smem + at);
  float s = 0;
#pragma unroll
  for (int w = 0; w < NW / 4; w++) s += (red[w].x + red[w].y) + (red[w].z + red[w].w);
  return s;
}
__device__ __forceinline__ float gain(float weight) { return NORM_OFFSET == 0 ? weight : weight + NORM_OFFSET; }
__device__ __forceinline__ float lessened(float v) { return RESIDUAL_SCALE == 1 ? v : rounded(v * RESIDUAL_SCALE); }
// The residual stream of all texts, or, of several, of the rows that this block will add to: those of o lie apart from
// those of down, which a fast warp keeps while a slow one still adds to the former.
constexpr bool OWN_ROWS = TEXTS > 1 && !POST;
constexpr int RES_ROWS = OWN_ROWS ? (D / 2 + NCTA - 1) / NCTA * 2 : D;
struct Added {  // rows of o or down
  Share pairs;
  bool down;
  __device__ __forceinline__ char* at(int row, int text) const {
    if (!OWN_ROWS) return smem + OFF_RES + (text * D + row) * 2;
    return smem + OFF_RES + (((int)down * TEXTS + text) * RES_ROWS + row - pairs.first * 2) * 2;
  }
  __device__ __forceinline__ float residual(int row, int text) const { return to_float(*(const u16*)at(row, text)); }
  __device__ __forceinline__ bool has(int pair) const { return pair >= pairs.first && pair < pairs.last; }
  __device__ __forceinline__ void keep(int k, u32 lo, u32 hi) const {
    if (!OWN_ROWS) *(uint2*)at(k, own_text()) = make_uint2(lo, hi);
    else {
      if (has(k / 2)) *(u32*)at(k, own_text()) = lo;
      if (has(k / 2 + 1)) *(u32*)at(k + 2, own_text()) = hi;
    }
  }
};

// The residual stream behind what half a layer added; where a norm lies between them, every block applies it: each
// has the whole of both. `gain` is read before the wait for the data.
template <bool EIGHT, class Sink> __device__ __forceinline__ void arriving(const Word* from, int post_norm, u32 tag, Sink sink) {
#if POST
  constexpr int IT = FOURS<D, EIGHT>;
  uint2 v[IT], g[IT];
#pragma unroll
  for (int i = 0; i < IT; i++) {
    const int k = element<EIGHT>(i);
    g[i] = k < D ? __ldg((const uint2*)(ptr<const u16>(post_norm) + k)) : make_uint2(0, 0);
  }
  float squares = 0;
  int n = 0;
  gather<D, EIGHT>(from, tag, [&](int k, u32 lo, u32 hi) {
    const float e0 = to_float(lo), e1 = high(lo), e2 = to_float(hi), e3 = high(hi);
    if (k < D) squares += (e0 * e0 + e1 * e1) + (e2 * e2 + e3 * e3);
    v[n++] = make_uint2(lo, hi);
  });
  squares = warp_sum(squares);
  if ((threadIdx.x & 31) == 0) ((float*)(smem + OFF_POST))[threadIdx.x >> 5] = squares;
  consumers_sync();
  const float by = rsqrtf(block_sum(OFF_POST, own_text()) * (1.0f / D) + EPS);
#pragma unroll
  for (int i = 0; i < IT; i++) {
    const int k = element<EIGHT>(i);
    if (k < D) {
      const auto normed = [&](float e, float weight, int at) { return Added().residual(at, own_text()) + lessened(rounded(e * by * gain(weight))); };
      v[i].x = pack(normed(to_float(v[i].x), to_float(g[i].x), k), normed(high(v[i].x), high(g[i].x), k + 1));
      v[i].y = pack(normed(to_float(v[i].y), to_float(g[i].y), k + 2), normed(high(v[i].y), high(g[i].y), k + 3));
    }
    sink(k, v[i].x, v[i].y);
  }
#else
  gather<D, EIGHT>(from, tag, sink);
#endif
}
// What half a layer hands over for `arriving`: its own part, or the residual stream behind it.
__device__ __forceinline__ float handed_over(int row, int text, bool valid, float v, const Added& to) {
  if (POST) return v;
  return valid ? to.residual(row, text) + lessened(rounded(v)) : 0.0f;
}

// What a norm multiplies a text's products with. One text: known beforehand; several: looked up by who finishes an output.
struct Inverse {
  float one = 1.0f;
  __device__ __forceinline__ static float of(int text) { return rsqrtf(block_sum(OFF_RED, text) * (1.0f / D) + EPS); }
  __device__ __forceinline__ Inverse(bool normed) { if (TEXTS == 1 && normed) one = of(0); }
  template <bool NORMED> __device__ __forceinline__ float at(int text) const { return TEXTS > 1 && NORMED ? of(text) : one; }
};

// The residual stream: kept as it is for what will be added `later`, stored times the norm's weight; its mean square
// is applied after the product, or before it is stored (NORMED). The weight is read before the wait for the data. NORM false: it
// goes on as it is.
template <class FM, bool NORM, class Load> __device__ __forceinline__ void load_normed(const u16* weight, const Added& later, Load load) {
  constexpr int IT = FOURS<D, BY_EIGHT<FM>>;
  uint2 g[IT];
#pragma unroll
  for (int i = 0; i < IT; i++) {
    const int k = element<BY_EIGHT<FM>>(i);
    g[i] = NORM && k < D ? __ldg((const uint2*)(weight + k)) : make_uint2(0, 0);
  }
  Store<FM, D> store;
  float squares = 0;
  int i = 0;
  uint2 kept[FM::NORMED ? IT : 1];
  load([&](int k, u32 lo, u32 hi) {
    const float e0 = to_float(lo), e1 = high(lo), e2 = to_float(hi), e3 = high(hi);
    if (k < D) {
      squares += (e0 * e0 + e1 * e1) + (e2 * e2 + e3 * e3);
      later.keep(k, lo, hi);
    }
    if constexpr (FM::NORMED) {
      kept[i++] = make_uint2(lo, hi);
      return;
    }
    const uint2 w = g[i];
    if (NORM) store.four(i++, k, e0 * gain(to_float(w.x)), e1 * gain(high(w.x)), e2 * gain(to_float(w.y)), e3 * gain(high(w.y)));
    else store.four(i++, k, e0, e1, e2, e3);
  });
  squares = warp_sum(squares);
  if ((threadIdx.x & 31) == 0) ((float*)(smem + OFF_RED))[threadIdx.x >> 5] = squares;
  if constexpr (FM::NORMED) {
    if (NW > TEXTS) consumers_sync();  // else a text is a warp's
    const float by = NW > TEXTS ? Inverse::of(own_text()) : rsqrtf(squares * (1.0f / D) + EPS);
#pragma unroll
    for (int i = 0; i < IT; i++) {
      const uint2 v = kept[i], w = g[i];
      store.four(i, element<BY_EIGHT<FM>>(i), to_float(v.x) * by * gain(to_float(w.x)), high(v.x) * by * gain(high(w.x)),
                 to_float(v.y) * by * gain(to_float(w.y)), high(v.y) * by * gain(high(w.y)));
    }
  }
  store.finish();
}
template <class FM, int K> __device__ __forceinline__ void load_plain(const Word* from, u32 tag) {
  constexpr bool HALF = TEXTS > 1 && !FM::AS_FLOATS && (FM::KIND == GROUPS || FOURS<K, BY_EIGHT<FM>> > 24);  // too many for registers
  Store<FM, K, HALF> store;
  int i = 0;
  gather<K, BY_EIGHT<FM>>(from, tag, [&](int k, u32 lo, u32 hi) { store.words(i++, k, lo, hi); });
  store.finish();
}
// The sum over COLUMNS * 4 partial sums of a text's row; TPO neighbouring threads share one row.
template <int COLUMNS> __device__ __forceinline__ float across_warps(int row, int text) {
  const int mine = threadIdx.x % TPO;
  float s = 0;
  if (mine < COLUMNS) {
    const float4 v = *(const float4*)(smem + OFF_PART + text * PART_TEXT + (row * NW + mine * 4) * 4);
    s = (v.x + v.y) + (v.z + v.w);
  }
#pragma unroll
  for (int i = 1; i < TPO; i *= 2) s += __shfl_xor_sync(~0u, s, i);
  return s;
}

// An output of the rows [first, end) of all texts, TPO threads each, text after text; the i-th of a thread.
struct Output {
  int row, text;
  bool valid;
  __device__ __forceinline__ static Output at(int i, int first, int end) {
    const int e = (int)(threadIdx.x / TPO) + i * OUTPUTS, rows = end - first;
    if (TEXTS == 1) return {first + e, 0, first + e < end};
    int text = TEXTS > 4 ? min((int)__fdividef(e + 0.5f, (float)rows), TEXTS - 1) : 0;
#pragma unroll
    for (int i = 1; i < TEXTS && TEXTS <= 4; i++) text += e >= i * rows;
    return {first + min(e - text * rows, rows - 1), text, e < TEXTS * rows};
  }
  __device__ __forceinline__ static bool none(int i, int first, int end) {  // for this warp
    return (int)(threadIdx.x / 32 * (32 / TPO)) + i * OUTPUTS >= TEXTS * (end - first);
  }
};

// All rows of a stage that belong to this block. Slot i of the ring always goes to group i % NG, so that the
// same warps wait for each turn of its barrier; within a group, warp m takes unit m, m + WPG, ... of a row.
// done(row, text, valid, gate or plain value, up value, their biases): called by all threads of an output alike.
template <class FM, int K, bool PAIRS, bool BIAS, class Done>
__device__ __forceinline__ void products(Ring& ring, Share rows, const float* row_scales, const u16* biases, Done done) {
  using R = Rows<FM, K>;
  constexpr int TP = PAIRS ? R::TR / 2 : R::TR, SEG = PART_ROWS / R::TR * TP;
  constexpr int COLUMNS = (R::S < NG ? R::S : NG) * WPG / 4;
  static_assert((R::S < NG ? R::S : NG) * WPG % 4 == 0, "four partial sums are read at once");
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2;
  const int group = warp / WPG, member = warp % WPG;
  const int last = rows.last * 2;
  float* part = (float*)(smem + OFF_PART);
#pragma unroll 1
  for (int seg = rows.first * 2; seg < last; seg += SEG) {
    const int end = min(seg + SEG, last);
    constexpr int EACH = TEXTS * PART_ROWS / OUTPUTS;
    Output mine[EACH];  // the outputs that this thread finishes
    float s0[EACH], s1[EACH], b0[EACH], b1[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      mine[i] = Output::at(i, seg, end);
      const int row = mine[i].row;
      s0[i] = s1[i] = 1.0f, b0[i] = b1[i] = 0.0f;
      if (FM::KIND == WHOLE && mine[i].valid) {
        s0[i] = __ldg(row_scales + row);
        if (PAIRS) s1[i] = __ldg(row_scales + F + row);
      }
      if (BIAS && mine[i].valid) {
        b0[i] = to_float(__ldg(biases + row));
        if (PAIRS) b1[i] = to_float(__ldg(biases + F + row));
      }
    }
    const int chunks = (end - seg + TP - 1) / TP * R::S;
    // The group's first chunk, then every NG-th: slice s of a tile. A chunk must cost few instructions: two warps share a
    // scheduler, so that each instruction takes as long as its result.
    const int start = (group - (int)ring.pos) & (NG - 1);
    u32 s = start % R::S, tile = start / R::S;
    Turn turn = ring.turn(start);
    Sums<FM, K> sums(s * R::SLICE);
#pragma unroll 1
    for (int chunk = start; chunk < chunks; chunk += NG) {
      const int off = (int)s * R::SLICE, bytes = min(R::SLICE, R::BYTES - off);
      const auto unit = [&](int j) { return unit_of<FM>(member, j); };
      mbar_wait(turn.full, turn.parity);
      const char* slot = smem + turn.at;
      const char* scales[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int r = h * 8 + g;
        const bool up = PAIRS && r >= TP;
        scales[h] = slot + R::SCALE_AT + (r - (!R::PER_ROW && up ? TP : 0)) * R::SSTRIDE;
        if (!R::PER_ROW)  // the address of the tile's first scale, modulo 16, is where its copy begins
          scales[h] += (up ? R::SECOND : 0) + (int)((long long)(seg + (int)tile * TP + (up ? F : 0)) * R::SCALES & 15);
      }
      const u32 empty = turn.full + NSLOT * 8;
      if constexpr (FM::ROLLED) {  // a record's units together
        turn.next();
        if (NG % R::S == 0) sums.clear();
#pragma unroll 1
        for (int j = 0; j < R::MOST && unit(j) < bytes; j += FM::RUN) {
          typename Sums<FM, K>::Unit units[FM::RUN];
#pragma unroll
          for (int i = 0; i < FM::RUN; i++) units[i] = sums.load(slot, off, unit(j + i), scales);
#pragma unroll
          for (int i = 0; i < FM::RUN; i++) sums.add(units[i], off, unit(j + i), i);
        }
      } else {
        typename Sums<FM, K>::Unit units[R::MOST];
#pragma unroll
        for (int j = 0; j < R::MOST; j++) {
          if (j >= R::SURE && unit(j) >= bytes) break;
          units[j] = sums.load(slot, off, unit(j), scales);
        }
        turn.next();
        if (NG % R::S == 0) sums.clear();
#pragma unroll
        for (int j = 0; j < R::MOST; j++) {
          if (j >= R::SURE && unit(j) >= bytes) break;
          sums.add(units[j], off, unit(j), j);
        }
      }
      __syncwarp();
      if (lane == 0) mbar_arrive(empty);
      s += NG;
      if (NG % R::S == 0 || s >= R::S) {  // the group's last slice of this tile
        constexpr bool EVEN = NG % R::S == 0 || R::S % NG == 0;
        const int column = ((EVEN ? start % R::S : start - (int)tile * R::S) & (NG - 1)) * WPG + member;
#pragma unroll
        for (int i = 0; i < R::HALVES * Sums<FM, K>::ROUNDS; i++) {
          const int h = i % R::HALVES, round = i / R::HALVES;
          const float v = sums.row(h, round);
          const int text = Sums<FM, K>::text(lane & 3, round);
          if (text >= 0) part[(TEXTS == 1 ? 0 : text * (PART_TEXT / 4)) + (tile * R::TR + h * 8 + g) * NW + column] = v;
        }
        if (NG % R::S) sums.clear();
        if (R::S > NG) tile++, s -= R::S;
        else tile += s / R::S, s %= R::S;
      }
    }
    ring.pos += chunks;
    consumers_sync();
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const Output& o = mine[i];
      const int e = o.row - seg, row = PAIRS ? e / TP * R::TR + e % TP : e;
      if (TEXTS > 1 ? Output::none(i, seg, end) : PAIRS && e >= SEG) break;  // whole warps
      const float gate = across_warps<COLUMNS>(row, o.text) * s0[i];
      done(o.row, o.text, o.valid, gate, PAIRS ? across_warps<COLUMNS>(row + TP, o.text) * s1[i] : 0.0f, b0[i], b1[i]);
    }
    if (end < last) consumers_sync();
  }
}

// One word of a hand-over of K elements a text.
template <int K> __device__ __forceinline__ void put_word(u64* all, int, int word, u32 data, u32 tag) { put(all + word, data, tag); }
template <int K> __device__ __forceinline__ void put_word(u32* all, int text, int word, u32 data, u32 tag) {
  put_bare(words_of<K>(all, text, tag) + word, data);
}
// Two neighbouring outputs, each held by four threads, become one word.
template <int K, class To> __device__ __forceinline__ void put_pair(To* to, int text, int row, bool valid, float v, u32 tag) {
  const float next = __shfl_down_sync(~0u, v, TPO);
  if (valid && threadIdx.x % (2 * TPO) == 0) put_word<K>(to, text, row / 2, pack(v, next), tag);
}

#if TEXTS > 1
// This block's share of the words of the layer before that of `tag`.
template <int K> __device__ __forceinline__ void forget(u32* all, u32 tag) {
  constexpr int PAIRS = TEXTS * K / 4;
  u32* const from = words_of<K>(all, 0, tag - 1);
  for (int i = blockIdx.x * 32 + threadIdx.x % 32; i < PAIRS; i += NCTA * 32) forget_bare(from + i * 2);
}
__device__ __forceinline__ void forget_layer(u32 tag) {  // one warp
  if (threadIdx.x / 32 != NW - 1) return;
  forget<N_H>(ll_mix, tag), forget<D>(ll_x1, tag), forget<D>(ll_x2, tag), forget<F>(ll_h, tag);
  show_forgotten();
}
#else
__device__ __forceinline__ void forget_layer(u32) {}
#endif

