"""How much memory a training has."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch


def memory_in_use(device: torch.device) -> int:
    """Bytes in use now: of a GPU by tensors, else by this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not on Linux
        return peak_memory(device)
    return pages * resource.getpagesize()


def peak_memory(device: torch.device) -> int:
    """Most bytes that were in use at any time, likewise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
