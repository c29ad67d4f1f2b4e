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

