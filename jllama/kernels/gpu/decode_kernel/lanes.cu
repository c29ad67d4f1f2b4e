// In place of bulk.cu below compute capability 9.0, where there is no copy engine: lanes copy 16 bytes each, and each of them
// arrives at a slot once its own copies have landed. Without a policy for the L2 cache: with one, ptxas makes of these
// copies an illegal instruction.
enum { ARRIVALS = 32 };  // of a warp that fills a slot

struct Piece {
  u32 dst, bytes;  // multiples of 16; of none: 0
  const char* src;
};
// The pieces 0 to COUNT - 1, MOST bytes at most, one behind another, so that lanes copy neighbours.
template <int COUNT, int MOST, class Which> __device__ __forceinline__ void copy_pieces(Which which) {
  constexpr int EACH = (MOST + 15) / 16;
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int i = 0; i < COUNT * EACH; i += 32) {
    const int of = (i + lane) / EACH;
    const u32 at = (i + lane) % EACH * 16;
    if (of >= COUNT) break;
    const Piece piece = which(of);
    if (at < piece.bytes) copy_16_of_128(piece.dst + at, piece.src + at);
  }
}

// Of the rows of a tile, producer p of OF copies p, p + OF, ... The others only say that they are where the slot is.
template <class FM, int K, bool PAIRS, int OF>
__device__ void produce(Ring& ring, int p, Share rows, int weight, u64) {
  using R = Rows<FM, K>;
  constexpr int TP = PAIRS ? R::TR / 2 : R::TR, MINE = R::TR / OF, LISTS = FM::LISTS;  // outputs per tile, a producer's rows; scales, offsets
  const char* const weights = ptr<char>(weight);
#pragma unroll 1
  for (int r0 = rows.first * 2; r0 < rows.last * 2; r0 += TP) {
    const int n = p < OF ? min(TP, rows.last * 2 - r0) : 0;
#pragma unroll 1
    for (int off = 0; off < R::BYTES; off += R::SLICE) {
      const int bytes = min(R::SLICE, R::BYTES - off);
      wait_for_slot(ring);
      const u32 dst = saddr(ring.data(0));
      if constexpr (LISTS && R::PER_ROW)
        copy_pieces<MINE * LISTS, R::scales(R::SLICE)>([&](int k) {
          const int list = k / MINE, r = k % MINE * OF + p, i = r % TP;
          const char* from = ptr<char>(weight + 1 + list) + (r0 + i + (r >= TP ? F : 0)) * (long long)R::SCALES + R::scales(off);
          return Piece{dst + R::SCALE_AT + list * R::SCALE_BYTES + r * R::SSTRIDE, i < n ? R::scales(bytes) : 0u, from};
        });
      if constexpr (LISTS && !R::PER_ROW) {  // the scales of the tile in one piece, widened to 16 bytes at both ends
        constexpr int SIDES = PAIRS ? 2 : 1;
        copy_pieces<SIDES * LISTS, 2 / SIDES * R::SECOND>([&](int k) {
          const int list = k / SIDES, up = k % SIDES;
          const char* from = ptr<char>(weight + 1 + list) + (r0 + (up ? F : 0)) * (long long)R::SCALES;
          const u32 shift = (u32)(u64)from & 15, total = (n * R::SCALES + shift + 15) & ~15u;
          return Piece{dst + R::SCALE_AT + (2 * list + up) * R::SECOND, p == 0 ? total : 0u, from - shift};
        });
      }
      copy_pieces<MINE, R::SLICE>([&](int k) {
        const int r = k * OF + p, i = r % TP;
        return Piece{dst + r * R::STRIDE, i < n ? (u32)bytes : 0u, weights + (r0 + i + (r >= TP ? F : 0)) * (long long)R::BYTES + off};
      });
      arrive_with_copies(ring.full(0));
      ring.pos++;
    }
  }
}

__device__ __forceinline__ void produce_past(Ring& ring, int producer, const Past& p, const char* keys, const char* values, u64) {
  if (p.head < 0) return;
  for (int c = p.begin; c < p.end; c++) {
    const size_t at = ((size_t)p.cached * p.capacity + p.first + c * TC) * H * 2;
    const int tokens = min(TC, p.count - c * TC);
    for (int i = 0; i < 2; i++)
      for (int done = 0; done < tokens; done += TS) {  // values in runs, which lie 16 bytes further on each
        const char* from = (i ? values : keys) + at + done * H * 2;
        wait_for_slot(ring);
        const u32 dst = saddr(ring.data(0));
        copy_pieces<(PER + PW - 1) / PW, GT * H * 2>([&](int k) {
          const int run = k * PW + producer, first = run * GT, count = min(GT, min(TS, tokens - done) - first);
          return Piece{dst + first * H * 2 + (i ? (done / GT + run) * 16 : 0), run < PER && count > 0 ? count * H * 2u : 0u, from + first * H * 2};
        });
        arrive_with_copies(ring.full(0));
        ring.pos++;
      }
  }
}
