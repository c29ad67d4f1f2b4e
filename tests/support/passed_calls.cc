// Calls of the CPU kernels from one processor to another, for `aarch64.py`: compiled for this one it is a library that
// passes them on, compiled for the other one a program that does them. Both have 64 bits and the low byte first.
#include <pthread.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "xla/ffi/api/c_api.h"

enum Function : int64_t { FORWARD, PRODUCT, ZEROS, COPY_ROW, THREADS, TILES, PAIRS };
struct Sizes {  // how a call begins; then come the numbers, the operands, the results
  int64_t function, numbers, args, rets;
};
static int in = 0, out = 1;

static bool take(void* p, int64_t n) {
  for (ssize_t some; n; p = (char*)p + some, n -= some)
    if ((some = read(in, p, n)) <= 0) return false;
  return true;
}
static bool give(const void* p, int64_t n) {
  for (ssize_t some; n; p = (const char*)p + some, n -= some)
    if ((some = write(out, p, n)) <= 0) return false;
  return true;
}
static int64_t bytes(const XLA_FFI_Buffer& b) {
  int64_t n = 1;
  for (int64_t d = 0; d < b.rank; d++) n *= b.dims[d];
  switch (b.dtype) {
    case XLA_FFI_DataType_S8: case XLA_FFI_DataType_U8: return n;
    case XLA_FFI_DataType_F16: case XLA_FFI_DataType_BF16: return 2 * n;
    case XLA_FFI_DataType_S32: case XLA_FFI_DataType_F32: return 4 * n;
    default: abort();  // no kernel takes another one
  }
}

#if !defined(__aarch64__)
static pthread_mutex_t one_call = PTHREAD_MUTEX_INITIALIZER;

static bool give(const XLA_FFI_Buffer& b) {
  const int64_t begin[] = {b.dtype, b.rank};
  return give(begin, sizeof begin) && give(b.dims, b.rank * 8) && give(b.data, bytes(b));
}
static bool give_all(void** buffers, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (!give(*(XLA_FFI_Buffer*)buffers[i])) return false;
  return true;
}
// Results travel both ways: of a cache, what a call leaves as it is.
static bool called(Function function, XLA_FFI_CallFrame* call) {
  auto* numbers = (XLA_FFI_Array*)call->attrs.attrs[0];
  const XLA_FFI_Args& args = call->args;
  const XLA_FFI_Rets& rets = call->rets;
  const Sizes sizes{function, (int64_t)numbers->size, args.size, rets.size};
  if (!give(&sizes, sizeof sizes) || !give(numbers->data, numbers->size * 8)) return false;
  if (!give_all(args.args, args.size) || !give_all(rets.rets, rets.size)) return false;
  int64_t done;
  if (!take(&done, sizeof done)) return false;
  for (int64_t i = 0; i < rets.size; i++) {
    auto* b = (XLA_FFI_Buffer*)rets.rets[i];
    if (!take(b->data, bytes(*b))) return false;
  }
  return true;
}
static XLA_FFI_Error* passed(Function function, XLA_FFI_CallFrame* call) {
  auto* e = call->extension_start;
  if (e && e->type == XLA_FFI_Extension_Metadata) {
    auto& version = ((XLA_FFI_Metadata_Extension*)e)->metadata->api_version;
    version.major_version = XLA_FFI_API_MAJOR, version.minor_version = XLA_FFI_API_MINOR;
    return nullptr;
  }
  pthread_mutex_lock(&one_call);
  const bool done = called(function, call);
  pthread_mutex_unlock(&one_call);
  if (done) return nullptr;
  XLA_FFI_Error_Create_Args error{};
  error.struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE;
  error.message = "the emulated processor's program has ended";
  error.errc = XLA_FFI_Error_Code_INTERNAL;
  return call->api->XLA_FFI_Error_Create(&error);
}
static int64_t asked(Function function, int64_t number) {
  const Sizes sizes{function, 1, 0, 0};
  int64_t answer;
  if (!give(&sizes, sizeof sizes) || !give(&number, 8) || !take(&answer, 8)) abort();
  return answer;
}
extern "C" {
void jllama_connect(int from, int to) { in = from, out = to; }
XLA_FFI_Error* jllama_forward(XLA_FFI_CallFrame* call) { return passed(FORWARD, call); }
XLA_FFI_Error* jllama_product(XLA_FFI_CallFrame* call) { return passed(PRODUCT, call); }
XLA_FFI_Error* jllama_zeros(XLA_FFI_CallFrame* call) { return passed(ZEROS, call); }
XLA_FFI_Error* jllama_copy_row(XLA_FFI_CallFrame* call) { return passed(COPY_ROW, call); }
void jllama_threads(int n) { asked(THREADS, n); }
int jllama_tiles() { return asked(TILES, 0); }
int jllama_pairs() { return asked(PAIRS, 0); }
}
#else
extern "C" {
XLA_FFI_Error *jllama_forward(XLA_FFI_CallFrame*), *jllama_product(XLA_FFI_CallFrame*);
XLA_FFI_Error *jllama_zeros(XLA_FFI_CallFrame*), *jllama_copy_row(XLA_FFI_CallFrame*);
void jllama_threads(int), jllama_part(int, void*);
int jllama_tiles(), jllama_pairs();
#define DECLARED(part) void part();
JLLAMA_PARTS(DECLARED)
}

