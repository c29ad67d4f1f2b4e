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
#if TEXTS > 1
  int text;  // whose head it is; all of the above is that text's
  unsigned char splits_of[TEXTS];
  __device__ __forceinline__ int own() const { return text; }
  __device__ __forceinline__ int parts(int text) const { return splits_of[text]; }
#else
  __device__ __forceinline__ int own() const { return 0; }
  __device__ __forceinline__ int parts(int) const { return splits; }
#endif
};
static_assert(sizeof(Past) <= 60, "as layout.py has it, and a count of stamps");
#if KINDS > 1  // of layers: each has a window and a rotation
__constant__ unsigned char g_kinds[L] = KINDS_OF_LAYERS;
__device__ __forceinline__ int kind_of(int l) { return g_kinds[l]; }
#else
__device__ __forceinline__ int kind_of(int) { return 0; }
#endif
__device__ __forceinline__ const Past& past(int kind) { return *(const Past*)(smem + OFF_PAST + kind * 64); }
// How a text's cached tokens are split. A length below zero: it does not run.
__device__ __forceinline__ void find_text(Past& p, int kind, int text) {
  const int* limits = ptr<const int>(T_LIMITS);
  p.length = ptr<const int>(T_LENGTH)[text];
  p.capacity = limits[0];
  const int window = limits[kind ? 1 + TEXTS + kind : 1];
  p.append = p.length < p.capacity && (TEXTS == 1 || p.length >= 0);
  p.first = window > 0 ? max(0, p.length + 1 - window) : 0;
  p.count = max(0, min(p.length, p.capacity) - p.first);
  p.chunks = (p.count + p.append + TC - 1) / TC;
  p.splits = max(1, min(p.chunks, MAXP));
}
// The b-th of the blocks that attend for a text.
__device__ __forceinline__ void find_part(Past& p, int text, int b) {
  p.head = b < K_ * p.splits ? b / p.splits : -1;
  p.cached = ptr<const int>(T_LIMITS)[2 + text] * K_ + p.head;
  p.split = b % p.splits;
  p.begin = p.chunks * p.split / p.splits;
  p.end = p.chunks * (p.split + 1) / p.splits;
}
__device__ __forceinline__ void find_past(int kind) {
  Past& p = *(Past*)(smem + OFF_PAST + kind * 64);
#if TEXTS > 1
  int b = blockIdx.x, mine = -1;
#pragma unroll 1
  for (int text = 0; text < TEXTS; text++) {
    find_text(p, kind, text);
    p.splits_of[text] = (unsigned char)p.splits;
    if (b >= 0 && b < K_ * p.splits) mine = text, p.split = b;
    b -= K_ * p.splits;
  }
  b = p.split, p.text = max(mine, 0);
  find_text(p, kind, p.text);
  find_part(p, p.text, mine < 0 ? K_ * p.splits : b);
#else
  find_text(p, kind, 0);
  find_part(p, 0, blockIdx.x);
#endif
}
