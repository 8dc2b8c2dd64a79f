"""What is in a data set, as told by its files, without reading the trajectories."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from sda_core.data.base import SPLITS, Problem, StoreInfo, StoreProblemError, size_text, split_path
from sda_core.data.hdf5 import open_file, read_info
from sda_core.data.parts import Parts, read_manifest
from sda_core.errors import DataError

RESUME = "run 'sda simulate' with the same configuration and seed: it resumes where it stopped"
SOURCES = {"system": "the system's spec", "train": "the training split"}


@attrs.frozen
class FileReport:
    """One file: its path, size in bytes and, where it can be read, what it says about itself."""

    file: str
    size: int
    info: StoreInfo | None

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        plain: dict[str, Any] = {"file": self.file, "size": self.size}
        if self.info is not None:
            plain |= self.info.attributes() | {
                "shape": list(self.info.shape),
                "system": self.info.system,
                "split_sizes": self.info.recipe.split_sizes,
                "variables": [attrs.asdict(v) for v in self.info.spec.variables],
                "axes": {a.name: a.values.tolist() for a in self.info.spec.axes},
                "created_by": self.info.created_by,
            }
        return plain


@attrs.frozen
class StoreReport:
    """What is in a file, or in the directory of a data set; ``str`` gives it as text.

    Attributes:
        path: What was looked at.
        files: The files found, in the order train, valid, test.
        problems: Files that cannot be opened, and generations that did not finish.
    """

    path: str
    files: tuple[FileReport, ...]
    problems: tuple[Problem, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "path": self.path,
            "files": [file.as_dict() for file in self.files],
            "problems": [attrs.asdict(problem) for problem in self.problems],
        }

    def __str__(self) -> str:
        lines = [self.path]
        described = set()
        for file in self.files:
            size = size_text(file.size)
            if file.info is None:
                lines.append(f"  {Path(file.file).name:10} {size}, cannot be read")
                continue
            shape = " x ".join(map(str, file.info.shape))
            lines.append(f"  {Path(file.file).name:10} {shape} (N, L, C, *S), {size}")
            if file.info.data_id not in described:
                described.add(file.info.data_id)
                lines += [f"    {key:10} {text}" for key, text in _description(file.info)]
        return "\n".join([*lines, *(f"  problem: {problem}" for problem in self.problems)])


def _description(info: StoreInfo) -> Iterator[tuple[str, str]]:
    spec, recipe = info.spec, info.recipe
    yield "data_id", info.data_id
    yield "system", ", ".join(f"{key} = {value}" for key, value in info.system.items())
    yield "seed", str(info.seed)
    yield "time", f"{recipe.length} steps of {spec.time_step:g} [{spec.time_units}]"
    yield "burn-in", f"{recipe.burn_in} steps"
    for axis in spec.axes:
        first, last = axis.values[0], axis.values[-1]
        yield "axis", f"{axis.name} [{axis.units}]: {len(axis.values)} points, {first} to {last}"
    for v, mean, std in zip(spec.variables, spec.mean or (), spec.std or (), strict=True):
        yield "variable", f"{v.name} [{v.units}]: mean {mean:.6g}, std {std:.6g}"
    yield "statistics", f"from {SOURCES[info.standardization_source]}"
    yield "made by", ", ".join(f"{name} {version}" for name, version in info.created_by.items())


def find_files(path: Path) -> list[Path]:
    """The files of a data set's directory, in the order of the splits, or the file itself."""
    if not path.is_dir():
        return [path]
    return [file for split in SPLITS if (file := split_path(path, split)).exists()]


def directory_problems(directory: Path) -> Iterator[Problem]:
    """What is wrong in a directory whatever its files say: unfinished, or nothing there."""
    files = find_files(directory)
    folder = Parts.folder_in(directory)
    leftovers = sorted(file.name for file in directory.glob("*.h5.tmp"))
    if folder.exists():
        yield Problem(str(folder), *_unfinished(directory))
    elif leftovers:
        names = ", ".join(leftovers)
        yield Problem(str(directory), f"there are half-written files: {names}", "delete them")
    elif not files:
        yield Problem(
            str(directory),
            f"there is no data set here ({', '.join(s + '.h5' for s in SPLITS)})",
            "check the path, or make the data with 'sda simulate'",
        )


def _unfinished(directory: Path) -> tuple[str, str]:
    folder = Parts.folder_in(directory)
    try:
        recipe, _ = read_manifest(folder)
    except DataError:
        return (
            "leftovers of a generation, without the manifest that says of what",
            f"delete {folder}",
        )
    done, total = len(Parts(directory, recipe).done()), len(recipe.blocks)
    return f"an unfinished generation: {done} of {total} blocks are done", RESUME


def inspect(path: str | Path) -> StoreReport:
    """Say what is in a file, or in the directory of a data set.

    Args:
        path: The file or directory.

    Returns:
        The report; files that cannot be opened are among its problems.
    """
    path = Path(path)
    problems = list(directory_problems(path)) if path.is_dir() else []
    files = []
    for file in find_files(path):
        info = None
        try:
            with open_file(file) as handle:
                info = read_info(handle, file)
        except StoreProblemError as error:
            problems.append(error.problem)
        if file.exists():
            files.append(FileReport(str(file), file.stat().st_size, info))
    return StoreReport(str(path), tuple(files), tuple(problems))
