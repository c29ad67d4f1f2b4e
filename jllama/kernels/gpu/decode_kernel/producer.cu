// ---- producer ------------------------------------------------------------------------------------------

// A group's slots, one after another: NG further on each time.
struct Turn {
  u32 full, at, parity;  // barrier, where the data lies
  __device__ __forceinline__ void next() {
    at += NG * SLOT;
    full += NG * 8;
    if (at >= OFF_RING + NSLOT * SLOT) {
      at -= NSLOT * SLOT;
      full -= NSLOT * 8;
      parity ^= 1;
    }
  }
};
struct Ring {
  u32 pos = 0;  // slots used so far
  __device__ __forceinline__ u32 full(u32 c) const { return saddr(smem + OFF_BAR) + (pos + c) % NSLOT * 8; }
  __device__ __forceinline__ u32 empty(u32 c) const { return full(c) + NSLOT * 8; }
  __device__ __forceinline__ u32 parity(u32 c) const { return (pos + c) / NSLOT & 1; }
  __device__ __forceinline__ Turn turn(u32 c) const { return {full(c), OFF_RING + (pos + c) % NSLOT * SLOT, parity(c)}; }
  __device__ __forceinline__ char* data(u32 c) const { return smem + OFF_RING + (pos + c) % NSLOT * SLOT; }
};

// Waits until the next slot is free, and until no more than LAG others are on their way: a longer queue would
// only hold up the words that blocks wait for.
__device__ __forceinline__ void wait_for_slot(const Ring& ring) {
  mbar_wait(ring.empty(0), ring.parity(0) ^ 1);
  if (LAG < NSLOT && ring.pos >= LAG) mbar_wait(ring.full(-LAG), ring.parity(-LAG));
}

// Of the rows of a tile, producer p of OF copies p, p + OF, ...: a copy costs its warp some 60 clocks. The others only say
// that they are where the slot is.
template <class FM, int K, bool PAIRS, int OF>
__device__ void produce(Ring& ring, int p, Share rows, int weight, u64 policy) {
  using R = Rows<FM, K>;
  constexpr int TP = PAIRS ? R::TR / 2 : R::TR, LISTS = FM::LISTS;  // outputs per tile; scales, offsets
  const char* const weights = ptr<char>(weight);
  constexpr int MINE = R::TR / OF;
  const int lane = threadIdx.x & 31, r = lane % MINE * OF + p, i = r % TP, list = lane / MINE;  // lanes beyond the rows copy offsets
  const bool up = r >= TP, mine = p < OF;
#pragma unroll 1
  for (int r0 = rows.first * 2; r0 < rows.last * 2; r0 += TP) {
    const int n = min(TP, rows.last * 2 - r0), nr = mine ? (n - p + OF - 1) / OF * (PAIRS ? 2 : 1) : 0;
    const long long row = r0 + i + (up ? F : 0);
#pragma unroll 1
    for (int off = 0; off < R::BYTES; off += R::SLICE) {
      const int bytes = min(R::SLICE, R::BYTES - off), sbytes = R::scales(bytes);
      wait_for_slot(ring);
      const u32 dst = saddr(ring.data(0)), bar = ring.full(0);
      if (R::PER_ROW) {
        if (lane == 0) mbar_expect(bar, nr * (bytes + LISTS * sbytes));
        __syncwarp();
        if (mine && i < n && list < LISTS)
          bulk_copy(dst + R::SCALE_AT + list * R::SCALE_BYTES + r * R::SSTRIDE,
                    ptr<char>(weight + 1 + list) + row * R::SCALES + R::scales(off), sbytes, bar, policy);
      } else {  // the scales of the tile in one piece, widened to 16 bytes at both ends
        const char* from = ptr<char>(weight + 1 + (lane >> 1 & 1)) + (r0 + (lane & 1 ? F : 0)) * (long long)R::SCALES;
        const u32 shift = (u32)(u64)from & 15, total = (n * R::SCALES + shift + 15) & ~15u;
        const u32 both = __shfl_sync(~0u, total, 0) + (PAIRS ? __shfl_sync(~0u, total, 1) : 0);
        if (lane == 0) mbar_expect(bar, nr * bytes + (p ? 0 : LISTS * both));
        __syncwarp();
        if (p == 0 && lane < 2 * LISTS && (PAIRS || !(lane & 1)))
          bulk_copy(dst + R::SCALE_AT + lane * R::SECOND, from - shift, total, bar, policy);
      }
      if (mine && i < n && list == 0) bulk_copy(dst + r * R::STRIDE, weights + row * R::BYTES + off, bytes, bar, policy);
      ring.pos++;
    }
  }
}

__device__ __forceinline__ void produce_past(Ring& ring, int producer, const Past& p, const char* keys, const char* values, u64 policy) {
  if (p.head < 0) return;
  const int lane = threadIdx.x & 31;
  for (int c = p.begin; c < p.end; c++) {
    const size_t at = ((size_t)p.cached * p.capacity + p.first + c * TC) * H * 2;
    const int tokens = min(TC, p.count - c * TC);
    for (int i = 0; i < 2; i++)
      for (int done = 0; done < tokens; done += TS) {
        const int here = min(TS, tokens - done), first = i ? lane * GT : 0, count = i ? min(GT, here - first) : here;
        wait_for_slot(ring);
        if (lane == 0) mbar_expect(ring.full(0), producer ? 0 : here * H * 2);
        __syncwarp();
        if (lane % PW == producer && lane < (i ? PER : 1) && count > 0) {
          const u32 dst = saddr(ring.data(0)) + first * H * 2 + (i ? (done / GT + lane) * 16 : 0);
          bulk_copy(dst, (i ? values : keys) + at + (done + first) * H * 2, count * H * 2, ring.full(0), policy);
        }
        ring.pos++;
      }
  }
}

__device__ void produce_all(int p) {
  const u64 once = read_once_policy();
  Ring ring;
  for (int l = 0; l < L; l++) {
    const int y = T_LAYERS + l * Y_COUNT;
    in_format(QKV(), format_of(l, OF_QKV), [&](auto f) { produce<decltype(f), D, false, TEAM>(ring, p, share(QKV_ROWS / 2, 4 * l), y + Y_QKV, once); });
    produce_past(ring, p, past(kind_of(l)), ptr<char>(y + Y_KEYS), ptr<char>(y + Y_VALUES), once);
    in_format(O(), format_of(l, OF_O), [&](auto f) { produce<decltype(f), N_H, false, TEAM>(ring, p, share(D / 2, 4 * l + 1), y + Y_O, once); });
    in_format(GU(), format_of(l, OF_GU), [&](auto f) { produce<decltype(f), D, true, TEAM>(ring, p, share(F / 2, 4 * l + 2), y + Y_GU, once); });
    in_format(DOWN(), format_of(l, OF_DOWN), [&](auto f) { produce<decltype(f), F, false, TEAM>(ring, p, share(D / 2, 4 * l + 3), y + Y_DOWN, once); });
  }
  produce<FH, D, false, PW>(ring, p, share(V / 2, 4 * L), T_HEAD, once);
}

