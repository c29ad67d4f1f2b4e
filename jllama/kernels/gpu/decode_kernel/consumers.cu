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
  STAMP(16)
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
  STAMP(17)
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

__device__ __forceinline__ float block_sum(int at) {  // of what each warp left there
  const float4* red = (const float4*)(smem + at);
  float s = 0;
#pragma unroll
  for (int w = 0; w < NW / 4; w++) s += (red[w].x + red[w].y) + (red[w].z + red[w].w);
  return s;
}
__device__ __forceinline__ float gain(float weight) { return NORM_OFFSET == 0 ? weight : weight + NORM_OFFSET; }
__device__ __forceinline__ float lessened(float v) { return RESIDUAL_SCALE == 1 ? v : rounded(v * RESIDUAL_SCALE); }
__device__ __forceinline__ float residual(int row) { return to_float(*(const u16*)(smem + OFF_RES + row * 2)); }

// The residual stream behind what half a layer added; where a norm lies between them, every block applies it: each
// has the whole of both. `gain` is read before the wait for the data.
template <class Sink> __device__ __forceinline__ void arriving(const u64* from, int post_norm, u32 tag, Sink sink) {
#if POST
  constexpr int IT = (D / 4 + NT - 1) / NT;
  uint2 v[IT], g[IT];
#pragma unroll
  for (int i = 0; i < IT; i++) {
    const int k = (threadIdx.x + i * NT) * 4;
    g[i] = k < D ? __ldg((const uint2*)(ptr<const u16>(post_norm) + k)) : make_uint2(0, 0);
  }
  float squares = 0;
  int n = 0;
  gather<D>(from, tag, [&](int k, u32 lo, u32 hi) {
    const float e0 = to_float(lo), e1 = high(lo), e2 = to_float(hi), e3 = high(hi);
    if (k < D) squares += (e0 * e0 + e1 * e1) + (e2 * e2 + e3 * e3);
    v[n++] = make_uint2(lo, hi);
  });
  squares = warp_sum(squares);
  if ((threadIdx.x & 31) == 0) ((float*)(smem + OFF_POST))[threadIdx.x >> 5] = squares;
  consumers_sync();
  const float by = rsqrtf(block_sum(OFF_POST) * (1.0f / D) + EPS);
#pragma unroll
  for (int i = 0; i < IT; i++) {
    const int k = (threadIdx.x + i * NT) * 4;
    if (k < D) {
      const auto normed = [&](float e, float weight, int at) { return residual(at) + lessened(rounded(e * by * gain(weight))); };
      v[i].x = pack(normed(to_float(v[i].x), to_float(g[i].x), k), normed(high(v[i].x), high(g[i].x), k + 1));
      v[i].y = pack(normed(to_float(v[i].y), to_float(g[i].y), k + 2), normed(high(v[i].y), high(g[i].y), k + 3));
    }
    sink(k, v[i].x, v[i].y);
  }
#else
  gather<D>(from, tag, sink);
#endif
}
// What half a layer hands over for `arriving`: its own part, or the residual stream behind it.
__device__ __forceinline__ float handed_over(int row, bool valid, float v) {
  if (POST) return v;
  return valid ? residual(row) + lessened(rounded(v)) : 0.0f;
}

// The residual stream: kept as it is, stored times the norm's weight; its mean square is applied after the
// product. The weight is read before the wait for the data. NORM false: it goes on as it is.
template <class FM, bool NORM, class Load> __device__ __forceinline__ void load_normed(const u16* weight, Load load) {
  constexpr int IT = (D / 4 + NT - 1) / NT;
  uint2 g[IT];
#pragma unroll
  for (int i = 0; i < IT; i++) {
    const int k = (threadIdx.x + i * NT) * 4;
    g[i] = NORM && k < D ? __ldg((const uint2*)(weight + k)) : make_uint2(0, 0);
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
    if (NORM) store.four(i++, k, e0 * gain(to_float(w.x)), e1 * gain(high(w.x)), e2 * gain(to_float(w.y)), e3 * gain(high(w.y)));
    else store.four(i++, k, e0, e1, e2, e3);
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
__device__ __forceinline__ float inverse_rms() { return rsqrtf(block_sum(OFF_RED) * (1.0f / D) + EPS); }

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
// done(row, valid, gate or plain value, up value, their biases): called by all threads of an output alike.
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
    const int mine = seg + (int)(threadIdx.x / TPO);  // the output that this thread finishes
    float s0 = 1.0f, s1 = 1.0f;
    if (FM::KIND == WHOLE && mine < end) {
      s0 = __ldg(row_scales + mine);
      if (PAIRS) s1 = __ldg(row_scales + F + mine);
    }
    float b0 = 0.0f, b1 = 0.0f;
    if (BIAS && mine < end) {
      b0 = to_float(__ldg(biases + mine));
      if (PAIRS) b1 = to_float(__ldg(biases + F + mine));
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
      typename Sums<FM, K>::Unit units[R::MOST];
#pragma unroll
      for (int j = 0; j < R::MOST; j++) {
        if (j >= R::SURE && unit(j) >= bytes) break;
        units[j] = sums.load(slot, off, unit(j), scales);
      }
      const u32 empty = turn.full + NSLOT * 8;
      turn.next();
      if (NG % R::S == 0) sums.clear();
#pragma unroll
      for (int j = 0; j < R::MOST; j++) {
        if (j >= R::SURE && unit(j) >= bytes) break;
        sums.add(units[j], off, unit(j), j);
      }
      __syncwarp();
      if (lane == 0) mbar_arrive(empty);
      s += NG;
      if (NG % R::S == 0 || s >= R::S) {  // the group's last slice of this tile
        constexpr bool EVEN = NG % R::S == 0 || R::S % NG == 0;
        const int column = ((EVEN ? start % R::S : start - (int)tile * R::S) & (NG - 1)) * WPG + member;
#pragma unroll
        for (int h = 0; h < R::HALVES; h++) {
          const float v = sums.row(h);
          if ((lane & 3) == 0) part[(tile * R::TR + h * 8 + g) * NW + column] = v;
        }
        if (NG % R::S) sums.clear();
        if (R::S > NG) tile++, s -= R::S;
        else tile += s / R::S, s %= R::S;
      }
    }
    ring.pos += chunks;
    consumers_sync();
    const int e = threadIdx.x / TPO;
    if constexpr (PAIRS) {
      const int row = e / TP * R::TR + e % TP;
      if (e < SEG) {  // whole warps
        const float gate = across_warps<COLUMNS>(row) * s0, up = across_warps<COLUMNS>(row + TP) * s1;
        done(mine, mine < end, gate, up, b0, b1);
      }
    } else {
      done(mine, mine < end, across_warps<COLUMNS>(e) * s0, 0.0f, b0, b1);
    }
    if (end < last) consumers_sync();
  }
}

// Two neighbouring outputs, each held by four threads, become one tagged word.
__device__ __forceinline__ void put_pair(u64* to, int row, bool valid, float v, u32 tag) {
  const float next = __shfl_down_sync(~0u, v, TPO);
  if (valid && threadIdx.x % (2 * TPO) == 0) put(to + row / 2, pack(v, next), tag);
}

