"""How much memory can be had."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def available_memory(device: torch.device | str = "cpu") -> int:
    """Memory of a device, in bytes, that can be had without swapping.

    All there is where that is unknown.
    """
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return min(_free_in_system(), *_free_in_groups())


def _free_in_groups(
    groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """What the control groups of this process leave it, as containers and batch systems set it."""
    free = []
    try:
        lines = groups.read_text().splitlines()
        group = next(Path(line[3:]) for line in lines if line.startswith("0::"))
    except (OSError, StopIteration):
        return [sys.maxsize]
    for folder in (group, *group.parents):
        here = root / folder.relative_to("/")
        with suppress(OSError, KeyError, ValueError):  # no file, or "max"
            limit, used = (int((here / f"memory.{n}").read_text()) for n in ("max", "current"))
            kinds = dict(line.split() for line in (here / "memory.stat").read_text().splitlines())
            # Cached files count as used, and are given up when memory is wanted.
            free.append(max(0, limit - used + int(kinds["file"])))
    return [sys.maxsize, *free]


def _free_in_system() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            table = dict(line.split(":") for line in file)
        return int(table["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
