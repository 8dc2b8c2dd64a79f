"""Whether a data set is whole: every byte of it, and that its files belong together."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import h5py
import numpy as np

from sda_core.data.base import SPLITS, Problem, StoreInfo, StoreProblemError
from sda_core.data.checksums import is_sealed, trajectory_crc32
from sda_core.data.hdf5 import DAMAGE, REGENERATE, open_file, read_info
from sda_core.data.report import directory_problems, find_files
from sda_core.data.standardization import Moments

REPLACE = "put back the right file, or delete the odd one and run 'sda simulate' again"


@attrs.frozen
class VerifyReport:
    """Whether a file, or a data set's directory, is whole; ``str`` gives it as text.

    Attributes:
        path: What was checked.
        files: The files that were read.
        problems: What is wrong, and how to mend it; empty if all is well.
    """

    path: str
    files: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return attrs.asdict(self) | {"ok": self.ok}

    def __str__(self) -> str:
        if self.ok:
            return f"{self.path}: whole ({len(self.files)} files read)"
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        return f"{self.path}: {len(self.problems)} problems\n{lines}"


def verify(path: str | Path) -> VerifyReport:
    """Check a file, or a data set's directory, by reading all of it, a trajectory at a time.

    Args:
        path: The file or directory.

    Returns:
        The report: truncated and damaged files with the rows concerned, rows or files that changed
        places, files that do not belong together, missing files, unfinished generations, states
        that are not finite, statistics that are not those of the data.
    """
    path = Path(path)
    files = find_files(path)
    problems = list(directory_problems(path)) if path.is_dir() else []
    infos: dict[Path, StoreInfo] = {}
    for file in files:
        try:
            with open_file(file) as handle:
                infos[file] = info = read_info(handle, file)
                found = list(_file(handle, file, info))
        except StoreProblemError as error:
            problems.append(error.problem)
            continue
        if not found and not is_sealed(file):
            found = [("it was changed after it was written, or its end is cut off", REGENERATE)]
        problems += (Problem(str(file), what, mend) for what, mend in found)
    if path.is_dir():
        problems += _together(path, infos)
    return VerifyReport(str(path), tuple(map(str, files)), tuple(problems))


Found = tuple[str, str]  #: What is wrong, and how to mend it.


def _file(file: h5py.File, path: Path, info: StoreInfo) -> Iterator[Found]:
    if path.stem in SPLITS and path.stem != info.split:
        yield (
            f"it holds the split '{info.split}', but is called {path.name}",
            f"rename it to {info.split}.h5, and see whether the files were swapped",
        )
    for name in file:
        if name not in ("x", "crc32"):
            try:
                file[name][()]
            except DAMAGE as error:
                yield f"the coordinate '{name}' cannot be read ({error})", REGENERATE
    try:
        crc = file["crc32"][()]
    except DAMAGE as error:
        yield f"its list of checksums cannot be read ({error})", REGENERATE
    else:
        yield from _rows(file["x"], crc, info)


def _rows(x: h5py.Dataset, crc: np.ndarray, info: StoreInfo) -> Iterator[Found]:
    unreadable: list[str] = []
    changed: dict[int, int] = {}
    infinite: list[int] = []
    moments = Moments(len(info.spec.variables))
    for row in range(len(x)):
        try:
            states = x[row]
        except DAMAGE:
            unreadable.append(f"{row} ({_unreadable_steps(x, row)})")
            continue
        actual = trajectory_crc32(states)
        if actual != crc[row]:
            changed[row] = actual
        if not np.isfinite(states).all():
            infinite.append(row)
        moments.update(states)
    if unreadable:
        yield f"the checksum of HDF5 fails in rows {_some(unreadable)} of x", REGENERATE
    moved = {row: np.flatnonzero(crc == actual).tolist() for row, actual in changed.items()}
    exchanged = [f"{row} (was {source[0]})" for row, source in moved.items() if source]
    if exchanged:
        yield f"rows of x changed places: {_some(exchanged)}", REGENERATE
    if other := [row for row, source in moved.items() if not source]:
        yield f"rows {_some(other)} of x are not what was written", REGENERATE
    if infinite:
        yield f"rows {_some(infinite)} of x have values that are not finite", REGENERATE
    if not (unreadable or infinite):
        yield from _statistics(moments, info)


def _unreadable_steps(x: h5py.Dataset, row: int) -> str:
    bad = []
    for first in range(0, x.shape[1], x.chunks[1]):
        last = min(first + x.chunks[1], x.shape[1])
        try:
            x[row, first:last]
        except DAMAGE:
            bad.append(f"steps {first} to {last - 1}")
    return _some(bad)


def _some(items: Sequence[object], most: int = 10) -> str:
    text = ", ".join(map(str, items[:most]))
    return text if len(items) <= most else f"{text} and {len(items) - most} more"


def _statistics(moments: Moments, info: StoreInfo) -> Iterator[Found]:
    claims = [
        ("measured mean", info.measured_mean, moments.mean),
        ("measured std", info.measured_std, moments.std),
    ]
    if info.split == info.standardization_source:
        claims += [("mean", info.spec.mean, moments.mean), ("std", info.spec.std, moments.std)]
    if moments.extremes is not None:
        least, greatest = moments.extremes
        claims += [("measured minimum", info.measured_minimum, least)]
        claims += [("measured maximum", info.measured_maximum, greatest)]
    for name, stored, actual in claims:
        if stored is None:  # in an older file
            continue
        # Relative to the std: a mean near zero has no relative accuracy of its own.
        error = np.abs(np.subtract(stored, actual))
        if not (error <= 1e-6 * np.array(moments.std)).all():
            yield (
                f"the stored {name} {list(stored)} is not that of the data, {list(actual)}",
                REGENERATE,
            )


def _together(directory: Path, infos: dict[Path, StoreInfo]) -> Iterator[Problem]:
    """Whether the files of a directory are one data set, and all of it."""
    if not infos:
        return
    usual = Counter(info.data_id for info in infos.values()).most_common(1)[0][0]
    first = next(info for info in infos.values() if info.data_id == usual)
    for file, info in infos.items():
        if info.data_id != usual:
            differences = ", ".join(first.recipe.differences(info.recipe, ("there", "here")))
            yield Problem(
                str(file),
                f"it is of another data set than the other files: {differences}",
                REPLACE,
            )
        elif (info.spec.mean, info.spec.std) != (first.spec.mean, first.spec.std):
            yield Problem(str(file), "its mean and std are not those of the other files", REPLACE)
    present = {file.stem for file in find_files(directory)}
    for split in first.recipe.splits:
        if split not in present:
            yield Problem(
                str(directory),
                f"{split}.h5 with {first.recipe.split_sizes[split]} trajectories is missing",
                "put it back, or run 'sda simulate' with the same configuration and seed again",
            )
    yield from _shared_trajectories(infos)


def _shared_trajectories(infos: dict[Path, StoreInfo]) -> Iterator[Problem]:
    """Trajectories that are in two files: then a test is not independent of the training."""
    for (other, earlier), (file, info) in itertools.combinations(infos.items(), 2):
        if attrs.evolve(info.recipe, split_sizes=earlier.recipe.split_sizes) != earlier.recipe:
            continue  # other seeds or systems: the numbers are the same, the trajectories are not
        a, b = (i.recipe.rows(i.split) for i in (info, earlier))
        shared = range(max(a.start, b.start), min(a.stop, b.stop))
        if shared:
            yield Problem(
                str(file),
                f"trajectories {shared[0]} to {shared[-1]} are in {other.name} as well",
                REPLACE,
            )
