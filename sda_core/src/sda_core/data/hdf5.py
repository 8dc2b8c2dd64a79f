"""Opening one file of a data set; the format is described in ``base.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sda_core.data.base import SCHEMA_VERSION, Problem, StoreInfo, StoreProblemError
from sda_core.data.checksums import attributes_crc32
from sda_core.io.files import unavailable

REGENERATE = "delete the file and run 'sda simulate' with the same configuration and seed again"
#: What h5py raises when it meets damage, depending on where.
DAMAGE = (OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError)


def open_file(path: Path) -> h5py.File:
    """Open a file for reading.

    Raises:
        StoreProblemError: It is missing, cut short, or not HDF5.
    """
    try:
        return h5py.File(path, "r")
    except OSError as error:
        what, mend = unavailable(error) or _why_not_open(path, str(error))
        raise StoreProblemError(Problem(str(path), what, mend)) from error


def _why_not_open(path: Path, message: str) -> tuple[str, str]:
    if not path.exists():
        return "there is no such file", "check the path, or make the data with 'sda simulate'"
    if path.is_dir():
        files = ", ".join(sorted(p.name for p in path.glob("*.h5"))) or "no .h5 file"
        return f"this is a directory (with {files})", "name one of the files in it"
    if "truncated" in message or path.stat().st_size == 0:
        return (
            f"the file is truncated: only {path.stat().st_size} bytes of it are left",
            f"copy it again from where it came, or {REGENERATE}",
        )
    if "signature not found" in message:
        return "this is not an HDF5 file", "name a file made by 'sda simulate'"
    return f"it cannot be opened ({message})", f"check access to the file, or {REGENERATE}"


def read_info(file: h5py.File, path: Path) -> StoreInfo:
    """Read what a file says about itself, and check that ``x`` fits to it.

    Raises:
        StoreProblemError: The file is of another kind or schema version, or is damaged.
    """

    def problem(what: str, mend: str) -> StoreProblemError:
        return StoreProblemError(Problem(str(path), what, mend))

    try:
        attributes = {key: _plain(value) for key, value in file.attrs.items()}
        version = attributes.get("schema_version")
        if version is None or "x" not in file:
            missing = "dataset 'x'" if version is not None else "attribute 'schema_version'"
            raise problem(
                f"the file has no {missing}, so it is not a store of trajectories",
                "name a file made by 'sda simulate'",
            )
        if version != SCHEMA_VERSION:
            action = "upgrade sda-core" if version > SCHEMA_VERSION else "make the data again"
            raise problem(
                f"its schema version is {version}, this sda-core reads version {SCHEMA_VERSION}",
                action,
            )
        info = StoreInfo.from_attributes(attributes, lambda axis: file[axis][()])
        shape = tuple(file["x"].shape)
    except DAMAGE as error:
        raise problem(f"its description is damaged ({error})", REGENERATE) from error
    if attributes.get("attributes_crc32") != attributes_crc32(info.attributes()):
        raise problem("its attributes are not those that were written", REGENERATE)
    if shape != info.shape:
        raise problem(
            f"dataset 'x' has shape {shape}, but the attributes describe {info.shape}", REGENERATE
        )
    return info


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return value.decode() if isinstance(value, bytes) else value
