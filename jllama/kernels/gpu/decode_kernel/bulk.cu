enum { ARRIVALS = 1 };  // of a warp that fills a slot: the copy engine counts the bytes

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

