#ifdef PROFILE
__device__ __forceinline__ void stamp(int which) {
  u32& count = *(u32*)(smem + OFF_PAST + 60);
  if (count < V / NCTA) ptr<float>(T_LOGITS)[count++ * NCTA + blockIdx.x] = (float)(((u32)clock64() & 0x3FFFF) * 64 + which);
}
#endif

// ---- shares: which rows of a stage belong to this block ------------------------------------------------

// Pairs of rows [first, last) of `pairs`; rotated from stage to stage so that odd ones out even up.
struct Share { int first, last; };
__device__ __forceinline__ Share share(int pairs, int stage) {
  const u32 c = (blockIdx.x + (u32)stage * 53u) % NCTA;
  return {(int)(pairs * c / NCTA), (int)(pairs * (c + 1) / NCTA)};
}

// The cached tokens that attention reads, and how they are split among blocks.
struct Past {
  int first, count, chunks, splits;  // positions [first, first + count), then the new token
  int head, split, begin, end;       // this block's kv head (-1: none) and chunks [begin, end)
  bool append;                       // the new token has a place in the cache
  int length, capacity;
  int cached;                        // where the head lies in the cache: the rows before it have K_ each
};
static_assert(sizeof(Past) <= 60, "as layout.py has it, and a count of stamps");
#if KINDS > 1  // of layers: each has a window and a rotation
__constant__ unsigned char g_kinds[L] = KINDS_OF_LAYERS;
__device__ __forceinline__ int kind_of(int l) { return g_kinds[l]; }
#else
__device__ __forceinline__ int kind_of(int) { return 0; }
#endif
__device__ __forceinline__ const Past& past(int kind) { return *(const Past*)(smem + OFF_PAST + kind * 64); }
__device__ __forceinline__ void find_past(int kind) {
  Past& p = *(Past*)(smem + OFF_PAST + kind * 64);
  const int* limits = ptr<const int>(T_LIMITS);
  p.length = *ptr<const int>(T_LENGTH);
  p.capacity = limits[0];
  const int window = limits[kind ? 2 + kind : 1];
  p.append = p.length < p.capacity;
  p.first = window > 0 ? max(0, p.length + 1 - window) : 0;
  p.count = max(0, min(p.length, p.capacity) - p.first);
  p.chunks = (p.count + p.append + TC - 1) / TC;
  p.splits = max(1, min(p.chunks, MAXP));
  const int b = blockIdx.x;
  p.head = b < K_ * p.splits ? b / p.splits : -1;
  p.cached = limits[2] * K_ + p.head;
  p.split = b % p.splits;
  p.begin = p.chunks * p.split / p.splits;
  p.end = p.chunks * (p.split + 1) / p.splits;
}

