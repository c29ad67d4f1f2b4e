"""Peak memory of reading a part: `python -m tests.support.loading_memory MODEL DEVICES [QUANTIZE]`."""

import json
import math
import sys

import jax

from jllama import sharding
from jllama.checkpoint import load_params, read_config
from jllama.checkpoint.layout import parts
from jllama.hub.references import resolve
from tests.support.peak_memory import peak_bytes

MIB = 2**20


def measured(model: str, devices: int, quantize: str = "none") -> dict[str, float]:
    """MiB beyond an idle JAX, and what the bound is made of."""
    jax.config.update("jax_num_cpu_devices", devices)
    files = resolve(model)
    config, mesh = read_config(files), sharding.mesh_of(devices)
    own = sharding.own_devices(mesh)
    sharding.own_devices = lambda mesh: {0: own[0]}  # as a process of several has it
    sharding.joined = lambda path, whole, made, mesh: made[0]
    before = peak_bytes()
    params = load_params(files, config, "bfloat16", progress=False, mesh=mesh, quantize=quantize)
    jax.block_until_ready(params)
    shard = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    largest = 2 * max(math.prod(part.shape) for part in parts(config).values())
    return dict(taken=(peak_bytes() - before) / MIB, shard=shard / MIB, largest_tensor=largest / MIB)


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])))
