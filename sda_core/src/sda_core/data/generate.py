"""Making a data set: simulate block by block, keep what is done, put the files in place."""

from __future__ import annotations

import math
import os
import platform
import warnings
from collections.abc import Generator, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import h5py
import numpy as np
import torch

import sda_core
from sda_core.cluster import Cluster, Local
from sda_core.config import at_least, component, option
from sda_core.data.base import RESERVED_NAMES, SPLITS, Recipe, size_text, split_path
from sda_core.data.hdf5 import open_file, read_info
from sda_core.data.parts import Parts
from sda_core.data.preview import Preview, measure_seconds
from sda_core.data.standardization import Moments
from sda_core.data.writer import SplitWriter
from sda_core.errors import (
    ConfigError,
    DataError,
    ShapeError,
    SimulationError,
    SimulationWarning,
)
from sda_core.io.files import disk_usage, sync
from sda_core.io.progress import ProgressOption, announce, is_shown, reporting
from sda_core.system import System, SystemSpec, simulate_block
from sda_core.threads import one_thread


@component
class DataConfig:
    """How much data to make, and how.

    Attributes:
        trajectories: Number of trajectories in all splits together.
        length: Number of states in each.
        burn_in: Number of steps simulated before them and thrown away.
        fractions: Shares of train, valid and test; they add up to 1.
        workers: Number of processes; the numbers do not depend on it.

    Raises:
        ConfigError: A value is out of range.
    """

    trajectories: int = option(default=1024, check=at_least(1))
    length: int = option(default=1024, check=at_least(1))
    burn_in: int = option(default=1024, check=at_least(0))
    fractions: tuple[float, float, float] = option(default=(0.8, 0.1, 0.1), check=at_least(0))
    workers: int = option(default=1, check=at_least(1))

    def __attrs_post_init__(self) -> None:
        if len(self.fractions) != 3 or not math.isclose(math.fsum(self.fractions), 1, abs_tol=1e-9):
            raise ConfigError(
                f"fractions are the shares of train, valid and test: give three numbers that add "
                f"up to 1, not {list(self.fractions)}, which add up to {math.fsum(self.fractions)}"
            )

    @property
    def split_sizes(self) -> dict[str, int]:
        """Number of trajectories in each split: the bounds between splits are rounded down."""
        # The tiny number keeps sums such as 0.7 + 0.1 from falling below their exact value.
        shares = (math.fsum(self.fractions[: i + 1]) for i in range(2))
        bounds = [0, *(int(s * self.trajectories + 1e-9) for s in shares), self.trajectories]
        return {split: bounds[i + 1] - bounds[i] for i, split in enumerate(SPLITS)}


def generate(
    system: System,
    path: str | Path,
    config: DataConfig,
    seed: int,
    *,
    system_config: Mapping[str, Any],
    versions: Mapping[str, str] | None = None,
    progress: ProgressOption = None,
    cluster: Cluster | None = None,
) -> Path:
    """Make a data set, or what is missing of it.

    Blocks that are done are kept in ``path/.parts``, and an interrupted generation resumes from
    there. The files get their names when all are complete. Peak memory is one block, or, where
    blocks are simulated by other processes, one here and two in each of these, also while a
    trajectory that left the range of finite numbers is drawn again, which a
    :class:`~sda_core.errors.SimulationWarning` tells. Where progress is shown, the size of the data
    is told beforehand, and about how long it takes.

    Args:
        system: The system to simulate. With more than one worker it is pickled, and a script that
            calls this function does so under ``if __name__ == "__main__":``.
        path: Directory of the data set.
        config: How much to make.
        seed: Seed of the data set, 0 or greater.
        system_config: The system's full configuration, of JSON values.
        versions: Versions to record besides those of sda-core, torch, numpy, h5py and Python, by
            name of the distribution.
        progress: What to show, see :data:`~sda_core.io.progress.ProgressOption`.
        cluster: Where blocks are simulated, ``config.workers`` at once; None for this process, or,
            with more than one worker, processes of this machine. Only this process needs to see
            the directory.

    Returns:
        The directory.

    Raises:
        ClusterError: The cluster cannot be reached, or lost a block for good; what is done is kept.
        ConfigError: The configuration does not allow a data set.
        DataError: The directory holds something else, or the disk is too small.
        SimulationError: States are not finite, however often they are drawn.
    """
    parts = _parts(system, path, config, seed, system_config)
    check_space(parts.directory, config, system.spec)
    recipe = parts.recipe
    if _is_finished(parts.directory, recipe) and not parts.folder.exists():
        return parts.directory
    with parts.locked():
        if not _is_finished(parts.directory, recipe):
            created_by = _created_by(versions)
            parts.claim(created_by)
            missing = [block for block in recipe.blocks if not _is_whole(parts, block)]
            _announce(system, parts, missing, config.workers, progress)
            _simulate(system, parts, missing, cluster, config.workers, progress)
            _merge(parts, system.spec, created_by)
        parts.remove()
    return parts.directory


