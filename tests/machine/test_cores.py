"""The cores that a process may use, of a machine whose files a test writes."""

import os

import pytest

from jllama.machine.native import cores

V2, V1 = "0::/app\n", "9:name=systemd:/app\n4:cpu,cpuacct:/app\n2:cpuset:/app\n0::/\n"


def of_version_1(tree, quota, period):
    group = f"{tree}/app/cpu.cfs_"
    return {f"{group}quota_us": f"{quota}\n", f"{group}period_us": f"{period}\n"}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Sixteen cores; writes the groups of this process and their files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(cores, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cores, "MOUNTED", tmp_path / "fs")

    def write(groups, files):
        (tmp_path / "cgroup").write_text(groups)
        for name, text in files.items():
            (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "fs" / name).write_text(text)

    return write


@pytest.mark.parametrize(
    ("groups", "files", "count"),
    [
        (V2, {}, 16),
        (V2, {"app/cpu.max": "max 100000\n"}, 16),
        (V2, {"app/cpu.max": "400000 100000\n"}, 4),
        (V2, {"app/cpu.max": "150000 100000\n"}, 2),
        (V2, {"app/cpu.max": "10000 100000\n"}, 1),
        (V2, {"app/cpu.max": "3200000 100000\n"}, 16),
        (V2, {"app/cpu.max": "max 100000\n", "cpu.max": "200000 100000\n"}, 2),
        ("0::/a/b/c\n", {"a/cpu.max": "300000 100000\n", "a/b/c/cpu.max": "500000 100000\n"}, 3),
        ("0::/elsewhere\n", {"cpu.max": "200000 100000\n"}, 2),  # a container's own tree
        (V1, of_version_1("cpu,cpuacct", "-1", "100000"), 16),
        (V1, of_version_1("cpu,cpuacct", "250000", "50000"), 5),
        (V1, of_version_1("cpuset", "100000", "100000"), 16),
        (V2, {"app/cpu.max": "odd\n"}, 16),
        (V2, {"app/cpu.max": "1000 0\n"}, 16),
        ("odd\n", {"cpu.max": "200000 100000\n"}, 16),
    ],
)
def test_a_quota_counts_as_cores(machine, groups, files, count):
    machine(groups, files)
    assert cores.cores() == count


def test_the_mask_counts_where_nothing_else_is_said(machine, monkeypatch):
    assert cores.cores() == 16  # there is no file
    machine(V2, {"app/cpu.max": "800000 100000\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert cores.cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores.cores() == 1
