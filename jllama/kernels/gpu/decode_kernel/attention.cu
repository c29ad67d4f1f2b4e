// ---- attention: one kv head, one stretch of the cache --------------------------------------------------

__device__ __forceinline__ void rotate(u32& first, u32& second, int j, int kind) {  // elements 2j, 2j+1 and their partners
  const float* c = (const float*)(smem + OFF_ROPE) + kind * H;
  const float* s = c + ROTARY / 2;
  const float a0 = to_float(first), a1 = high(first), b0 = to_float(second), b1 = high(second);
  first = pack(a0 * c[2 * j] - b0 * s[2 * j], a1 * c[2 * j + 1] - b1 * s[2 * j + 1]);
  second = pack(b0 * c[2 * j] + a0 * s[2 * j], b1 * c[2 * j + 1] + a1 * s[2 * j + 1]);
}

// Pairs of words of a head: j-th ones of the two halves of what turns, then of the rest, which does not turn.
__device__ __forceinline__ bool turns(int j) { return ROTARY == H || j < ROTARY / 4; }
__device__ __forceinline__ int first_word(int j) { return turns(j) ? j : j + ROTARY / 4; }
__device__ __forceinline__ int apart(int j) { return turns(j) ? ROTARY / 4 : (H - ROTARY) / 4; }

__device__ void attend(Ring& ring, const Past& p, int layer, int kind, char* keys, char* values, u32 tag) {
  char* A = smem + OFF_X;
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;
  const bool fresh = p.split == p.splits - 1 && p.append;  // this block adds the new token, the last of its tokens
  constexpr int R4 = H / 4;
  auto take_pair = [&](int r, int j, u32& lo, u32& hi) {
    const u64* from = ll_qkv + (p.head * (G + 2) + r) * (H / 2);
    const int first = first_word(j);
    u64 wl = peek(from + first), wh = peek(from + first + apart(j));
    for (u32 spins = 0; (u32)(wl >> 32) != tag || (u32)(wh >> 32) != tag; patience(spins))
      wl = peek(from + first), wh = peek(from + first + apart(j));
    lo = (u32)wl, hi = (u32)wh;
  };
  auto keep_pair = [&](int r, int j, u32 lo, u32 hi) {
    if (r <= G && turns(j)) rotate(lo, hi, j, kind);
    const int first = first_word(j) * 4, second = first + apart(j) * 4;
    char* to = r < G ? A + A_Q + r * QS : A + A_KV + (r - G) * H * 2;
    *(u32*)(to + first) = lo;
    *(u32*)(to + second) = hi;
    if (r >= G) {
      char* row = (r == G ? keys : values) + ((size_t)p.cached * p.capacity + p.length) * H * 2;
      *(u32*)(row + first) = lo;
      *(u32*)(row + second) = hi;
    }
  };
#if QK_NORM  // a head is a warp's
  constexpr int EACH = (R4 + 31) / 32;
  for (int r = warp; r < G + 2 && (r < G || fresh); r += NW) {
    u32 lo[EACH], hi[EACH], weight_lo[EACH], weight_hi[EACH];
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      const int j = lane + e * 32;
      if (j >= R4 || r > G) break;
      const u32* weights = ptr<const u32>(layer + (r < G ? Y_Q_NORM : Y_K_NORM));
      weight_lo[e] = __ldg(weights + first_word(j)), weight_hi[e] = __ldg(weights + first_word(j) + apart(j));
    }
    float squares = 0;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      if (lane + e * 32 >= R4) break;
      take_pair(r, lane + e * 32, lo[e], hi[e]);
      squares += to_float(lo[e]) * to_float(lo[e]) + high(lo[e]) * high(lo[e]) + to_float(hi[e]) * to_float(hi[e]) + high(hi[e]) * high(hi[e]);
    }
    const float by = rsqrtf(warp_sum(squares) * (1.0f / H) + EPS);
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      if (lane + e * 32 >= R4) break;
      if (r <= G) {
        lo[e] = pack(to_float(lo[e]) * by * gain(to_float(weight_lo[e])), high(lo[e]) * by * gain(high(weight_lo[e])));
        hi[e] = pack(to_float(hi[e]) * by * gain(to_float(weight_hi[e])), high(hi[e]) * by * gain(high(weight_hi[e])));
      }
      keep_pair(r, lane + e * 32, lo[e], hi[e]);
    }
  }
