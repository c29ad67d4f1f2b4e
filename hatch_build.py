"""Puts compiled CPU kernels into a wheel, for machines without a compiler.

`JLLAMA_WHEEL_KERNELS=all hatchling build -t wheel`, where jllama's dependencies are installed; or names of
`jllama/machine/native/packaged.py`, with commas.
"""

import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface):
    """Compiles them where `JLLAMA_WHEEL_KERNELS` says so; any other wheel runs anywhere."""

    scratch = ""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        wanted = os.environ.get("JLLAMA_WHEEL_KERNELS", "")
        if version == "editable" or not wanted:
            return
        sys.path.insert(0, self.root)
        from jllama.machine.native import compiling

        self.scratch = tempfile.mkdtemp(prefix="jllama-wheel-")
        names = () if wanted == "all" else wanted.split(",")
        for library in compiling.packages(Path(self.scratch), names):
            build_data["force_include"][str(library)] = f"jllama/kernels/cpu/built/{library.name}"
        system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data |= {"pure_python": False, "tag": f"py3-none-{system}"}

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.scratch:
            shutil.rmtree(self.scratch)
