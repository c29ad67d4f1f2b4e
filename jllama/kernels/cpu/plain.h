// What of the standard library the parts need. Its own headers, and immintrin.h, take longer to read than many a part
// takes to compile.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>

template <class T>
constexpr T min(T a, T b) { return b < a ? b : a; }
template <class T>
constexpr T max(T a, T b) { return a < b ? b : a; }
template <class T>
static T smallest(const T* p, int64_t n) {
  T found = *p;
  for (int64_t i = 1; i < n; i++) found = min(found, p[i]);
  return found;
}
template <class T>
static T greatest(const T* p, int64_t n) {
  T found = *p;
  for (int64_t i = 1; i < n; i++) found = max(found, p[i]);
  return found;
}
template <class T>
static void fill(T* p, T* end, T value) {
  for (; p < end; p++) *p = value;
}
template <class T>
static void copy(const T* from, int64_t n, T* to) { memmove(to, from, n * sizeof(T)); }
template <class T>
static void swap(T& a, T& b) {
  T c = static_cast<T&&>(a);
  a = static_cast<T&&>(b), b = static_cast<T&&>(c);
}
template <class T, class U>
constexpr bool same = false;
template <class T>
constexpr bool same<T, T> = true;
template <class T, T VALUE>
struct Constant {
  static constexpr T value = VALUE;
  constexpr operator T() const { return VALUE; }
  constexpr T operator()() const { return VALUE; }
};
constexpr float INF = __builtin_inff(), NOT_A_NUMBER = __builtin_nanf("");

// Memory that a thread keeps for itself and that grows: what was in it is lost then, and nothing in it is set.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  ~Buffer() { free(at_); }
  T* of(int64_t n) {  // room for so many
    if (n > room_) {
      free(at_);
      room_ = n + n / 4;  // a text grows by a position a step
      at_ = (T*)aligned_alloc(64, (room_ * sizeof(T) + 63) / 64 * 64);
      if (!at_) abort();
    }
    return at_;
  }

 private:
  T* at_ = nullptr;
  int64_t room_ = 0;
};
