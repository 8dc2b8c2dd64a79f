r"""Data sets of trajectories: what they consist of, and how they are stored (schema version 1).

A data set is a directory with one file per split, ``train.h5``, ``valid.h5`` and ``test.h5`` (a
split without trajectories has no file). Trajectories are numbered through the splits in this
order: train holds 0 to N_train - 1, valid the next N_valid, test the rest. Each file holds

    ==============  ===================  ======================================================
    dataset         shape                content
    ==============  ===================  ======================================================
    ``x``           (N, L, C, \*S)       states in physical units, float32
    ``trajectory``  (N,)                 number of the trajectory in the data set, int64
    ``time``        (L,)                 time since the first stored state, float64
    ``variable``    (C,)                 names of the variables
    grid axes       (S_1,), ...          coordinates, under the axes' own names
    ``crc32``       (N,)                 CRC-32 of each trajectory's little-endian bytes
    ==============  ===================  ======================================================

All but ``x`` and ``crc32`` are the dimension scales of ``x``, so ``xarray.open_dataset`` opens a
file as it is. ``x`` is stored in chunks of at most 1 MiB that belong to one trajectory, each with
a Fletcher-32 checksum that HDF5 checks whenever it reads the chunk.

The root's attributes are a :class:`StoreInfo`: the :class:`Recipe` (all that the numbers depend
on, and its hash ``data_id``, the same in the files of a data set), the split, the variables with
their units, the time step, the statistics ``mean`` and ``std`` that map states to model space,
those of this split's own states (``measured_mean`` and so on; older files are without them), and
the versions of the software. ``attributes_crc32`` guards them whenever a file is opened.
The file ends with a seal of 12 bytes behind the end of the HDF5 data: ``SDACRC32`` and the
little-endian CRC-32 of all bytes before.

Text is of fixed length, so that it lies where HDF5 has checksums. (Strings of variable length lie
in a heap without any, and HDF5 can hang when it is damaged.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from sda_core.config import differences
from sda_core.errors import ConfigError, DataError
from sda_core.system import Axis, SystemSpec, Variable

SCHEMA_VERSION = 1
SPLITS = ("train", "valid", "test")
#: Names in a file that a grid axis cannot have.
RESERVED_NAMES = ("x", "trajectory", "time", "variable", "crc32")


_MEASURED = ("measured_mean", "measured_std", "measured_minimum", "measured_maximum")


@attrs.frozen
class Problem:
    """Something wrong with a file: what it is, and how to mend it."""

    file: str
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}. To mend: {self.mend}."


class StoreProblemError(DataError):
    """A file cannot be used, for the reason given by its ``problem``."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(config)))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the system's configuration is stored with the data as JSON, but {error}: give "
            "numbers, strings, lists and tables only"
        ) from error
    return plain


def _axis_attributes(axis: Axis) -> dict[str, Any]:
    period = {} if axis.period is None else {"period": axis.period}
    return {"name": axis.name, "units": axis.units, **period}


def _non_negative(_: Any, attribute: attrs.Attribute[int], value: int) -> None:
    if not 0 <= value < 2**63:
        raise ConfigError(f"{attribute.name} must be between 0 and 2**63 - 1, got {value}")


