// ---- attention: one kv head, one stretch of the cache --------------------------------------------------

// Pairs of words of a head: j-th ones of the two halves of what turns, then of the rest, which does not turn.
__device__ __forceinline__ bool turns(int j) { return ROTARY == H || j < ROTARY / 4; }
__device__ __forceinline__ int first_word(int j) { return turns(j) ? j : j + ROTARY / 4; }
__device__ __forceinline__ int apart(int j) { return turns(j) ? ROTARY / 4 : (H - ROTARY) / 4; }

// The words of one pair of a head of q, k or v, from the hand-over to where the block attends. What does not depend on
// them is read before the wait.
struct Pair {
  int r, first, second;  // of the group's queries, then key and value; words
  float2 c, s;           // its angle, of elements 2 j, 2 j + 1 and their partners
  u64 wl, wh;            // as they come
  u32 lo, hi;
  __device__ __forceinline__ Pair(int r, int j, int kind) : r(r), first(first_word(j)), second(first + apart(j)), c{1, 1}, s{0, 0} {
    const float* angles = (const float*)(smem + OFF_ROPE) + kind * H;
    if (r <= G && turns(j)) c = *(const float2*)(angles + 2 * j), s = *(const float2*)(angles + ROTARY / 2 + 2 * j);
  }
  __device__ __forceinline__ void ask(const u64* from) { wl = peek(from + first), wh = peek(from + second); }
  __device__ __forceinline__ bool came(u32 tag) {
    lo = (u32)wl, hi = (u32)wh;
    return (u32)(wl >> 32) == tag && (u32)(wh >> 32) == tag;
  }
  __device__ __forceinline__ void keep(char* A, char* key, char* value) {  // the new token's in the cache, too
    if (r <= G && ROTARY > 0) {
      const float a0 = to_float(lo), a1 = high(lo), b0 = to_float(hi), b1 = high(hi);
      lo = pack(a0 * c.x - b0 * s.x, a1 * c.y - b1 * s.y);
      hi = pack(b0 * c.x + a0 * s.x, b1 * c.y + a1 * s.y);
    }
    u32* to = (u32*)(r < G ? A + A_Q + r * QS : A + A_KV + (r - G) * H * 2);
    to[first] = lo, to[second] = hi;
    if (r >= G) {
      u32* row = (u32*)(r == G ? key : value);
      row[first] = lo, row[second] = hi;
    }
  }
};

// The group's queries and, if `fresh`, the new token's key and value, rotated. `key` and `value` are its places in the cache.
__device__ __forceinline__ void take_heads(const u64* from, bool fresh, int layer, int kind, char* key, char* value, u32 tag) {
  char* A = smem + OFF_X;
  constexpr int R4 = H / 4;
#if QK_NORM  // a head is a warp's
  const int lane = threadIdx.x & 31;
  constexpr int EACH = (R4 + 31) / 32;
  for (int r = threadIdx.x >> 5; r < G + 2 && (r < G || fresh); r += NW) {
    u32 weight_lo[EACH], weight_hi[EACH];
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      const int j = lane + e * 32;
      if (j >= R4 || r > G) break;
      const u32* weights = ptr<const u32>(layer + (r < G ? Y_Q_NORM : Y_K_NORM));
      weight_lo[e] = __ldg(weights + first_word(j)), weight_hi[e] = __ldg(weights + first_word(j) + apart(j));
    }
    auto pair = [&](int e) { return Pair(r, min(lane + e * 32, R4 - 1), kind); };
    Pair pairs[] = {pair(0), pair(EACH - 1)};
    for (u32 spins = 0;; patience(spins)) {
      bool all = true;
#pragma unroll
      for (int e = 0; e < EACH; e++) pairs[e].ask(from + r * (H / 2));
#pragma unroll
      for (int e = 0; e < EACH; e++) all &= pairs[e].came(tag);
      if (all) break;
    }
    float squares = 0;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      if (lane + e * 32 >= R4) break;
      const u32 lo = pairs[e].lo, hi = pairs[e].hi;
      squares += to_float(lo) * to_float(lo) + high(lo) * high(lo) + to_float(hi) * to_float(hi) + high(hi) * high(hi);
    }
    const float by = rsqrtf(warp_sum(squares) * (1.0f / H) + EPS);
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      if (lane + e * 32 >= R4) break;
      u32 &lo = pairs[e].lo, &hi = pairs[e].hi;
      if (r <= G) {
        lo = pack(to_float(lo) * by * gain(to_float(weight_lo[e])), high(lo) * by * gain(high(weight_lo[e])));
        hi = pack(to_float(hi) * by * gain(to_float(weight_hi[e])), high(hi) * by * gain(high(weight_hi[e])));
      }
      pairs[e].keep(A, key, value);
    }
  }
