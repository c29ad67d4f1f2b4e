"""The emulation of the CUDA kernels: a kernel that crashes or hangs fails a test, and what it lacks shows."""

import numpy as np
import pytest

from tests.support import emulation

SOURCE = """
#define FP16 0
// What the kernels share
static void faulty(int* mode, int* out, int* none) {
  if (*mode == 1) *none = 1;
  if (*mode == 2) abort();
  while (*mode == 3) pause_fiber();
  if (*mode == 4 && threadIdx.x == 5) __syncwarp();
  const int sum = __shfl_xor_sync(~0u, threadIdx.x, 1);
  __syncthreads();
  out[threadIdx.x] += sum;
}
static void racing(int* syncs, int* out) {
  int* const shared = (int*)smem;
  shared[threadIdx.x] = threadIdx.x;
  if (*syncs) __syncthreads();
  out[threadIdx.x] = shared[max(threadIdx.x - 32, 0)];
}
"""


def test_a_crash_or_a_hang_is_an_error_with_the_kernels_name(tmp_path, monkeypatch):
    if emulation.COMPILER is None:
        pytest.skip("no g++")
    kernel = emulation.Emulated(tmp_path, SOURCE, "faulty", 3, grid=1, threads=64, shared=16)
    mode, out = np.array([0], np.int32), np.full(64, 100, np.int32)
    kernel([mode, out, None])
    np.testing.assert_array_equal(out, 100 + (np.arange(64) ^ 1))
    waits = "SIGABRT: all threads wait for each other"
    for mode[0], how in ((1, "SIGSEGV"), (2, "SIGABRT"), (4, waits)):
        with pytest.raises(AssertionError, match=f"faulty ended with {how}"):
            kernel([mode, out, None])
    mode[0] = 3
    monkeypatch.setattr(emulation, "SECONDS", 0.1)
    with pytest.raises(AssertionError, match="faulty does not end"):
        kernel([mode, out, None])


def test_a_missing_barrier_shows_in_one_of_two_runs(tmp_path):
    """Threads that read what earlier ones wrote find it as long as those run first."""
    if emulation.COMPILER is None:
        pytest.skip("no g++")
    kernel = emulation.Emulated(tmp_path, SOURCE, "racing", 2, grid=1, threads=64, shared=256)
    wanted = np.maximum(np.arange(64) - 32, 0)
    for syncs, right in ((1, [True, True]), (0, [False, True])):
        outs = [np.zeros(64, np.int32) for _ in right]
        for out in outs:
            kernel([np.array([syncs], np.int32), out])
        assert sorted(np.array_equal(out, wanted) for out in outs) == right
