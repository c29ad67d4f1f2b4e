"""Products of 17 to 32 tokens (`stream.cu`), emulated as in `test_kernels_gpu_peers.py`."""

import jax.numpy as jnp
import numpy as np
import pytest

from jllama.kernels.gpu import peers, stream
from tests.kernels.test_kernels_gpu import four_blocks as four_blocks
from tests.kernels.test_kernels_gpu_peers import small_boxes as small_boxes
from tests.support import emulation


def drawn(tokens, rows, columns, seed=0):
    random = np.random.default_rng(seed)
    w = (random.normal(size=(rows, columns)) * columns**-0.5).astype(jnp.bfloat16)
    return w, random.normal(size=(tokens, columns)).astype(jnp.bfloat16), random


def emulated(directory, shape):
    return emulation.Emulated(
        directory, stream.stream_source(shape), "jllama_stream", 6 + (shape.GPUS > 1),
        grid=shape.blocks, threads=32 * shape.WARPS, shared=shape.shared, gpus=shape.GPUS,
    )  # fmt: skip


PLAIN = {
    "two blocks a tile": stream.Shape(19, 96, 1536, MT=3, BIAS=1, STAGES=4),
    "one": stream.Shape(32, 64, 768, MT=1, CL=1),
    "one, many warps": stream.Shape(32, 64, 2048, MT=2, CL=1, WARPS=16),
    "deep": stream.Shape(32, 96, 2048, MT=3, STAGES=5),
    "four": stream.Shape(18, 256, 512, MT=4, CL=4, WARPS=4, STAGES=2),
}


@pytest.mark.parametrize("shape", PLAIN.values(), ids=PLAIN)
def test_products_emulated(tmp_path, shape):
    w, x, random = drawn(shape.TOKENS, shape.ROWS, shape.COLUMNS)
    bias = random.normal(size=shape.ROWS).astype(jnp.bfloat16)
    out = np.full((shape.TOKENS, shape.ROWS), np.nan, jnp.bfloat16)
    emulated(tmp_path, shape)([w, w, x, w, bias, out])
    exact = x.astype(np.float32) @ w.astype(np.float32).T + bias.astype(np.float32) * shape.BIAS
    np.testing.assert_allclose(out.astype(np.float32), exact, rtol=2**-8, atol=2e-3)


@pytest.mark.parametrize(("gpus", "columns", "way"), [(3, 1024, {}), (2, 512, dict(CL=1, WARPS=16))])
@pytest.mark.usefixtures("small_boxes")
def test_sums_that_a_product_sends_emulated(tmp_path, gpus, columns, way):
    """Turn after turn, each GPU gets the others' sums and adds them in one order."""
    shape = stream.Shape(17, 64, columns, MT=1, GPUS=gpus, **way)
    norm_shape = stream.NormShape(gpus, shape.ROWS, "1e-5f", BIAS=1)
    product = emulated(tmp_path, shape)
    norm = emulation.Emulated(
        tmp_path, stream.norm_source(norm_shape), "jllama_take_norm", 9,
        grid=shape.TOKENS, threads=stream.NORM_SIZE, shared=64, gpus=gpus,
    )  # fmt: skip
    boxes = [np.zeros(peers.places(gpus)["BOX_END"], np.uint64) for _ in range(gpus)]
    addresses, ranks = np.zeros(gpus, np.int64), [np.array([r], np.int32) for r in range(gpus)]
    size = (shape.TOKENS, shape.ROWS)
    for seed in range(3):
        given = [drawn(*size, shape.COLUMNS, seed * gpus + r) for r in range(gpus)]
        parts, turns = np.zeros((gpus, *size), jnp.bfloat16), np.zeros((gpus, 1), np.uint32)
        calls = [[addresses, ranks[r], x, w, w, parts[r], turns[r]] for r, (w, x, _) in enumerate(given)]
        product([a for one in calls for a in one], [(addresses, boxes)])
        for (w, x, _), part in zip(given, parts, strict=True):
            exact = x.astype(np.float32) @ w.astype(np.float32).T
            np.testing.assert_allclose(part.astype(np.float32), exact, rtol=2**-8, atol=2e-3)
        np.testing.assert_array_equal(turns, seed + 1)
        random = given[0][2]
        residual, weight, bias = (
            random.normal(size=s).astype(jnp.bfloat16) for s in (size, *[shape.ROWS] * 2)
        )
        out, normed = np.zeros((2, gpus, *size), jnp.bfloat16)
        calls = [
            [addresses, ranks[r], turns[r], parts[r], residual, weight, bias, out[r], normed[r]]
            for r in range(gpus)
        ]
        norm([a for one in calls for a in one], [(addresses, boxes)])
        total = np.zeros(size, np.float32)
        for part in parts:
            total = total + part.astype(np.float32)
        added = (total + bias.astype(np.float32)) + residual.astype(np.float32)
        np.testing.assert_array_equal(out, [added.astype(jnp.bfloat16)] * gpus)
        np.testing.assert_array_equal(normed, [normed[0]] * gpus)
