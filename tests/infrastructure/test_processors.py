"""A process uses the processors that it may use, whatever the machine shows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from coupon_clock.infrastructure import processors
from coupon_clock.infrastructure.processors import usable_processors

SHOWN = 64


@pytest.fixture(autouse=True)
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "allowed", lambda: SHOWN)


def usable(folder: Path, own: str, **files: str) -> int:
    """With these control groups: `own` as in /proc/self/cgroup; a file by its path, with __ for /."""
    (folder / "own").write_text(own)
    for name, content in files.items():
        file = folder / "groups" / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return usable_processors(folder / "groups", folder / "own")


@pytest.mark.parametrize(
    ("limit", "processors"),
    [
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("250000 100000", 3),
        ("max 100000", SHOWN),
        ("", SHOWN),
        ("nonsense", SHOWN),
        ("100000 0", SHOWN),
        ("99999999999 100000", SHOWN),
    ],
)
def test_a_limit_of_its_control_group_counts(tmp_path, limit, processors):
    assert usable(tmp_path, "0::/a/b\n", **{"a__b__cpu.max": limit}) == processors


def test_a_limit_of_a_group_above_counts_too(tmp_path):
    assert usable(tmp_path, "0::/a/b\n", **{"a__b__cpu.max": "400000 100000", "a__cpu.max": "200000 100000"}) == 2


def test_within_a_container_its_group_is_the_root(tmp_path):
    assert usable(tmp_path, "0::/\n", **{"cpu.max": "100000 100000"}) == 1


def test_the_first_version_of_control_groups_is_read_too(tmp_path):
    files = {"cpu__a__cpu.cfs_quota_us": "200000\n", "cpu__a__cpu.cfs_period_us": "100000\n"}
    assert usable(tmp_path, "4:memory:/x\n3:cpu,cpuacct:/a\n", **files) == 2


def test_no_limit_and_no_control_groups_leave_all_that_are_allowed(tmp_path):
    assert usable(tmp_path, "3:cpu,cpuacct:/a\n", **{"cpu__a__cpu.cfs_quota_us": "-1\n"}) == SHOWN
    assert usable_processors(tmp_path / "none", tmp_path / "none") == SHOWN


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_an_affinity_to_one_processor_leaves_one():
    program = (
        "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]); os.cpu_count = lambda: 64\n"
        "from coupon_clock.infrastructure.processors import usable_processors; print(usable_processors())"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"1\n"