#else
  for (int i = tid; i < (G + 2) * R4; i += NT) {
    const int r = i / R4, j = i % R4;
    if (r >= G && !fresh) break;
    u32 lo, hi;
    take_pair(r, j, lo, hi);
    keep_pair(r, j, lo, hi);
  }
#endif
  STAMP(9)
  float *M = (float*)(A + A_M), *LS = (float*)(A + A_L);
  constexpr float LOG2_E = 1.4426950408889634f;
  const float log2e_scale = LOG2_E * SCALE;
  auto scored = [&](float v) { return CAP > 0 ? LOG2_E * soft_capped(v * SCALE, CAP) : v * log2e_scale; };
  consumers_sync();
  STAMP(10)

  // Each warp keeps its own running softmax; lane (g, t) that of heads g and g + 8.
  float m0 = MINUS_INF, m1 = MINUS_INF, l0 = 0, l1 = 0;
  char* O = A + A_O + warp * G * H * 4;
  const int begin = p.begin, end = p.end, count = p.count, append = p.append;
  const int used = (min(TC, count + append - begin * TC) + TW - 1) / TW;  // warps with something to attend to
#pragma unroll 1
  for (int c = begin; c < end; c++) {
    const int cached = min(TC, count - c * TC), tokens = min(TC, count + append - c * TC), n0 = warp * TW;
    const int slots = (cached + TS - 1) / TS;  // of keys, then as many of values
    if (n0 < tokens) {
      const int ks = n0 / TS, vs = slots + ks, in = n0 % TS;
      const bool waits = n0 < cached;  // the new token lies apart
      uint4 qa[H / 32], qb[G > 8 ? H / 32 : 1];  // of heads g and g + 8
#pragma unroll
      for (int i = 0; i < H / 32; i++) {
        qa[i] = *(const uint4*)(A + A_Q + g * QS + i * 64 + t * 16);
        if (G > 8) qb[i] = *(const uint4*)(A + A_Q + (g + 8) * QS + i * 64 + t * 16);
      }
      if (waits) mbar_wait(ring.full(ks), ring.parity(ks));
      const char* kt = ring.data(ks) + in * H * 2;
      float s[TW / 8][2][4] = {};  // two chains
      bool in0[TW / 8], in1[TW / 8];
#pragma unroll
      for (int n = 0; n < TW / 8; n++) {
        const char* key = n0 + n * 8 + g == cached ? A + A_KV : kt + (n * 8 + g) * H * 2;
#pragma unroll
        for (int i = 0; i < H / 32; i++) {
          const uint4 kv = *(const uint4*)(key + i * 64 + t * 16);
          const uint4 q = qa[i], r = G > 8 ? qb[i] : make_uint4(0, 0, 0, 0);
          mma(s[n][0], q.x, r.x, q.y, r.y, kv.x, kv.y);
          mma(s[n][1], q.z, r.z, q.w, r.w, kv.z, kv.w);
        }
      }
      float top0 = m0, top1 = m1;
#pragma unroll
      for (int n = 0; n < TW / 8; n++) {
        in0[n] = n0 + n * 8 + 2 * t < tokens;
        in1[n] = n0 + n * 8 + 2 * t + 1 < tokens;
#pragma unroll
        for (int i = 0; i < 4; i++) s[n][0][i] = (i & 1 ? in1 : in0)[n] ? scored(s[n][0][i] + s[n][1][i]) : MINUS_INF;
        top0 = fmaxf(top0, fmaxf(s[n][0][0], s[n][0][1]));
        top1 = fmaxf(top1, fmaxf(s[n][0][2], s[n][0][3]));
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
        float* w = s[n][0];
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = exp2_fast(w[i] - (i < 2 ? m0 : m1));
        l0 += w[0] + w[1];
        l1 += w[2] + w[3];
        a[2 * n] = pack(w[0], w[1]);
        a[2 * n + 1] = G > 8 ? pack(w[2], w[3]) : 0u;
      }
      STAMP(11)
      if (waits) mbar_wait(ring.full(vs), ring.parity(vs));
      const char *vt = ring.data(vs) + (in + 2 * t) * H * 2, *row0[TW / 8], *row1[TW / 8];
#pragma unroll
      for (int n = 0; n < TW / 8; n++) {
        const int token = n0 + n * 8 + 2 * t;
        row0[n] = token == cached ? A + A_KV + H * 2 : vt + n * 16 * H;
        row1[n] = token + 1 == cached ? A + A_KV + H * 2 : vt + n * 16 * H + H * 2;
      }
      constexpr int AT_ONCE = H % 64 ? 1 : 2;  // pieces of 32 dimensions: all are read before the first is stored
#pragma unroll
      for (int d1 = 0; d1 < H; d1 += 32 * AT_ONCE) {
        uint2 v0[AT_ONCE][2] = {}, v1[AT_ONCE][2] = {};
#pragma unroll
        for (int e = 0; e < AT_ONCE; e++)
#pragma unroll
          for (int n = 0; n < TW / 8; n++) {
            if (in0[n]) v0[e][n] = *(const uint2*)(row0[n] + (d1 + e * 32) * 2 + g * 8);
            if (in1[n]) v1[e][n] = *(const uint2*)(row1[n] + (d1 + e * 32) * 2 + g * 8);
          }
        float o[AT_ONCE][4][4] = {};
#pragma unroll
        for (int e = 0; e < AT_ONCE; e++)
#pragma unroll
          for (int j = 0; j < 4; j++) {  // column g of product j is dimension d1 + 32 e + 4 g + j
            const u32 order = j & 1 ? 0x7632 : 0x5410;
            const u32 b0 = j < 2 ? __byte_perm(v0[e][0].x, v1[e][0].x, order) : __byte_perm(v0[e][0].y, v1[e][0].y, order);
            const u32 b1 = j < 2 ? __byte_perm(v0[e][1].x, v1[e][1].x, order) : __byte_perm(v0[e][1].y, v1[e][1].y, order);
            mma(o[e][j], a[0], a[1], a[2], a[3], b0, b1);
          }
#pragma unroll
        for (int half = 0; half < (G > 8 ? 2 : 1); half++) {
          if (half * 8 + g >= G) break;
          float4* to = (float4*)(O + ((half * 8 + g) * H + d1 + 8 * t) * 4);
          const float al = half ? alpha1 : alpha0;
#pragma unroll
          for (int e = 0; e < AT_ONCE; e++) {
            float4 x = make_float4(o[e][0][2 * half], o[e][1][2 * half], o[e][2][2 * half], o[e][3][2 * half]);
            float4 y = make_float4(o[e][0][2 * half + 1], o[e][1][2 * half + 1], o[e][2][2 * half + 1], o[e][3][2 * half + 1]);
            if (c > begin) {
              const float4 a = to[e * 8], b = to[e * 8 + 1];
              x = make_float4(x.x + a.x * al, x.y + a.y * al, x.z + a.z * al, x.w + a.w * al);
              y = make_float4(y.x + b.x * al, y.y + b.y * al, y.z + b.z * al, y.w + b.w * al);
            }
            to[e * 8] = x;
            to[e * 8 + 1] = y;
          }
        }
      }
      if (c + 1 == end || n0 + TC >= count + append - c * TC) {  // this warp's last tokens
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
    STAMP(12)
    consumers_sync();
    if (warp < WPG && lane < 2 * slots) mbar_arrive(ring.empty(lane));
    ring.pos += 2 * slots;
  }
  STAMP(13)
  for (int i = tid; i < G * H / 2; i += NT) {
    const int h = i / (H / 2), d = i % (H / 2) * 2;
    float top = MINUS_INF, m[AW], l[AW];
    float2 v[AW];
#pragma unroll
    for (int w = 0; w < AW; w++) {  // nothing was written by those that were not used
      m[w] = w < used ? M[w * 16 + h] : MINUS_INF;
      l[w] = w < used ? LS[w * 16 + h] : 0.0f;
      v[w] = w < used ? *(const float2*)(A + A_O + ((w * G + h) * H + d) * 4) : float2{0, 0};
    }
#pragma unroll
    for (int w = 0; w < AW; w++) top = fmaxf(top, m[w]);
    float o0 = 0, o1 = 0, sum = 0;
#pragma unroll
    for (int w = 0; w < AW; w++) {
      const float weight = w < used ? exp2_fast(m[w] - top) : 0.0f;
      o0 += weight * v[w].x;
      o1 += weight * v[w].y;
      sum += weight * l[w];
    }
    const int q = p.head * G + h;
    u64* to = ll_part + (q * MAXP + p.split) * (H + 2);
    if (p.splits > JOINED) {
      put(to + d, __float_as_uint(o0), tag);
      put(to + d + 1, __float_as_uint(o1), tag);
      if (d == 0) { put(to + H, __float_as_uint(top), tag); put(to + H + 1, __float_as_uint(sum), tag); }
    } else {  // a mean, and the logarithm of its weight among those of other blocks
      const float inv = __fdividef(1.0f, sum);
      put(p.splits == 1 ? ll_mix + (q * H + d) / 2 : to + d / 2, pack(o0 * inv, o1 * inv), tag);
      if (p.splits > 1 && d == 0) put(to + H / 2, __float_as_uint(top + log2f(sum)), tag);
    }
  }
  STAMP(14)
  consumers_sync();
}

// The mixed heads where up to JOINED blocks have a part of a key head's text each: every block joins their means.
template <class FM> __device__ __forceinline__ void load_joined(int splits, u32 tag) {
  constexpr int IT = (N_H / 4 + NT - 1) / NT;
  const u64* from[IT];  // the words of four dimensions
  const u64* weight[IT];
#pragma unroll
  for (int i = 0; i < IT; i++) {
    const int k = min((int)(threadIdx.x + i * NT) * 4, N_H - 4);
    weight[i] = ll_part + k / H * MAXP * (H + 2) + H / 2;
    from[i] = weight[i] - H / 2 + k % H / 2;
  }
  u64 a[IT][JOINED], b[IT][JOINED], w[IT][JOINED];
  if ((threadIdx.x & 31) == 31) take(weight[0] + (splits - 1) * (H + 2), tag);  // as `gather`
  __syncwarp();
  STAMP(16)
  for (u32 spins = 0;; patience(spins)) {
    bool missing = false;
#pragma unroll
    for (int s = 0; s < JOINED; s++) {
      if (s >= splits) break;
#pragma unroll
      for (int i = 0; i < IT; i++) {
        peek2(from[i] + s * (H + 2), a[i][s], b[i][s]);
        w[i][s] = peek(weight[i] + s * (H + 2));
      }
    }
#pragma unroll
    for (int s = 0; s < JOINED; s++) {
      if (s >= splits) break;
#pragma unroll
      for (int i = 0; i < IT; i++)
        missing |= (u32)(a[i][s] >> 32) != tag || (u32)(b[i][s] >> 32) != tag || (u32)(w[i][s] >> 32) != tag;
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
      if (s < splits) top = fmaxf(top, __uint_as_float((u32)w[i][s]));
#pragma unroll
    for (int s = 0; s < JOINED; s++) {
      if (s >= splits) break;
      const float weight = exp2_fast(__uint_as_float((u32)w[i][s]) - top);
      sum += weight;
      e[0] += weight * to_float((u32)a[i][s]); e[1] += weight * high((u32)a[i][s]);
      e[2] += weight * to_float((u32)b[i][s]); e[3] += weight * high((u32)b[i][s]);
    }
    const float inv = __fdividef(1.0f, sum);
    const u32 lo = pack(e[0] * inv, e[1] * inv), hi = pack(e[2] * inv, e[3] * inv);
    const int k = (int)(threadIdx.x + i * NT) * 4;
    if constexpr (FM::KIND == PLAIN) store.words(k, lo, hi);
    else store.four(i, k, to_float(lo), high(lo), to_float(hi), high(hi));
  }
  store.finish();
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
    STAMP(15)
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