#else
  for (int i = threadIdx.x; i < (G + 2) * R4; i += NT) {
    const int r = i / R4;
    if (r >= G && !fresh) break;
    Pair pair(r, i % R4, kind);
    pair.ask(from + r * (H / 2));
    for (u32 spins = 0; !pair.came(tag); patience(spins)) pair.ask(from + r * (H / 2));
    pair.keep(A, key, value);
  }
#endif
}

// Scores: a warp takes TW tokens. Values: a warp takes TILES times 8 dimensions of all tokens, so that nothing is left to be
// added up across warps. Keys and values of a turn are in registers before the queries come; the new token's lie apart. Tile i of 8
// tokens has the i-th of each run, and so the scores lie.
struct Attention {
  static constexpr int ROWS = G > 8 ? 16 : 8, SROW = TC + 8;  // of the scores, whose rows are heads; the new token's behind them
  static constexpr int STEPS = TC / 16;  // of 16 tokens
  static constexpr int TILES = H / 8 % ((H + 63) / 64) == 0 ? (H + 63) / 64 : 4;
  static constexpr int QUADS = STEPS * TILES / 2;  // of tiles of 8 tokens and 8 dimensions
  static_assert(H / 8 % TILES == 0 && STEPS * TILES % 2 == 0, "whole tiles for each warp");
  const Past& p;
  Ring& ring;
  char* const A = smem + OFF_X;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int first = warp * TILES;  // tile of 8 dimensions
  float m[ROWS / 8], l[ROWS / 8], o[TILES][4];
  int cached, tokens, slots;  // of a turn: cached ones, with the new one; slots of keys, and as many of values
  uint4 k[TW / 8][H / 32];
  u32 v[QUADS][4];

