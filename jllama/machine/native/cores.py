"""How many cores this process may use: those of its affinity mask, as far as its control groups let it."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

GROUPS, MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cores() -> int:
    """From 1 on. A container that may use 1.5 cores has 2, as in Go and Java."""
    usable = getattr(os, "sched_getaffinity", None)
    count = len(usable(0)) if usable else os.cpu_count() or 1
    return max(1, math.ceil(min(count, _quota())))


def _quota() -> float:
    """Cores that the kernel shares out to this process's groups; infinite without a limit."""
    try:
        lines = GROUPS.read_text("utf-8").splitlines()
    except (OSError, ValueError):  # no Linux, or hidden
        return math.inf
    found = (limit for line in lines if line.count(":") >= 2 for limit in _limits(*line.split(":", 2)[1:]))
    return min(found, default=math.inf)


def _limits(controllers: str, group: str) -> Iterator[float]:
    """Of a group and those that it is in: each may have a limit of its own."""
    names = controllers.split(",")
    if controllers and "cpu" not in names:
        return
    root = (
        MOUNTED / controllers if controllers else MOUNTED
    )  # version 1 has a tree for each set of controllers
    place = root / group.strip("/")
    for directory in (place, *place.parents):
        yield _limit(directory)
        if directory == root:
            return


def _limit(directory: Path) -> float:
    """`cpu.max` of version 2, `cpu.cfs_quota_us` of version 1: microseconds of a period."""
    try:
        if (own := directory / "cpu.max").exists():
            quota, period = own.read_text("utf-8").split()
        else:
            files = (directory / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
            quota, period = (file.read_text("utf-8") for file in files)
        share = int(quota) / int(period)  # "max" in version 2, -1 in version 1: no limit
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
    return share if share > 0 else math.inf
