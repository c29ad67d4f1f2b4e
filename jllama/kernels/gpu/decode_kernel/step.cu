// ---- the step ------------------------------------------------------------------------------------------

// Four elements of the token's embedding; not a number for a token outside the vocabulary.
__device__ __forceinline__ uint2 embedding(int token, int k) {
  using FM = FORMAT_EMBED;
  if (k >= D) return make_uint2(0, 0);
  if (token < 0 || token >= VOCABULARY) return make_uint2(0x7FFF7FFFu, 0x7FFF7FFFu);
  if constexpr (FM::BITS == 16) {
    return __ldg((const uint2*)(ptr<const u16>(T_EMBED) + (size_t)token * D + k));
  } else {
    constexpr int GR = FM::GROUP ? FM::GROUP : D;
    float v[4];
    const size_t at = (size_t)token * (FM::RECORD ? D / IN_RECORD * FM::RECORD : D / GR * (FM::GROUP ? FM::SB : 4));
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
      if constexpr (FM::RECORD) {
        const auto r = Record<FM::RECORD>::of(sp + e / IN_RECORD * FM::RECORD, e / GR & 3);
        const int in = e % IN_RECORD / GR / 4;
        v[i] = q * r.whole_scale(in) + r.whole_offset(in);
        continue;
      }
      v[i] = q * scale_at(sp, e / GR, FM::GROUP ? FM::SB : 4);
      if (FM::OFFSETS) v[i] += scale_at(ptr<char>(T_EMBED + 2) + at, e / GR, FM::SB);
    }
    return make_uint2(pack(v[0], v[1]), pack(v[2], v[3]));
  }
}

template <bool BIAS> __device__ __forceinline__ float biased(float v, float bias) { return BIAS ? v + bias : v; }

