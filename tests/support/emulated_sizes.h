// What of `emulated_cuda.h` depends on a kernel's sizes: its run dtype (FP16) and the blocks of a cluster (CLUSTER).

static inline float to_float(unsigned bits) { return to_float_of<FP16>(bits); }
static inline unsigned pack(float lo, float hi) { return pack_of<FP16>(lo, hi); }
static inline unsigned minus_pair(unsigned a, unsigned b) { return minus_of<FP16>(a, b); }
static inline void mma(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  mma_of(FP16, c, a0, a1, a2, a3, b0, b1);
}
template <int COUNT> static void wgmma_rows(float (&d)[COUNT], unsigned a, unsigned b, bool add) {
  wgmma_rows_of(FP16, d, COUNT, a, b, add);
}
static inline void wgmma_64(float (&d)[32], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b) {
  wgmma_64_of(FP16, d, a0, a1, a2, a3, b);
}
template <int COUNT> static void wgmma_by_rows(float (&d)[COUNT], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned long long b) {
  wgmma_by_rows_of(FP16, d, COUNT, {a0, a1, a2, a3}, b);
}
#ifdef CLUSTER
#define IN_CLUSTERS
static inline void cluster_arrive() {}
static inline void cluster_wait() { cluster_sync(CLUSTER); }
template <class T> static T* peer(T* p, int rank) {
  return (T*)(shared_memory_of(me->block / CLUSTER * CLUSTER + rank) + ((const char*)p - smem));
}
#endif