@attrs.frozen(kw_only=True)
class Recipe:
    """All that the numbers in a data set depend on.

    Attributes:
        system: The system's full configuration, as plain JSON values.
        seed: Seed of the data set.
        length: Number L of states per trajectory.
        burn_in: Number of steps simulated before them and thrown away.
        split_sizes: Number of trajectories in train, valid and test.
        block_size: Number of trajectories that are simulated together.
        schema_version: Version of the store's format.

    Raises:
        ConfigError: The configuration is not made of JSON values, or the seed is out of range.
    """

    system: dict[str, Any] = attrs.field(converter=_plain)
    seed: int = attrs.field(validator=_non_negative)
    length: int
    burn_in: int
    split_sizes: dict[str, int]
    block_size: int
    schema_version: int = SCHEMA_VERSION

    @property
    def data_id(self) -> str:
        """A hash of the recipe, 32 hexadecimal digits."""
        text = json.dumps(attrs.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def total(self) -> int:
        """Number of trajectories in all splits."""
        return sum(self.split_sizes.values())

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have trajectories, hence a file."""
        return tuple(split for split in SPLITS if self.split_sizes[split])

    def rows(self, split: str) -> range:
        """Numbers of the trajectories in a split."""
        first = sum(self.split_sizes[s] for s in SPLITS[: SPLITS.index(split)])
        return range(first, first + self.split_sizes[split])

    @property
    def blocks(self) -> range:
        """Numbers of the blocks the data set is simulated in."""
        return range(-(-self.total // self.block_size))

    def block_rows(self, block: int) -> range:
        """Numbers of the trajectories in a block; the last block may be cut short."""
        first = block * self.block_size
        return range(first, min(first + self.block_size, self.total))

    def differences(
        self, other: Recipe, words: tuple[str, str] = ("there", "asked for")
    ) -> list[str]:
        """The keys in which ``other`` differs, as "key (value there, value asked for)".

        Args:
            other: Another recipe.
            words: What to call this recipe and the other one.
        """
        return differences(attrs.asdict(self), attrs.asdict(other), words)


@attrs.frozen(kw_only=True, eq=False)
class StoreInfo:
    """What a file says about itself.

    Attributes:
        recipe: All that the numbers depend on: system, seed, length, burn-in, sizes.
        split: The split in this file.
        spec: What the states are, with ``mean`` and ``std`` filled in.
        standardization_source: Where these come from: "system" or "train" (the training split).
        measured_mean: Mean of each variable over this split's own states; None in older files.
        measured_std: Their standard deviation, likewise.
        measured_minimum: Their least value, likewise.
        measured_maximum: Their greatest value, likewise.
        created_by: Versions of the software that made the data.
    """

    recipe: Recipe
    split: str
    spec: SystemSpec
    standardization_source: str
    created_by: dict[str, str]
    measured_mean: tuple[float, ...] | None = None
    measured_std: tuple[float, ...] | None = None
    measured_minimum: tuple[float, ...] | None = None
    measured_maximum: tuple[float, ...] | None = None

    @property
    def data_id(self) -> str:
        """Hash of the recipe; the files of one data set share it."""
        return self.recipe.data_id

    @property
    def system(self) -> dict[str, Any]:
        """The system's full configuration."""
        return self.recipe.system

    @property
    def seed(self) -> int:
        """Seed of the data set."""
        return self.recipe.seed

    @property
    def shape(self) -> tuple[int, ...]:
        r"""Shape (N, L, C, \*S) of the trajectories."""
        return (self.recipe.split_sizes[self.split], self.recipe.length, *self.spec.state_shape)

    def attributes(self) -> dict[str, Any]:
        """The attributes of the file's root."""
        spec, recipe = self.spec, self.recipe
        measured = {key: getattr(self, key) for key in _MEASURED}
        return {
            "schema_version": recipe.schema_version,
            "data_id": self.data_id,
            "split": self.split,
            "split_sizes": json.dumps(recipe.split_sizes),
            "system": json.dumps(recipe.system),
            "seed": recipe.seed,
            "length": recipe.length,
            "burn_in": recipe.burn_in,
            "block_size": recipe.block_size,
            "time_step": spec.time_step,
            "time_units": spec.time_units,
            "variables": json.dumps([attrs.asdict(v) for v in spec.variables]),
            "axes": json.dumps([_axis_attributes(a) for a in spec.axes]),
            "mean": list(spec.mean or ()),
            "std": list(spec.std or ()),
            "standardization_source": self.standardization_source,
            "created_by": json.dumps(self.created_by),
            # Left out where there are none, so that the checksums of older files hold.
            **{key: list(values) for key, values in measured.items() if values is not None},
        }

    @classmethod
    def from_attributes(
        cls, attributes: Mapping[str, Any], coordinates: Callable[[str], np.ndarray]
    ) -> StoreInfo:
        """Rebuild from a root's attributes; the inverse of ``attributes``.

        Args:
            attributes: The attributes.
            coordinates: Gives the values of a grid axis by its name.
        """
        a = attributes
        return cls(
            recipe=Recipe(
                system=json.loads(a["system"]),
                seed=a["seed"],
                length=a["length"],
                burn_in=a["burn_in"],
                split_sizes=json.loads(a["split_sizes"]),
                block_size=a["block_size"],
                schema_version=a["schema_version"],
            ),
            split=a["split"],
            spec=SystemSpec(
                variables=[Variable(**v) for v in json.loads(a["variables"])],
                axes=[Axis(values=coordinates(b["name"]), **b) for b in json.loads(a["axes"])],
                time_step=a["time_step"],
                time_units=a["time_units"],
                mean=a["mean"],
                std=a["std"],
            ),
            standardization_source=a["standardization_source"],
            created_by=json.loads(a["created_by"]),
            **{key: tuple(a[key]) for key in _MEASURED if key in a},
        )


def size_text(size: float) -> str:
    """A number of bytes in words."""
    for unit, digits in (("bytes", 0), ("KiB", 0), ("MiB", 0), ("GiB", 1)):
        if size < 1024:
            return f"{size:.{digits}f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def split_path(directory: Path, split: str) -> Path:
    """Path of a split's file in a data set's directory."""
    return directory / f"{split}.h5"
