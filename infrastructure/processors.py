"""How many processors this process may use: fewer than the machine shows, in a container or with an affinity."""

import os
from math import ceil
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def usable_processors(cgroups: Path = CGROUPS, own_cgroups: Path = OWN_CGROUPS) -> int:
    """Returns 1 or more. Half a processor counts as one."""
    limits = [allowed(), *map(ceil, quotas(cgroups, own_cgroups))]
    return max(1, min(limits))


def allowed() -> int:
    """By affinity, where the system has such a thing."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quotas(cgroups: Path, own_cgroups: Path) -> list[float]:
    """Of the control groups that this process is in: each counts, up to the root."""
    return [
        quota
        for hierarchy, path in own_groups(own_cgroups)
        for folder in (path, *path.parents)
        if (quota := quota_of(cgroups / hierarchy / folder.relative_to("/"))) is not None
    ]


def own_groups(own_cgroups: Path) -> list[tuple[str, Path]]:
    """Lines of `number:controllers:path`; without controllers, those of version 2."""
    lines = (line.split(":", 2) for line in text(own_cgroups).splitlines())
    return [
        ("cpu" if controllers else "", Path(path))
        for _, controllers, path in lines
        if path.startswith("/") and (not controllers or "cpu" in controllers.split(","))
    ]


def quota_of(folder: Path) -> float | None:
    """Processors: the time that it may use of each period."""
    quota, _, period = text(folder / "cpu.max").strip().partition(" ")
    if not quota:
        quota, period = text(folder / "cpu.cfs_quota_us").strip(), text(folder / "cpu.cfs_period_us").strip()
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None
    return int(quota) / int(period)


def text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""
