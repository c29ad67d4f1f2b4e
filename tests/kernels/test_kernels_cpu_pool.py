"""The threads of the CPU kernels: all of the work is done once, and helpers that sleep are woken for it."""

import ctypes
import shutil
import subprocess

import pytest

from jllama.machine.native import packaged

PROGRAM = """
#include "pool.h"
#include <chrono>
#include <thread>
using namespace std::chrono;
extern "C" {
// Whether a helper that has gone to sleep takes one of two items: each waits until the other one has begun.
int woken(double patience) {
  static Pool* pool = new Pool(2);
  std::this_thread::sleep_for(milliseconds(300));
  std::atomic<int> begun{0};
  std::atomic<bool> met{true};
  pool->run(2, 1, [&](int64_t, int64_t) {
    begun++;
    const auto end = steady_clock::now() + duration<double>(patience);
    while (begun < 2 && steady_clock::now() < end) std::this_thread::yield();
    if (begun < 2) met = false;
  });
  return met;
}
// How often each of n items was done, and how often a piece began and ended there, in some rounds.
// A helper keeps its first piece until all others have begun: what else lay in its share goes from the back.
void times(int threads, int64_t n, int64_t grain, int rounds, int* done, int* begun, int* ended) {
  Pool* pool = new Pool(threads);
  const auto caller = std::this_thread::get_id();
  const int64_t pieces = (n + grain - 1) / grain;
  for (int i = 0; i < rounds; i++) {
    std::atomic<int64_t> count{0};
    pool->run(n, grain, [&](int64_t begin, int64_t end) {
      begun[begin]++, ended[end]++, count++;
      const auto last = steady_clock::now() + seconds(5);  // where pieces are fewer
      while (std::this_thread::get_id() != caller && count < pieces && steady_clock::now() < last)
        std::this_thread::yield();
      for (; begin < end; begin++) done[begin]++;
    });
  }
}
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    place = tmp_path_factory.mktemp("pool")
    (place / "pool.cc").write_text(PROGRAM)
    options = ["-std=c++17", "-O2", "-fPIC", "-shared", "-pthread", f"-I{packaged.HERE}"]
    subprocess.run([compiler, *options, "-o", place / "pool.so", place / "pool.cc"], check=True)
    return ctypes.CDLL(str(place / "pool.so"))


def test_helpers_that_sleep_are_woken(library):
    assert library.woken(ctypes.c_double(60.0))


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize(("n", "grain"), [(0, 1), (1, 1), (3, 1), (7, 3), (64, 1), (100, 16), (101, 7)])
def test_each_item_is_done_once_in_pieces_that_no_thread_decides(library, threads, n, grain):
    """From one multiple of the grain to the next, whoever takes it; one thread takes all at once."""
    done, begun, ended = ((ctypes.c_int * (n + 1))() for _ in range(3))
    library.times(threads, ctypes.c_int64(n), ctypes.c_int64(grain), 20, done, begun, ended)
    assert list(done) == [20] * n + [0]
    step = grain if threads > 1 else max(n, 1)
    begins = [*range(0, n, step)]
    ends = [min(begin + step, n) for begin in begins]
    for counts, places in ((begun, begins), (ended, ends)):
        assert {at: count for at, count in enumerate(counts) if count} == dict.fromkeys(places, 20)