def preview(
    system: System,
    path: str | Path,
    config: DataConfig,
    seed: int,
    *,
    system_config: Mapping[str, Any],
    versions: Mapping[str, str] | None = None,
) -> Preview:
    """Say what :func:`generate` would take with the same arguments, and write nothing.

    Args:
        system: The system; a few steps of one block are simulated to measure the time.
        path: Directory of the data set.
        config: How much to make.
        seed: Seed of the data set.
        system_config: The system's full configuration, of JSON values.
        versions: Versions to record.

    Returns:
        Size and time of what is missing.

    Raises:
        ConfigError: The configuration does not allow a data set.
        DataError: The directory holds something else.
    """
    parts = _parts(system, path, config, seed, system_config)
    done = parts.done()
    if done:
        parts.claim(_created_by(versions))  # only checks, where there are parts
    blocks = len(parts.recipe.blocks)
    missing = 0 if _is_finished(parts.directory, parts.recipe) else blocks - len(done)
    plan = Preview.of(parts.recipe, system.spec, missing, config.workers)
    return _with_time(plan, system, parts.recipe)


def check_recipe(
    system: System,
    path: str | Path,
    config: DataConfig,
    seed: int,
    system_config: Mapping[str, Any],
) -> None:
    """Refuse a data set that was not made by what is asked for.

    Args:
        system: The system.
        path: Directory of the data set.
        config: How much was to be made.
        seed: Seed of the data set.
        system_config: The system's full configuration.

    Raises:
        DataError: A file is of another data set, or of another split.
    """
    parts = _parts(system, path, config, seed, system_config)
    _is_finished(parts.directory, parts.recipe)


def _parts(
    system: System,
    path: str | Path,
    config: DataConfig,
    seed: int,
    system_config: Mapping[str, Any],
) -> Parts:
    recipe = Recipe(
        system=dict(system_config),
        seed=seed,
        length=config.length,
        burn_in=config.burn_in,
        split_sizes=config.split_sizes,
        block_size=system.block_size,
    )
    _check_spec(system.spec, recipe)
    return Parts(Path(path), recipe)


def _created_by(versions: Mapping[str, str] | None) -> dict[str, str]:
    return {
        "sda-core": sda_core.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "python": platform.python_version(),
        **(versions or {}),
    }


def _announce(
    system: System, parts: Parts, missing: list[int], workers: int, progress: ProgressOption
) -> None:
    """Say what is to come; stop if the disk is too small."""
    plan = Preview.of(parts.recipe, system.spec, len(missing), workers)
    announce(progress, plan.size_line)
    _check_disk(parts, missing, system.spec)
    if is_shown(progress):
        plan = _with_time(plan, system, parts.recipe)
        if plan.seconds is not None:
            announce(progress, plan.time_line)


def _with_time(plan: Preview, system: System, recipe: Recipe) -> Preview:
    with torch.no_grad(), one_thread():
        seconds = measure_seconds(system, recipe.burn_in + recipe.length, plan.rounds)
    return attrs.evolve(plan, seconds=seconds)


def _check_spec(spec: SystemSpec, recipe: Recipe) -> None:
    names = [axis.name for axis in spec.axes]
    wrong = [n for n in names if n in RESERVED_NAMES or "/" in n or names.count(n) > 1]
    if wrong:
        raise ConfigError(
            f"the grid axes {names} cannot be stored: names must differ from each other and from "
            f"{', '.join(RESERVED_NAMES)}, and have no '/'. Rename {wrong} in the system's spec, "
            "for example to 'grid_x'"
        )
    if (spec.mean is None or spec.std is None) and not recipe.split_sizes["train"]:
        raise ConfigError(
            "the system's spec has no mean and std, so they are taken from the training split, "
            "which is empty: make data.fractions[0] greater, or give mean and std in the spec"
        )


def _is_finished(directory: Path, recipe: Recipe) -> bool:
    """Whether all files are in place; DataError if there are files of something else."""
    found = []
    for split in SPLITS:
        path = split_path(directory, split)
        if not path.exists():
            continue
        with open_file(path) as file:
            info = read_info(file, path)
        if info.split != split:
            raise DataError(
                f"{path} has the trajectories of the split {info.split!r}, so that {split!r} would "
                "not be independent of it. To mend: put the file back where it was, or simulate in "
                "another directory."
            )
        if info.data_id != recipe.data_id:
            raise DataError(
                f"{path} is of another data set and is not overwritten. It differs from the one "
                f"asked for in {', '.join(info.recipe.differences(recipe))}. To mend: choose "
                "another directory, or delete the file if it is not needed."
            )
        found.append(split)
    return tuple(found) == recipe.splits


def _is_whole(parts: Parts, block: int) -> bool:
    if not parts.path(block).exists():
        return False
    try:
        parts.load(block)
    except DataError:
        parts.path(block).unlink()  # made anew, so nobody has to do it by hand
        return False
    return True


def check_space(path: Path, config: DataConfig, spec: SystemSpec) -> None:
    """Refuse a data set that is larger than the disk, before anything is looked at.

    Raises:
        DataError: It can never fit.
    """
    needed = 4 * config.trajectories * config.length * math.prod(spec.state_shape)
    total = disk_usage(path).total  # a part of it may be there already
    if needed > total:
        raise DataError(
            f"data.trajectories = {config.trajectories} of data.length = {config.length} states "
            f"take {size_text(needed)}, and the disk of {path} has {size_text(total)}: make fewer "
            "or shorter trajectories"
        )


