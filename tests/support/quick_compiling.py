"""How XLA compiles for the tests: quickly what runs once, and as for users where a test says so."""

import os
import subprocess
import sys
from typing import Any

# Two thirds of the time would go into making programs fast that run once. In one piece, not in 32 for as many
# cores: a fifth less of a small program's time.
_EMITTERS = "xla_cpu_use_fusion_emitters"  # up to jax 0.10
_FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
    f"--{_EMITTERS}=false",
)

# On a GPU XLA would time several programs of every product, next to the other processes' tests.
# Without that, cuBLAS's first choice runs.
GPU_FLAGS = "--xla_gpu_autotune_level=0"


def flags() -> str:
    """For `XLA_FLAGS`: those that this XLA knows."""
    known = _FLAGS if _knows(*_FLAGS) else [flag for flag in _FLAGS if _knows(flag)]
    return " ".join(known)


def as_for_users() -> dict[str, Any]:
    """`compiler_options` that undo them."""
    emitters = {_EMITTERS: True} if _EMITTERS in os.environ.get("XLA_FLAGS", "") else {}
    return {"xla_backend_optimization_level": 3, **emitters}


def _knows(*flags: str) -> bool:
    """One that it does not know ends the process."""
    program = [sys.executable, "-c", "import jax; jax.numpy.zeros(1)"]
    environment = os.environ | {"XLA_FLAGS": " ".join(flags)}
    return not subprocess.run(program, env=environment, capture_output=True).returncode
