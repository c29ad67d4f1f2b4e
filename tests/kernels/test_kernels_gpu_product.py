"""The CUDA kernel of a batch's products against plain JAX: emulated on a CPU, on a GPU with `-m gpu`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.kernels.gpu import launch
from jllama.kernels.gpu import product as products
from jllama.kernels.gpu.plan import weight_format
from jllama.layers.linear import linear
from jllama.layers.mlp import ACTIVATIONS
from jllama.layers.norm import rms_norm
from jllama.layers.qtensor import QTensor, recorded
from jllama.layers.quantization import SCHEMES, Scheme, quantize
from tests.support import emulation
from tests.support.block_files import random_weight
from tests.support.helpers import whole

EPS = 1e-5
STORED = {
    "plain": None,
    "int8": SCHEMES["int8"][0],
    "int4": SCHEMES["int4"][0],
    "int8 groups": Scheme(bits=8, group=32),
    "int4 groups of 128": Scheme(bits=4, group=128),
}
BLOCKS = ("Q4_K", "Q5_K", "Q6_K", "Q4_K Q6_K", "Q5_1", "Q6_K Q8_0")  # GGUF's; several types of a leaf's rows


def product_case(tokens, rows, columns, stored, dtype, seed=0):
    """A weight as it is stored, activations, a norm and a residual."""
    w, x, norm, residual = drawn(tokens, rows, columns, dtype, seed)
    scheme = STORED.get(stored)
    weight = jnp.asarray(w.astype(dtype)) if scheme is None else quantize(w, scheme)
    if scheme is not None and scheme.bits == 8 and scheme.group:  # as in GGUF's Q8_0
        weight = dataclasses.replace(weight, scales=weight.scales.astype(jnp.float16))
    if stored in BLOCKS:
        weight = recorded(random_weight(seed, stored.split(), (rows, columns)))
    return weight, x, norm, residual


def drawn(tokens, rows, columns, dtype, seed):
    """A float32 matrix; activations, the weights of a norm and a residual of `dtype`."""
    generator = np.random.default_rng(seed)
    shapes = (rows, columns), (tokens, columns), (columns,), (tokens, rows)
    w, x, norm, residual = (generator.standard_normal(shape, np.float32) for shape in shapes)
    made = w * columns**-0.5, *(a.astype(dtype) for a in (x * 3, 1 + norm / 4, residual))
    return tuple(map(jnp.asarray, made))


def bias_of(weight):
    """No smaller than what it is added to."""
    return jnp.asarray(np.random.default_rng(9).standard_normal(weight.shape[0]).astype(jnp.bfloat16))


@dataclasses.dataclass(frozen=True)
class More:
    """What not every family has; as `product` takes it."""

    bias: bool = False
    offset: float = 0.0
    by: float = 1.0
    gated: str = "silu"


LLAMA = More()


def exact(weight, x, norm, residual, after, more=LLAMA):
    """What float32 makes of it, the activations rounded as the kernel rounds them."""
    full = whole(weight) if isinstance(weight, QTensor) else weight.astype(jnp.float32)
    x = x if norm is None else rms_norm(norm, x, EPS, more.offset)
    y = linear(full, x.astype(jnp.float32), bias_of(weight).astype(x.dtype) if more.bias else None)
    if after == products.GATED:
        gate, up = jnp.split(y, 2, axis=-1)
        return ACTIVATIONS[more.gated](gate) * up
    return y if after == products.NOTHING else y * more.by + residual.astype(jnp.float32)


def check(ours, wanted, dtype, stored, after):
    """The result is rounded, and weights whose groups have scales are, both halves of gated ones."""
    ours, wanted = np.asarray(ours, np.float64), np.asarray(wanted, np.float64)
    in_groups = stored in BLOCKS or "int4" in stored or "groups" in stored
    roundings = 1 + in_groups * (1 + (after == products.GATED))
    bound = {"bfloat16": 2e-3, "float16": 2.5e-4}[dtype] * roundings**0.5
    assert np.linalg.norm(ours - wanted) < bound * np.linalg.norm(wanted)


# tokens, rows, columns, stored, dtype, with a norm, what follows, multiprocessors, what not every family has
CASES = [
    (3, 71, 256, "plain", "bfloat16", True, products.NOTHING, 4, LLAMA),
    (8, 96, 512, "plain", "float16", False, products.RESIDUAL, 4, LLAMA),
    (11, 72, 320, "plain", "bfloat16", True, products.GATED, 2, LLAMA),
    (2, 130, 512, "int8", "bfloat16", False, products.RESIDUAL, 4, LLAMA),
    (17, 64, 1088, "int8", "float16", True, products.NOTHING, 4, LLAMA),
    (5, 96, 768, "int4", "bfloat16", True, products.GATED, 6, LLAMA),
    (16, 48, 1280, "int4", "float16", False, products.RESIDUAL, 2, LLAMA),
    (4, 64, 640, "int8 groups", "bfloat16", False, products.NOTHING, 4, LLAMA),
    (9, 34, 512, "int4 groups of 128", "bfloat16", True, products.NOTHING, 2, LLAMA),
    (5, 96, 768, "Q4_K", "bfloat16", True, products.GATED, 6, LLAMA),
    (12, 71, 2816, "Q4_K", "float16", False, products.RESIDUAL, 2, LLAMA),
    (3, 48, 1280, "Q6_K", "bfloat16", False, products.RESIDUAL, 4, LLAMA),
    (17, 40, 1536, "Q4_K Q6_K", "bfloat16", True, products.NOTHING, 4, LLAMA),
    (2, 160, 512, "Q5_K", "float16", False, products.NOTHING, 2, LLAMA),
    (2, 64, 512, "Q5_1", "bfloat16", False, products.NOTHING, 2, LLAMA),
    (4, 64, 768, "Q6_K Q8_0", "bfloat16", False, products.NOTHING, 4, LLAMA),
    (3, 71, 256, "plain", "bfloat16", True, products.NOTHING, 4, More(bias=True, offset=1.0)),
    (5, 50, 512, "int8", "bfloat16", False, products.RESIDUAL, 2, More(bias=True, by=0.22)),
    (9, 96, 256, "int4", "float16", True, products.GATED, 4, More(bias=True, gated="gelu_pytorch_tanh")),
    (2, 64, 128, "plain", "float16", True, products.GATED, 2, More(offset=-0.5, gated="gelu")),
    (2, 192, 128, "plain", "bfloat16", False, products.GATED, 2, More(gated="relu")),
]
CASE = ("tokens", "rows", "columns", "stored", "dtype", "normed", "after")


@pytest.mark.parametrize((*CASE, "count", "more"), CASES)
def test_product_emulated(
    monkeypatch, tmp_path, tokens, rows, columns, stored, dtype, normed, after, count, more
):
    if emulation.COMPILER is None:
        pytest.skip("no g++")
    monkeypatch.setattr(launch, "shared_memory", lambda: 232448)
    monkeypatch.setattr(launch, "blocks_at_once", lambda: count)
    weight, x, norm, residual = product_case(tokens, rows, columns, stored, dtype)
    f = weight_format(weight)
    assert products.product_refusal(f, rows, columns) is None
    eps, fp16 = EPS if normed else None, dtype == "float16"
    family = products.family(more.bias, more.offset, more.by, more.gated)
    shape = products.make_shape(tokens, rows, columns, f, after, eps=eps, fp16=fp16, **family)
    kernel = emulation.Emulated(
        tmp_path,
        products.product_source(shape),
        "jllama_product",
        8,
        grid=shape.CL * shape.CLUSTERS,
        threads=32 * shape.WARPS,
        shared=shape.shared,
    )
    values, scales, offsets = (np.array(a) for a in products.weight_parts(weight))
    results = []
    for _ in range(2):
        out = np.full(products.result_shape(shape), np.nan, x.dtype)
        bias = np.array(bias_of(weight).astype(x.dtype))
        kernel([np.array(x), np.array(norm), np.array(residual), bias, values, scales, offsets, out])
        results.append(np.asarray(out, np.float32))
    np.testing.assert_array_equal(*results)
    wanted = exact(weight, x, norm if normed else None, residual, after, more)
    check(results[0], wanted, dtype, stored, after)


def test_wide_and_deep_products_fit(monkeypatch):
    monkeypatch.setattr(launch, "shared_memory", lambda: 232448)
    monkeypatch.setattr(launch, "blocks_at_once", lambda: 132)
    for stored in (*STORED, *BLOCKS):
        f = weight_format(product_case(1, 2, 256, stored, "bfloat16")[0])
        for rows, columns in ((2048, 5632), (4096, 14336), (28672, 4096), (128256, 2048)):
            assert products.product_refusal(f, rows, columns) is None
            for tokens in (2, 8, 9, 16, 17, 32):
                shape = products.make_shape(tokens, rows, columns, f, products.NOTHING)
                assert shape.shared <= 232448
                assert shape.CL * shape.CLUSTERS <= 132


@pytest.mark.gpu
@pytest.mark.parametrize(
    (*CASE, "more"),
    [
        *((*case[:-2], case[-1]) for case in CASES),
        *(
            (tokens, rows, columns, stored, "bfloat16", after != products.RESIDUAL, after, LLAMA)
            for stored in ("plain", "int8", "int4", "Q4_K", "Q6_K")
            for tokens, rows, columns, after in (
                (2, 2560, 2048, products.NOTHING),
                (32, 2048, 5632, products.RESIDUAL),
                (16, 11264, 2048, products.GATED),
                (24, 4096, 14336, products.RESIDUAL),
            )
        ),
    ],
)
def test_product(tokens, rows, columns, stored, dtype, normed, after, more):
    weight, x, norm, residual = product_case(tokens, rows, columns, stored, dtype)
    gated = more.gated if after == products.GATED else None
    run = jax.jit(
        lambda weight, x, norm, residual: products.product(
            weight,
            x,
            norm=norm if normed else None,
            eps=EPS,
            offset=more.offset,
            bias=bias_of(weight).astype(x.dtype) if more.bias else None,
            by=more.by,
            residual=residual if after == products.RESIDUAL else None,
            gated=gated,
        )
    )
    first = np.asarray(run(weight, x, norm, residual), np.float32)
    for _ in range(3):
        np.testing.assert_array_equal(np.asarray(run(weight, x, norm, residual), np.float32), first)
    wanted = exact(weight, x, norm if normed else None, residual, after, more)
    check(first, wanted, dtype, stored, after)
