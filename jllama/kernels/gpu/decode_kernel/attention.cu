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
  const bool fresh = p.split == p.splits - 1 && p.append;  // this block adds the new token
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
  float *M = (float*)(A + A_M), *LS = (float*)(A + A_L), *fresh_score = (float*)(A + A_NEW);
  constexpr float LOG2_E = 1.4426950408889634f;
  const float log2e_scale = LOG2_E * SCALE;
  auto scored = [&](float v) { return CAP > 0 ? LOG2_E * soft_capped(v * SCALE, CAP) : v * log2e_scale; };
  consumers_sync();

  for (int h = NW - 1 - warp; fresh && h < G; h += NW) {
    float s = 0;
    for (int d = lane * 2; d < H; d += 64) {
      const u32 q = *(const u32*)(A + A_Q + h * QS + d * 2), k = *(const u32*)(A + A_KV + d * 2);
      s += to_float(q) * to_float(k) + high(q) * high(k);
    }
    s = warp_sum(s);
    if (lane == 0) fresh_score[h] = scored(s);
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
        s[n][0] = in0[n] ? scored(s[n][0]) : MINUS_INF;
        s[n][1] = in1[n] ? scored(s[n][1]) : MINUS_INF;
        s[n][2] = in0[n] ? scored(s[n][2]) : MINUS_INF;
        s[n][3] = in1[n] ? scored(s[n][3]) : MINUS_INF;
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