__device__ void consumer() {
  const u32 epoch = *(volatile u32*)epoch_counter();
  // In a full cache: not a number. Of several texts the host says so.
  const int token = TEXTS > 1 ? ptr<const int>(T_TOKEN)[own_text()] : past(0).append ? *ptr<const int>(T_TOKEN) : -1;
  for (int i = threadIdx.x; i < KINDS * ROTARY; i += NT) {  // cosines, then sines; attention waits behind a barrier
    const int kind = KINDS > 1 ? i / ROTARY : 0, e = KINDS > 1 ? i % ROTARY : i;
    const Past& p = past(TEXTS > 1 ? kind : 0);  // of several texts each kind's own
    const int table = TEXTS > 1 ? kind * TEXTS + p.own() : kind;
    const float angle = (float)p.length * ptr<const float>(T_FREQUENCIES)[table * (ROTARY / 2) + e % (ROTARY / 2)];
    ((float*)(smem + OFF_ROPE))[kind * H + e] = (e < ROTARY / 2 ? cosf(angle) : sinf(angle)) * ROPE_SCALE(kind);
  }
  Ring ring;
  for (int l = 0; l < L; l++) {
    const int y = T_LAYERS + l * Y_COUNT, kind = kind_of(l);
    const Past& p = past(kind);
    const u32 tag = epoch + l + 1;
    const Share qkv = share(QKV_ROWS / 2, 4 * l), o = share(D / 2, 4 * l + 1);
    const Share gate_up = share(F / 2, 4 * l + 2), down = share(D / 2, 4 * l + 3);
    const Added to_o = {o, false}, to_down = {down, true};
    in_format(QKV(), format_of(l, OF_QKV), [&](auto f) {
      using FQ = Behind<decltype(f), PRE>;
      load_normed<FQ, PRE>(ptr<const u16>(y + Y_NORM1), to_o, [&](auto sink) {
        if (l) return arriving<BY_EIGHT<FQ>>(ll_x2, y - Y_COUNT + Y_POST2, tag - 1, sink);
#pragma unroll
        for (int i = 0; i < FOURS<D, BY_EIGHT<FQ>>; i++) {
          const int k = element<BY_EIGHT<FQ>>(i);
          uint2 e = embedding(token, k);
          if (EMBED_SCALE != 1) {
            e.x = pack(to_float(e.x) * EMBED_SCALE, high(e.x) * EMBED_SCALE);
            e.y = pack(to_float(e.y) * EMBED_SCALE, high(e.y) * EMBED_SCALE);
          }
          sink(k, e.x, e.y);
        }
      });
      STAMP(0)
      const Inverse inv(PRE);
      products<FQ, D, false, QKV_BIAS>(ring, qkv, ptr<const float>(y + Y_QKV + 1), ptr<const u16>(y + Y_QKV_BIAS),
                                       [&](int row, int text, bool valid, float v, float, float bias, float) {
        put_pair<QKV_ROWS>(ll_qkv + text * (QKV_ROWS / 2), text, row, valid, biased<QKV_BIAS>(v * inv.at<PRE && !FQ::NORMED>(text), bias), tag);
      });
    });
    STAMP(1)
    if (p.head >= 0) attend(ring, p, y, kind, ptr<char>(y + Y_KEYS), ptr<char>(y + Y_VALUES), tag);
#if TEXTS > 4
    combine(p, tag);
#elif TEXTS > 1
    for (int q = NCTA - 1 - (int)blockIdx.x; q < TEXTS * N; q += NCTA)
      if (p.parts(q / N) > JOINED) combine(p.parts(q / N), q, tag);
#else
    if (p.splits > JOINED)
      for (int q = NCTA - 1 - (int)blockIdx.x; q < N; q += NCTA) combine(p.splits, q, tag);
#endif
    STAMP(2)
    in_format(O(), format_of(l, OF_O), [&](auto f) {
      using FO = decltype(f);
      const int splits = p.parts(own_text());
      if (JOINED == 1 || splits == 1 || splits > JOINED) load_plain<FO, N_H>(ll_mix, tag);
      else load_joined<FO>(splits, tag);
      STAMP(3)
      products<FO, N_H, false, O_BIAS>(ring, o, ptr<const float>(y + Y_O + 1), ptr<const u16>(y + Y_O_BIAS),
                                       [&](int row, int text, bool valid, float v, float, float bias, float) {
        const float sum = summed(BOX_O, row, valid, v, tag);
        put_pair<D>(ll_x1, text, row, valid, handed_over(row, text, valid, biased<O_BIAS>(sum, bias), to_o), tag);
      });
    });
    STAMP(4)
    in_format(GU(), format_of(l, OF_GU), [&](auto f) {
      using FG = Behind<decltype(f), PRE>;
      load_normed<FG, PRE>(ptr<const u16>(y + Y_NORM2), to_down, [&](auto sink) { arriving<BY_EIGHT<FG>>(ll_x1, y + Y_POST1, tag, sink); });
      STAMP(5)
      const Inverse inv(PRE);
      products<FG, D, true, GU_BIAS>(ring, gate_up, ptr<const float>(y + Y_GU + 1), ptr<const u16>(y + Y_GU_BIAS),
                                     [&](int row, int text, bool valid, float gate, float up, float gate_bias, float up_bias) {
        const float by = inv.at<PRE && !FG::NORMED>(text);
        const float gr = rounded(biased<GU_BIAS>(gate * by, gate_bias)), ur = rounded(biased<GU_BIAS>(up * by, up_bias));
        put_pair<F>(ll_h, text, row, valid, activated<ACTIVATION>(gr) * ur, tag);
      });
    });
    STAMP(6)
    forget_layer(tag);
    in_format(DOWN(), format_of(l, OF_DOWN), [&](auto f) {
      using FD = decltype(f);
      load_plain<FD, F>(ll_h, tag);
      STAMP(7)
      products<FD, F, false, DOWN_BIAS>(ring, down, ptr<const float>(y + Y_DOWN + 1), ptr<const u16>(y + Y_DOWN_BIAS),
                                        [&](int row, int text, bool valid, float v, float, float bias, float) {
        const float sum = summed(BOX_DOWN, row, valid, v, tag);
        put_pair<D>(ll_x2, text, row, valid, handed_over(row, text, valid, biased<DOWN_BIAS>(sum, bias), to_down), tag);
      });
    });
    STAMP(8)
  }
  load_normed<FH, true>(ptr<const u16>(T_NORM), Added(), [&](auto sink) {
    arriving<BY_EIGHT<FH>>(ll_x2, T_LAYERS + (L - 1) * Y_COUNT + Y_POST2, epoch + L, sink);
  });
  const Inverse inv(true);
  float* logits = ptr<float>(T_LOGITS);
  const u32 last_tag = epoch + L + (TEXTS == 1);  // several texts: no turn of their buffers is left out
  const int first = first_logit();
  products<FH, D, false, false>(ring, share(V / 2, 4 * L), ptr<const float>(T_HEAD + 1), nullptr,
                                [&](int row, int text, bool valid, float v, float, float, float) {
    float logit = v * inv.at<!FH::NORMED>(text);
    if (LOGIT_SCALE != 1) logit *= LOGIT_SCALE;
    if (FINAL_CAP > 0) logit = soft_capped(logit, FINAL_CAP);
#ifndef PROFILE
    if (valid && threadIdx.x % TPO == 0) {
      logits[(size_t)text * V + first + row] = logit;
      send_logit(first + row, logit, last_tag);
    }
#endif
  });
  // Every block has read the epoch: this block has seen words of all of them.
  if (blockIdx.x == 0 && threadIdx.x == 0) *(volatile u32*)epoch_counter() = last_tag;
  take_logits(logits, last_tag);
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
      mbar_init(saddr(smem + OFF_BAR) + i * 8, PW * ARRIVALS);
      mbar_init(saddr(smem + OFF_BAR) + (NSLOT + i) * 8, WPG);
    }
    show_barriers();
#ifdef PROFILE
    *(u32*)(smem + OFF_PAST + 60) = 0;
#endif
  }
  __syncthreads();
  if (KINDS == 1 ? threadIdx.x == NT : threadIdx.x >= NT && threadIdx.x < NT + KINDS) find_past(KINDS == 1 ? 0 : threadIdx.x - NT);
  __syncthreads();
  if (warp >= NW) produce_all(warp - NW);
  else consumer();
}