  __device__ __forceinline__ Attention(const Past& p, Ring& ring) : p(p), ring(ring) {
#pragma unroll
    for (int i = 0; i < ROWS / 8; i++) m[i] = MINUS_INF, l[i] = 0;
#pragma unroll
    for (int i = 0; i < TILES * 4; i++) o[i / 4][i % 4] = 0;
  }
  __device__ __forceinline__ bool has_dims() const { return first * 8 < H; }
  __device__ __forceinline__ bool is_new() const { return tokens > cached; }  // one of them
  __device__ __forceinline__ float* scores(int c) const { return (float*)(A + A_S) + (c & 1) * ROWS * SROW; }
  __device__ __forceinline__ int tile(int n) const { return warp * (TW / 8) + n; }  // of tokens, that this warp scores
  __device__ __forceinline__ const char* run(int slot, int r) const { return ring.data(slot + r / PER) + r % PER * GT * H * 2; }
  // What lies in the cache. What is not there yet: something else, which counts for nothing.
  __device__ __forceinline__ void load_past(int c) {
    cached = min(TC, p.count - c * TC), tokens = min(TC, p.count + p.append - c * TC);
    slots = (cached + TS - 1) / TS;
    if (cached == 0) return;
    for (int s = 0; s < slots; s++) mbar_wait(ring.full(s), ring.parity(s));
    if (warp < AW) {
      const char* keys = run(0, g);
#pragma unroll
      for (int n = 0; n < TW / 8; n++) {
        const char* key = g * GT + tile(n) < cached ? keys + tile(n) * H * 2 : A + A_KV;
#pragma unroll
        for (int i = 0; i < H / 32; i++) k[n][i] = *(const uint4*)(key + i * 64 + t * 16);
      }
    }
    for (int s = slots; s < 2 * slots; s++) mbar_wait(ring.full(s), ring.parity(s));
    if (!has_dims()) return;
    const char *values = run(slots, lane % 8) + lane % 8 * 16, *some = ring.data(slots);
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
      const int at = 4 * q + lane / 8, i = at / 2 / TILES * 2 + at % 2;  // tile of tokens
      const char* row = lane % 8 * GT + i < cached ? values + i * H * 2 : some;
      load_columns(v[q], row + (first + at / 2 % TILES) * 16);
    }
  }
  __device__ __forceinline__ void load_new() {
    if (!is_new() || warp >= AW) return;
#pragma unroll
    for (int n = 0; n < TW / 8; n++)
      if (g * GT + tile(n) == cached)
#pragma unroll
        for (int i = 0; i < H / 32; i++) k[n][i] = *(const uint4*)(A + A_KV + i * 64 + t * 16);
  }
  __device__ __forceinline__ void score(int c) {
    if (warp >= AW) return;
    const float log2e = 1.4426950408889634f, by = log2e * SCALE;
    const auto scored = [&](float v) { return CAP > 0 ? log2e * soft_capped(v * SCALE, CAP) : v * by; };
    float s[TW / 8][2][4] = {};  // two chains
#pragma unroll
    for (int i = 0; i < H / 32; i++) {
      const uint4 q = *(const uint4*)(A + A_Q + g * QS + i * 64 + t * 16);
      const uint4 r = G > 8 ? *(const uint4*)(A + A_Q + (g + 8) * QS + i * 64 + t * 16) : make_uint4(0, 0, 0, 0);
#pragma unroll
      for (int n = 0; n < TW / 8; n++) {
        mma(s[n][0], q.x, r.x, q.y, r.y, k[n][i].x, k[n][i].y);
        mma(s[n][1], q.z, r.z, q.w, r.w, k[n][i].z, k[n][i].w);
      }
    }
    float* to = scores(c) + g * SROW;
#pragma unroll
    for (int n = 0; n < TW / 8; n++) {
      const int token = 2 * t * GT + tile(n);
      float w[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int at = token + i % 2 * GT;
        const float v = scored(s[n][0][i] + s[n][1][i]);
        if (at == cached && is_new() && i / 2 < ROWS / 8) to[i / 2 * 8 * SROW + TC] = v;
        w[i] = at < cached ? v : MINUS_INF;
      }
      *(float2*)(to + tile(n) * 8 + 2 * t) = float2{w[0], w[1]};
      if (G > 8) *(float2*)(to + 8 * SROW + tile(n) * 8 + 2 * t) = float2{w[2], w[3]};
    }
  }
  // The weights of heads g (and g + 8) of all tokens, as the products' operand wants them, and how much less the sums so far count.
  __device__ __forceinline__ void mix(int c) {
    if (!has_dims()) return;
    u32 a[STEPS][4];
    float less[ROWS / 8], latest[ROWS / 8];  // the new token's
#pragma unroll
    for (int half = 0; half < ROWS / 8; half++) {
      const float* from = scores(c) + (half * 8 + g) * SROW;
      float2 w[STEPS][2];
      latest[half] = is_new() ? from[TC] : MINUS_INF;
      float top = fmaxf(m[half], latest[half]);
#pragma unroll
      for (int i = 0; i < STEPS * 2; i++) {
        w[i / 2][i % 2] = *(const float2*)(from + i * 8 + 2 * t);
        top = fmaxf(top, fmaxf(w[i / 2][i % 2].x, w[i / 2][i % 2].y));
      }
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      less[half] = exp2_fast(m[half] - top);
      latest[half] = exp2_fast(latest[half] - top);
      m[half] = top;
      float sums[2] = {t == 0 ? latest[half] : 0.0f, 0};
#pragma unroll
      for (int i = 0; i < STEPS * 2; i++) {
        const float x = exp2_fast(w[i / 2][i % 2].x - top), y = exp2_fast(w[i / 2][i % 2].y - top);
        sums[i % 2] += x + y;
        a[i / 2][i % 2 * 2 + half] = pack(x, y);
        if (ROWS == 8) a[i / 2][i % 2 * 2 + 1] = 0;
      }
      l[half] = l[half] * less[half] + (sums[0] + sums[1]);
    }
#pragma unroll
    for (int i = 0; i < TILES * 4; i++) o[i / 4][i % 4] *= less[i % 4 / 2 * (ROWS / 16)];
    if (cached) {
      float sum[2][TILES][4] = {};  // two chains
#pragma unroll
      for (int i = 0; i < STEPS * TILES; i++) {
        const int step = i / TILES, at = 2 * i;
        mma(sum[step % 2][i % TILES], a[step][0], a[step][1], a[step][2], a[step][3], v[at / 4][at % 4], v[at / 4][at % 4 + 1]);
      }
#pragma unroll
      for (int i = 0; i < TILES * 4; i++) o[i / 4][i % 4] += sum[0][i / 4][i % 4] + sum[1][i / 4][i % 4];
    }
    if (!is_new()) return;
#pragma unroll
    for (int j = 0; j < TILES; j++) {
      const u32 value = *(const u32*)(A + A_KV + H * 2 + (first + j) * 16 + t * 4);
#pragma unroll
      for (int i = 0; i < ROWS / 4; i++) o[j][i] += latest[i / 2] * (i % 2 ? high(value) : to_float(value));
    }
  }
  // A mean, with the logarithm of its weight among those of other blocks where there are any.
  __device__ __forceinline__ void hand_over(u32 tag) {
    if (!has_dims()) return;
#pragma unroll
    for (int half = 0; half < ROWS / 8; half++) {
      const int head = half * 8 + g, d = first * 8 + 2 * t, q = p.head * G + head;
      u64* const part = part_word(p.own() * N + q, p.split, d);
      float sum = l[half] + __shfl_xor_sync(~0u, l[half], 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      const float inv = TEXTS > 1 && sum == 0 ? 0.0f : __fdividef(1.0f, sum);  // nothing: a text that does not run
      const float weight = m[half] + log2_fast(sum);
      u32 mine[TILES], next[TILES];
#pragma unroll
      for (int j = 0; j < TILES; j++) mine[j] = pack(o[j][2 * half] * inv, o[j][2 * half + 1] * inv);
#pragma unroll
      for (int j = 0; j < TILES; j++) next[j] = __shfl_xor_sync(~0u, mine[j], 1);
      if (head >= G) continue;
      if (p.splits == 1) {
#pragma unroll
        for (int j = 0; j < TILES; j++) put_word<N_H>(ll_mix, p.own(), (q * H + d) / 2 + j * 4, mine[j], tag);
      } else if (t % 2 == 0) {
#pragma unroll
        for (int j = 0; j < TILES; j++) put_wide(part + j * 4, mine[j], next[j], __float_as_uint(weight), tag);
      }
    }
  }
  static __device__ __forceinline__ u64* part_word(int q, int split, int d) { return ll_part + ((q * MAXP + split) * H + d) / 2; }
};

