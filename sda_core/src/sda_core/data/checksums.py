"""The checksums in a file of a data set; what each is for is told in ``base.py``."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SEAL = b"SDACRC32"
SEAL_BYTES = len(SEAL) + 4
READ_BYTES = 2**24


def trajectory_crc32(x: np.ndarray) -> int:
    r"""CRC-32 of a trajectory's bytes as little-endian float32; x has shape (L, C, \*S)."""
    return zlib.crc32(np.ascontiguousarray(x, dtype="<f4").data)


def attributes_crc32(attributes: Mapping[str, Any]) -> int:
    """CRC-32 of a root's attributes as JSON with sorted keys."""
    return zlib.crc32(json.dumps(dict(attributes), sort_keys=True).encode())


def seal(path: Path) -> None:
    """Append the seal to a complete file."""
    crc = _crc32(path, path.stat().st_size)
    with open(path, "ab") as file:
        file.write(SEAL + crc.to_bytes(4, "little"))


def is_sealed(path: Path) -> bool:
    """Whether a file ends with a seal that fits to all bytes before it."""
    size = path.stat().st_size - SEAL_BYTES
    if size < 0:
        return False
    with open(path, "rb") as file:
        file.seek(size)
        return file.read() == SEAL + _crc32(path, size).to_bytes(4, "little")


def _crc32(path: Path, size: int) -> int:
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(min(READ_BYTES, size)):
            crc = zlib.crc32(piece, crc)
            size -= len(piece)
    return crc