struct Operand : XLA_FFI_Buffer {
  std::vector<int64_t> places;
  bool taken() {
    int64_t begin[2];
    if (!take(begin, sizeof begin)) return false;
    dtype = XLA_FFI_DataType(begin[0]), rank = begin[1];
    places.resize(rank), dims = places.data();
    if (!take(dims, rank * 8)) return false;
    data = aligned_alloc(64, bytes(*this) / 64 * 64 + 64);  // as XLA's are
    return data && take(data, bytes(*this));
  }
};
static XLA_FFI_Error* done(int64_t function, XLA_FFI_CallFrame* call) {
  XLA_FFI_Error* (*const functions[])(XLA_FFI_CallFrame*) = {jllama_forward, jllama_product, jllama_zeros,
                                                            jllama_copy_row};
  return functions[function](call);
}
static bool call_taken(const Sizes& sizes, int64_t* numbers) {
  std::vector<Operand> operands(sizes.args + sizes.rets);
  std::vector<void*> places;
  for (Operand& o : operands) {
    if (!o.taken()) return false;
    places.push_back(&o);
  }
  XLA_FFI_Array list{XLA_FFI_DataType_S64, (size_t)sizes.numbers, numbers};
  void* attributes[] = {&list};
  XLA_FFI_CallFrame call{};
  call.args.size = sizes.args, call.args.args = places.data();
  call.rets.size = sizes.rets, call.rets.rets = places.data() + sizes.args;
  call.attrs.size = 1, call.attrs.attrs = attributes;
  const int64_t good = 1;
  if (done(sizes.function, &call) || !give(&good, 8)) return false;
  for (int64_t i = 0; i < (int64_t)operands.size(); i++) {
    if (i >= sizes.args && !give(operands[i].data, bytes(operands[i]))) return false;
    free(operands[i].data);
  }
  return true;
}
static int64_t answer(int64_t function, int64_t number) {
  if (function == THREADS) return jllama_threads(number), 0;
  return function == TILES ? jllama_tiles() : jllama_pairs();
}
int main() {
  const uint64_t flush = 1 << 24;  // subnormal numbers are 0, as for XLA's threads
  asm volatile("msr fpcr, %0" ::"r"(flush));
  int count = 0;
#define PLACED(part) jllama_part(count++, (void*)part);
  JLLAMA_PARTS(PLACED)
  for (Sizes sizes; take(&sizes, sizeof sizes);) {
    std::vector<int64_t> numbers(sizes.numbers);
    if (!take(numbers.data(), sizes.numbers * 8)) return 1;
    if (sizes.function < THREADS) {
      if (!call_taken(sizes, numbers.data())) return 1;
      continue;
    }
    const int64_t said = answer(sizes.function, numbers[0]);
    if (!give(&said, 8)) return 1;
  }
  return 0;
}
#endif