__device__ void attend(Ring& ring, const Past& p, int layer, int kind, char* keys, char* values, u32 tag) {
  const bool fresh = p.split == p.splits - 1 && p.append;  // this block adds the new token, the last of its tokens
  const size_t at = ((size_t)p.cached * p.capacity + p.length) * H * 2;
  Attention a(p, ring);
#pragma unroll 1
  for (int c = p.begin; c < p.end; c++) {
    a.load_past(c);
    if (c == p.begin) {
      STAMP(9)
      take_heads(ll_qkv + p.own() * (QKV_ROWS / 2) + p.head * (G + 2) * (H / 2), fresh, layer, kind, keys + at, values + at, tag);
      STAMP(10)
      consumers_sync();
    }
    a.load_new();
    a.score(c);
    STAMP(11)
    consumers_sync();
    STAMP(12)
    const int done = 2 * a.slots;  // all of them are in registers
    if (a.warp < WPG && a.lane < done) mbar_arrive(ring.empty(a.lane));
    ring.pos += done;
    a.mix(c);
  }
  STAMP(13)
  a.hand_over(tag);
  STAMP(14)
  consumers_sync();
}

// The mixed heads where up to JOINED blocks have a part of a key head's text each: every block joins their means.
template <class FM> __device__ __forceinline__ void load_joined(int splits, u32 tag) {
  constexpr int IT = FOURS<N_H, BY_EIGHT<FM>>;
  const u64* from[IT];  // the words of four dimensions
#pragma unroll
  for (int i = 0; i < IT; i++) {
    const int k = min(element<BY_EIGHT<FM>>(i), N_H - 4);
    from[i] = Attention::part_word(own_text() * N + k / H, 0, k % H);
  }
  u64 data[IT][JOINED], rest[IT][JOINED];
  if ((threadIdx.x & 31) == 31) take(from[0] + (splits - 1) * (H / 2) + 1, tag);  // as `gather`
  __syncwarp();
  STAMP(16)
  for (u32 spins = 0;; patience(spins)) {
    bool missing = false;
#pragma unroll
    for (int s = 0; s < JOINED; s++) {
      if (s >= splits) break;
#pragma unroll
      for (int i = 0; i < IT; i++) peek_wide(from[i] + s * (H / 2), data[i][s], rest[i][s]);
    }
#pragma unroll
    for (int s = 0; s < JOINED; s++) {
      if (s >= splits) break;
#pragma unroll
      for (int i = 0; i < IT; i++) missing |= (u32)(rest[i][s] >> 32) != tag;
    }
    if (!__any_sync(~0u, missing)) break;
  }
  STAMP(17)
  Store<FM, N_H> store;
#pragma unroll
  for (int i = 0; i < IT; i++) {
    float top = MINUS_INF, sum = 0, e[4] = {};
#pragma unroll
    for (int s = 0; s < JOINED; s++)
      if (s < splits) top = fmaxf(top, __uint_as_float((u32)rest[i][s]));
#pragma unroll
    for (int s = 0; s < JOINED; s++) {
      if (s >= splits) break;
      const float weight = exp2_fast(__uint_as_float((u32)rest[i][s]) - top);
      const u32 lo = (u32)data[i][s], hi = (u32)(data[i][s] >> 32);
      sum += weight;
      e[0] += weight * to_float(lo); e[1] += weight * high(lo);
      e[2] += weight * to_float(hi); e[3] += weight * high(hi);
    }
    const float inv = __fdividef(1.0f, sum);
    const u32 lo = pack(e[0] * inv, e[1] * inv), hi = pack(e[2] * inv, e[3] * inv);
    store.words(i, element<BY_EIGHT<FM>>(i), lo, hi);
  }
  store.finish();
}

