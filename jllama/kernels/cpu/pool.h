// The threads that share the work.
#pragma once
#include <pthread.h>

#include <atomic>

#include "plain.h"

// A lock of the system's. <mutex> and <thread> take a quarter of a second to read.
class Lock {
 public:
  explicit Lock(pthread_mutex_t* mutex) : mutex_(mutex) { pthread_mutex_lock(mutex); }
  Lock(const Lock&) = delete;
  ~Lock() { pthread_mutex_unlock(mutex_); }

 private:
  pthread_mutex_t* mutex_;
};

// A pool of threads. Each has a share of a phase's items and takes it from the front, so that it reads
// memory in one long run; who is done takes from the back of the others' shares. The caller can finish alone:
// a helper that the system does not run delays nothing but the few items it holds.
class Pool {
 public:
  explicit Pool(int threads) : threads_(threads), shares_(new Share[threads]), helpers_(new Helper[threads]) {
    for (int i = 1; i < threads; i++) {
      helpers_[i] = {this, i};
      pthread_t thread;
      if (pthread_create(&thread, nullptr, Helper::run, &helpers_[i]) == 0) pthread_detach(thread);
    }
  }
  Pool(const Pool&) = delete;  // never destroyed: helpers outlive all
  int threads() const { return threads_; }
  template <class Work>
  void run(int64_t n, int64_t grain, const Work& work) {  // work(begin, end) for pieces of 0..n-1
    share_out(n, grain, [](const void* w, int64_t begin, int64_t end) { (*(const Work*)w)(begin, end); }, &work);
  }
  // What the next product will read: n items of `bytes` each. Threads without work fetch the front of their
  // shares of it into their caches, so that memory is not idle between products. Mixed old and new numbers
  // do no harm: a wrong address is not fetched.
  void expect(const void* from, int64_t n, int64_t grain, int64_t bytes) {
    next_from_.store((const char*)from, std::memory_order_relaxed);
    next_n_ = n, next_grain_ = grain, next_bytes_ = bytes;
  }

 private:
  using Call = void(const void* work, int64_t begin, int64_t end);
  struct alignas(64) Share {
    std::atomic<uint64_t> range{0};  // begin | end
  };
  struct Helper {
    Pool* pool;
    int number;
    static void* run(void* self) {
      const Helper& helper = *(Helper*)self;
      helper.pool->help(helper.number);
      return nullptr;
    }
  };
  static uint64_t packed(int64_t begin, int64_t end) { return uint64_t(begin) << 32 | uint64_t(end); }
  int64_t share(int64_t n, int64_t grain, int64_t t) const {
    return t == threads() ? n : n * t / threads() / grain * grain;
  }
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  struct Look {
    static constexpr int64_t AHEAD = 256 << 10, STEP = 1 << 10;
    const char* from = nullptr;
    int64_t at = 0;
    void ahead(Pool& p, int self) {  // fetches some lines of what comes next, else pauses
      const char* now = p.next_from_.load(std::memory_order_relaxed);
      if (now != from) from = now, at = 0;
      if (!from || at >= AHEAD) return pause();
      const char* line = from + p.share(p.next_n_, p.next_grain_, self) * p.next_bytes_ + at;
      for (int64_t i = 0; i < STEP; i += 64) __builtin_prefetch(line + i, 0, 2);
      at += STEP;
    }
  };
  void share_out(int64_t n, int64_t grain, Call* call, const void* work) {
    if (n <= grain || threads() == 1) {
      if (n) call(work, 0, n);
      return;
    }
    call_ = call, work_ = work, grain_ = grain;
    left_.store(n);
    for (int t = 0; t < threads(); t++)
      shares_[t].range.store(packed(share(n, grain, t), share(n, grain, t + 1)));
    phase_.fetch_add(1);
    if (sleepers_.load()) {
      Lock lock(&mutex_);
      pthread_cond_broadcast(&wake_);
    }
    take(0);
    for (Look look; left_.load();) look.ahead(*this, 0);
  }
  void take(int self) {  // who draws items knows that their phase still runs: it ends when all are done
    for (int i = 0; i < threads(); i++) {
      auto& range = shares_[(self + i) % threads()].range;
      for (uint64_t r = range.load();;) {
        const int64_t begin = r >> 32, end = uint32_t(r), grain = grain_.load();
        if (begin >= end) break;
        // Pieces begin at multiples of the grain from either end: who takes them changes no sum's order.
        const int64_t from = i ? max(begin, (end - 1) / grain * grain) : begin,
                      to = i ? end : min(begin + grain, end);
        if (!range.compare_exchange_weak(r, i ? packed(begin, from) : packed(to, end))) continue;
        call_(work_, from, to);
        left_.fetch_sub(to - from);
        r = range.load();
      }
    }
  }
  void help(int self) {
    Look look;
    for (uint64_t seen = 0;;) {
      for (int spins = 0; phase_.load(std::memory_order_acquire) == seen;) {
        if (++spins < 4000) {
          look.ahead(*this, self);
          continue;
        }
        Lock lock(&mutex_);
        sleepers_.fetch_add(1);
        while (phase_.load() == seen) pthread_cond_wait(&wake_, &mutex_);
        sleepers_.fetch_sub(1);
      }
      seen = phase_.load();
      take(self);
    }
  }
  const int threads_;
  Share* const shares_;
  Helper* const helpers_;
  std::atomic<uint64_t> phase_{0};
  std::atomic<int64_t> left_{0}, grain_{1};
  std::atomic<int> sleepers_{0};
  Call* call_ = nullptr;
  const void* work_ = nullptr;
  std::atomic<const char*> next_from_{nullptr};
  std::atomic<int64_t> next_n_{0}, next_grain_{1}, next_bytes_{0};
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake_ = PTHREAD_COND_INITIALIZER;
};