def _check_disk(parts: Parts, missing: list[int], spec: SystemSpec) -> None:
    recipe = parts.recipe
    trajectories = recipe.total + sum(len(recipe.block_rows(block)) for block in missing)
    needed = 4 * trajectories * recipe.length * math.prod(spec.state_shape)
    available = disk_usage(parts.folder).free
    if needed > available:
        raise DataError(
            f"making the data set in {parts.directory} takes {size_text(needed)} of disk (parts, "
            f"and the files made of them), but only {size_text(available)} are free. To mend: free "
            "some space, choose another directory, or make fewer or shorter trajectories."
        )


def make_block(system: System, recipe: Recipe, block: int) -> tuple[np.ndarray, list[str]]:
    r"""Simulate a block, in any process.

    Args:
        system: The system to simulate.
        recipe: What the block is a part of.
        block: Number of the block.

    Returns:
        Its trajectories, (n, L, C, \*S), float32, and a message for each time that trajectories
        were drawn again.

    Raises:
        ShapeError: The system's states do not have the shape that its spec promises.
        SimulationError: States are not finite, however often they are drawn.
    """
    redraws: list[str] = []
    with torch.no_grad(), one_thread():
        states = simulate_block(
            system, recipe.seed, block, recipe.length, recipe.burn_in, redraws.append
        )
    expected = (recipe.block_size, recipe.length, *system.spec.state_shape)
    if tuple(states.shape) != expected:
        raise ShapeError(
            f"{type(system).__name__} returned trajectories of shape {tuple(states.shape)}, but "
            f"by its spec and block_size they have {expected} (block_size, L, C, *S)"
        )
    rows = recipe.block_rows(block)
    x = states[: len(rows)].to("cpu", torch.float32)
    finite = x.isfinite().flatten(1).all(1)
    if not finite.all():
        bad = [row for row, good in zip(rows, finite.tolist(), strict=True) if not good]
        raise SimulationError(
            f"seed {recipe.seed}, trajectories {bad}: {type(system).__name__} has states too large "
            "for float32, in which data are stored. Choose other units for its variables."
        )
    return x.numpy(), redraws


def _simulate(
    system: System,
    parts: Parts,
    missing: list[int],
    cluster: Cluster | None,
    workers: int,
    progress: ProgressOption,
) -> None:
    total = len(parts.recipe.blocks)
    done = total - len(missing)
    make = partial(make_block, system, parts.recipe)
    if cluster is None and min(workers, len(missing)) > 1:
        cluster = Local()
    blocks: Generator[tuple[int, tuple[np.ndarray, list[str]]], None, None] = (
        ((i, make(block)) for i, block in enumerate(missing))
        if cluster is None
        else cluster.map(make, missing, workers=workers)
    )
    with closing(blocks), reporting(progress, "simulating", total, done) as report:
        for i, (x, redraws) in blocks:
            parts.save(missing[i], x)
            del x  # before the next one comes
            for message in redraws:  # here, because those of worker processes get lost
                warnings.warn(message, SimulationWarning, stacklevel=3)
            done += 1
            report(done)


def _merge(parts: Parts, spec: SystemSpec, created_by: dict[str, str]) -> None:
    """Write the parts into one file per split, and give the files their names at the end."""
    recipe = parts.recipe
    final = {split: split_path(parts.directory, split) for split in recipe.splits}
    temporary = {split: path.with_suffix(".h5.tmp") for split, path in final.items()}
    with ExitStack() as stack:
        writers = {}
        for split, path in temporary.items():
            stack.callback(path.unlink, missing_ok=True)
            writers[split] = SplitWriter(path, recipe, split, spec)
            stack.callback(writers[split].close)
        for block in recipe.blocks:
            x, first = parts.load(block), recipe.block_rows(block).start
            for split, writer in writers.items():
                rows = recipe.rows(split)
                a, b = max(first, rows.start), min(first + len(x), rows.stop)
                if a < b:
                    writer.write(a, x[a - first : b - first])
        train = writers.get("train")
        moments = Moments(len(spec.variables)) if train is None else train.moments
        full_spec, source = _with_statistics(spec, moments)
        for writer in writers.values():
            writer.finish(full_spec, source, created_by)
        for split in recipe.splits:
            os.replace(temporary[split], final[split])
    sync(parts.directory)


def _with_statistics(spec: SystemSpec, moments: Moments) -> tuple[SystemSpec, str]:
    if spec.mean is not None and spec.std is not None:
        return spec, "system"
    constant = [v for v, std in zip(spec.variable_names, moments.std, strict=True) if std == 0]
    if constant:
        raise DataError(
            f"the variables {constant} are constant over the training split, so they have no std "
            "to standardize by. To mend: give mean and std in the system's spec, or leave these "
            "variables out."
        )
    return attrs.evolve(spec, mean=moments.mean, std=moments.std), "train"
