"""K types and IQ4_NL that `compare_cpu.py` writes: near the numbers, in blocks as llama.cpp's."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GgmlType
from gguf.quants import dequantize

SOURCE = Path(__file__).resolve().parents[2] / "scripts/cpu_comparison/k_types.py"
k_types = SimpleNamespace(**runpy.run_path(str(SOURCE)))


@pytest.mark.parametrize(
    ("kind", "make", "steps"),
    [("Q4_K", k_types.q4_k, 15), ("Q5_K", k_types.q5_k, 31), ("Q6_K", k_types.q6_k, 62)],
)
def test_numbers_are_rounded_to_a_step_of_their_group(kind, make, steps):
    rng = np.random.default_rng(0)
    group = 16 if kind == "Q6_K" else 32
    numbers = rng.standard_normal((20, 1024)).astype(np.float32) * 0.02
    numbers[3] = np.abs(numbers[3])
    numbers[4] = 0
    error = np.abs(dequantize(make(numbers), GgmlType[kind]) - numbers).reshape(20, -1, group).max(-1)
    groups = numbers.reshape(20, -1, group)
    width = 2 * np.abs(groups).max(-1) if kind == "Q6_K" else groups.max(-1) - np.minimum(groups.min(-1), 0)
    # Half a step, and what scales of 6 or 8 bits are too wide and offsets off: some 63rd of the block's most.
    largest = np.abs(numbers).reshape(20, -1, 256).max(-1).repeat(256 // group, axis=-1)
    assert (error <= 0.5 * width / steps + largest / 60).all()
    assert not error[4].any()


def test_numbers_become_the_nearest_of_iq4_nls_levels():
    numbers = np.random.default_rng(0).standard_normal((20, 1024)).astype(np.float32) * 0.02
    numbers[4] = 0
    made = dequantize(k_types.iq4_nl(numbers), GgmlType.IQ4_NL)
    unit = np.float16(np.abs(numbers).reshape(20, -1, 32).max(-1) / 127).astype(np.float32).repeat(32, -1)
    levels = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
    nearest = np.abs(numbers[..., None] - unit[..., None] * levels).min(-1)
    np.testing.assert_allclose(np.abs(made - numbers), nearest, atol=1e-6)
    assert not made[4].any()


@pytest.mark.parametrize(
    ("layers", "more"),
    [
        (1, [0]),
        (8, [0, 3, 6, 7]),
        (16, [0, 1, 4, 7, 10, 13, 14, 15]),
        (32, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]),
        (30, [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]),
    ],
)
def test_layers_of_the_ends_and_every_third_between_get_more_bits(layers, more):
    kinds = [
        k_types.type_of("Q4_K_M", f"blk.{layer}.attn_v.weight", (256, 512), layers) for layer in range(layers)
    ]
    assert [layer for layer, kind in enumerate(kinds) if kind == "Q6_K"] == more


def test_which_matrices_get_more_bits():
    kinds = [k_types.type_of("Q4_K_M", f"blk.{layer}.ffn_down.weight", (256, 512), 22) for layer in range(22)]
    assert [layer for layer, kind in enumerate(kinds) if kind == "Q6_K"] == [
        0,
        1,
        4,
        7,
        10,
        13,
        16,
        19,
        20,
        21,
    ]
    assert set(kinds) == {"Q4_K", "Q6_K"}
    assert k_types.type_of("Q4_K_M", "blk.0.ffn_up.weight", (256, 512), 22) == "Q4_K"
    assert k_types.type_of("Q4_K_M", "token_embd.weight", (256, 512), 22) == "Q6_K"
    assert k_types.type_of("Q4_K_M", "blk.0.attn_q.weight", (256, 576), 22) == "Q5_0"
    assert k_types.type_of("Q4_K_M", "blk.0.attn_v.weight", (256, 576), 22) == "Q8_0"


def test_other_kinds_have_their_own_types():
    of = k_types.type_of
    assert [of("Q5_K_M", "blk.0.ffn_up.weight", (256, columns), 22) for columns in (512, 576)] == [
        "Q5_K",
        "Q5_1",
    ]
    assert of("Q5_K_M", "blk.0.attn_v.weight", (256, 512), 22) == "Q6_K"
    assert [of("Q6_K", "blk.0.ffn_up.weight", (256, columns), 22) for columns in (512, 576)] == [
        "Q6_K",
        "Q8_0",
    ]
