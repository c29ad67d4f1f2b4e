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