// A mean of parts, which more of them join.
struct Mean {
  float top = MINUS_INF, sum = 0, o[4] = {};
  __device__ __forceinline__ void join(float weight, float count, float e0, float e1, float e2, float e3) {
    const float high = fmaxf(top, weight), a = exp2_fast(top - high), b = exp2_fast(weight - high);
    o[0] = o[0] * a + e0 * b, o[1] = o[1] * a + e1 * b, o[2] = o[2] * a + e2 * b, o[3] = o[3] * a + e3 * b;
    sum = sum * a + count * b;
    top = high;
  }
};

#if TEXTS > 4
// Joins the parts, which are few, of the query heads of all texts: a team of threads a head, all of a block's heads at once.
__device__ void combine(const Past& p, u32 tag) {
  constexpr int D4 = H / 4, TEAMS = NT / D4;
  const int d = threadIdx.x % D4, team = threadIdx.x / D4;
  for (int q = NCTA - 1 - (int)blockIdx.x + NCTA * team; team < TEAMS && q < TEXTS * N; q += NCTA * TEAMS) {
    const int text = q / N, parts = p.parts(text);
    if (parts <= JOINED) continue;
    u64 data[MAXP], rest[MAXP];
    for (u32 spins = 0;; patience(spins)) {
      bool missing = false;
#pragma unroll
      for (int i = 0; i < MAXP; i++)
        if (i < parts) peek_wide(Attention::part_word(q, i, d * 4), data[i], rest[i]);
#pragma unroll
      for (int i = 0; i < MAXP; i++) missing |= i < parts && (u32)(rest[i] >> 32) != tag;
      if (!missing) break;
    }
    float top = MINUS_INF, sum = 0, o[4] = {};
#pragma unroll
    for (int i = 0; i < MAXP; i++)
      if (i < parts) top = fmaxf(top, __uint_as_float((u32)rest[i]));
#pragma unroll
    for (int i = 0; i < MAXP; i++) {
      if (i >= parts) break;
      const float weight = exp2_fast(__uint_as_float((u32)rest[i]) - top);
      const u32 lo = (u32)data[i], hi = (u32)(data[i] >> 32);
      sum += weight;
      o[0] += weight * to_float(lo), o[1] += weight * high(lo), o[2] += weight * to_float(hi), o[3] += weight * high(hi);
    }
    const int to = ((q - text * N) * H + d * 4) / 2;
    const float inv = 1.0f / sum;
    put_word<N_H>(ll_mix, text, to, pack(o[0] * inv, o[1] * inv), tag);
    put_word<N_H>(ll_mix, text, to + 1, pack(o[2] * inv, o[3] * inv), tag);
  }
}
#else
// Joins the splits of one query head, counted through all texts.
__device__ void combine(int splits, int q, u32 tag) {
  constexpr int D4 = H / 4, TEAMS = NT / D4, AT_ONCE = 2;  // splits whose words are asked for together
  const int d = threadIdx.x % D4, team = threadIdx.x / D4;
  float* C = (float*)(smem + OFF_X);
  if (team < TEAMS) {
    Mean mean;
    for (int s0 = team; s0 < splits; s0 += AT_ONCE * TEAMS) {
      u64 data[AT_ONCE], rest[AT_ONCE];
      for (u32 spins = 0;; patience(spins)) {
        bool missing = false;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
          if (s0 + i * TEAMS < splits) peek_wide(Attention::part_word(q, s0 + i * TEAMS, d * 4), data[i], rest[i]);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) missing |= s0 + i * TEAMS < splits && (u32)(rest[i] >> 32) != tag;
        if (!missing) break;
      }
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++) {
        if (s0 + i * TEAMS >= splits) break;
        const u32 lo = (u32)data[i], hi = (u32)(data[i] >> 32);
        mean.join(__uint_as_float((u32)rest[i]), 1.0f, to_float(lo), high(lo), to_float(hi), high(hi));
      }
    }
    STAMP(15)
    float* c = C + team * (H + 4);
    *(float4*)(c + d * 4) = make_float4(mean.o[0], mean.o[1], mean.o[2], mean.o[3]);
    if (d == 0) *(float2*)(c + H) = float2{mean.top, mean.sum};
  }
  consumers_sync();
  if (threadIdx.x < D4) {
    Mean mean;
    for (int k = 0; k < min(TEAMS, splits); k++) {
      const float* c = C + k * (H + 4);
      const float4 e = *(const float4*)(c + d * 4);
      mean.join(c[H], c[H + 1], e.x, e.y, e.z, e.w);
    }
    const int text = TEXTS == 1 ? 0 : q / N, to = ((q - text * N) * H + d * 4) / 2;
    put_word<N_H>(ll_mix, text, to, pack(mean.o[0] / mean.sum, mean.o[1] / mean.sum), tag);
    put_word<N_H>(ll_mix, text, to + 1, pack(mean.o[2] / mean.sum, mean.o[3] / mean.sum), tag);
  }
  consumers_sync();
}
#endif
