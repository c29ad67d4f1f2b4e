// The threads that share the work.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// A pool of threads. A phase is n chunks of work that any thread may take; the caller takes them too and
// can finish alone, so a helper that the system does not run delays nothing but the chunk it holds.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; i++) std::thread([this] { help(); }).detach();
    helpers_ = threads - 1;
  }
  int threads() const { return helpers_ + 1; }
  template <class Work>
  void run(int64_t n, const Work& work) {  // work(chunk) for chunk in 0..n-1
    if (n <= 1 || !helpers_) {
      for (int64_t i = 0; i < n; i++) work(i);
      return;
    }
    call_ = [](const void* w, int64_t i) { (*(const Work*)w)(i); };
    work_ = &work;
    done_.store(0);
    uint64_t phase = ((state_.load() >> 40) + 1) << 40 | uint64_t(n) << 20;
    state_.store(phase);
    if (sleepers_.load()) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    take();
    while (done_.load() != n) pause();
  }

 private:
  static constexpr uint64_t MASK = (1 << 20) - 1;
  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  void take() {  // state: phase number | chunks | next chunk. Who draws a chunk knows the phase still runs.
    for (;;) {
      uint64_t s = state_.fetch_add(1), i = s & MASK;
      if (i >= ((s >> 20) & MASK)) return;
      call_(work_, int64_t(i));
      done_.fetch_add(1);
    }
  }
  void help() {
    for (uint64_t seen = 0;;) {
      int spins = 0;
      while (state_.load(std::memory_order_acquire) >> 40 == seen) {
        if (++spins < 4000) {
          pause();
          continue;
        }
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, [&] { return state_.load() >> 40 != seen; });
        sleepers_.fetch_sub(1);
      }
      seen = state_.load() >> 40;
      take();
    }
  }
  int helpers_;
  std::atomic<uint64_t> state_{0};
  std::atomic<int64_t> done_{0};
  std::atomic<int> sleepers_{0};
  void (*call_)(const void*, int64_t) = nullptr;
  const void* work_ = nullptr;
  std::mutex mutex_;
  std::condition_variable wake_;
};
