// ---- other GPUs ----------------------------------------------------------------------------------------

#if GPUS > 1
static_assert(TEXTS == 1, "words for one text's rows");
__device__ __forceinline__ int rank() { return __ldg(ptr<const int>(T_RANK)); }
__device__ __forceinline__ u64* mailbox(int gpu) { return (u64*)__ldg(ptr<const u64>(T_PEERS) + gpu); }
__device__ __forceinline__ u32* epoch_counter() { return (u32*)(mailbox(rank()) + BOX_EPOCH); }  // the same for all models
__device__ __forceinline__ void send(int place, float v, u32 tag) {
#pragma unroll 1
  for (int gpu = 0; gpu < GPUS; gpu++)
    if (gpu != rank()) put_far(mailbox(gpu) + place, __float_as_uint(v), tag);
}
// The sum of all GPUs' parts of a row, the same bits on each of them. Every thread of an output has v, its first one the sum.
__device__ __forceinline__ float summed(int box, int row, bool valid, float v, u32 tag) {
  if (!valid || threadIdx.x % TPO) return v;
  const int self = rank();
  send(box + self * MAX_ROW + row, v, tag);
  const u64* from = mailbox(self) + box + row;
  float sum = 0;
#pragma unroll 1
  for (int gpu = 0; gpu < GPUS; gpu++) sum += gpu == self ? v : take_far(from + gpu * MAX_ROW, tag);
  return sum;
}
// Each GPU has its part of the logits, unless all have the whole head: it sends them to all others and takes theirs.
__device__ __forceinline__ int first_logit() { return V < VOCABULARY ? rank() * V : 0; }
__device__ __forceinline__ void send_logit(int at, float v, u32 tag) {
  if (V < VOCABULARY) send(BOX_LOGITS + at, v, tag);
}
__device__ __forceinline__ void take_logits(float* logits, u32 tag) {
  if (V == VOCABULARY) return;
  const int before = rank() * V;
  const u64* from = mailbox(rank()) + BOX_LOGITS;
  for (int i = blockIdx.x * NT + threadIdx.x; i < (GPUS - 1) * V; i += NCTA * NT) {
    const int at = i < before ? i : i + V;
    logits[at] = take_far(from + at, tag);
  }
}
#else
__device__ __forceinline__ u32* epoch_counter() { return &g_epoch; }
__device__ __forceinline__ float summed(int, int, bool, float v, u32) { return v; }
__device__ __forceinline__ int first_logit() { return 0; }
__device__ __forceinline__ void send_logit(int, float, u32) {}
__device__ __forceinline__ void take_logits(float*, u32) {}
#endif

