"""Observations from a table: read, checked, and matched to a trajectory."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from sda_core.config import Check, component, non_negative, option, positive
from sda_core.errors import ConfigError, DataError
from sda_core.observation.matched import MatchedObservations
from sda_core.observation.multilinear import fractional_index
from sda_core.observation.table_file import read_table
from sda_core.observation.table_times import read_times
from sda_core.plugins.names import did_you_mean
from sda_core.random import seeded_generator
from sda_core.system import Axis, SystemSpec


@component
class ObservationTable:
    """Observations as rows of time, place, variable, value and error.

    A table has the columns ``time``, ``variable`` and ``value``, and one with the name of each grid
    axis. It may have ``error`` (standard deviation of the observation error), ``instrument`` (any
    label) and ``withheld`` (true for what is kept for verification); other columns are left out.
    Times are numbers in the system's unit of time, or dates. In a NetCDF file, observations lie
    along one dimension or several, such as time and station.
    """

    file: Path | pd.DataFrame = option(
        help="a CSV or NetCDF file; for match() in Python, also a pandas.DataFrame"
    )
    columns: dict[str, str] = option(
        default={}, help="names of columns in the file, by those here, where they differ"
    )
    error: float | dict[str, float] | None = option(
        default=None,
        check=positive,
        help="error of observations that have none: one number, or one by variable",
    )
    origin: float | str | None = option(
        default=None, help="time of the first state: a number (0 if not set), or a date"
    )
    time_unit: str | None = option(
        default=None,
        help="for dates: how long the system's unit of time is, as in '5 days', where its spec "
        "does not say",
    )
    gross_error: float = option(
        default=5.0,
        check=Check("greater than 0", lambda v: v > 0, finite=False),
        help="k: what is more than k sqrt(std^2 + error^2) away from the mean is rejected, with "
        "the mean and std that states are standardized by; inf to reject nothing",
    )
    limits: dict[str, tuple[float, float]] = option(
        default={},
        check=Check("[lowest, highest]", lambda ends: ends[0] <= ends[1], finite=False),
        help="lowest and highest value by variable; what lies outside is rejected",
    )
    withhold: float = option(
        default=0.0,
        check=Check("from 0 to below 1", lambda v: 0 <= v < 1),
        help="share of the observations, drawn at random, that is kept for verification",
    )
    seed: int = option(default=0, check=non_negative, help="seed of that draw")

    def digest(self) -> str:
        """A hash of the file's content; empty where there is no file."""
        if isinstance(self.file, pd.DataFrame) or not Path(self.file).is_file():
            return ""
        return hashlib.sha256(Path(self.file).read_bytes()).hexdigest()

    def match(self, spec: SystemSpec, length: int) -> MatchedObservations:
        """Match the observations to the trajectories of a system.

        Args:
            spec: What the states are; its mean and std are needed to find gross errors.
            length: Number L of states; the first has the time ``origin``.

        Returns:
            All observations, each with its status.

        Raises:
            DataError: The table cannot be read, lacks a column, holds what is no number or no date,
                names a variable that does not exist, or has no observation that can be used.
            ConfigError: An option does not fit the table or the system.
        """
        places = [axis.name for axis in spec.axes]
        frame = read_table(self.file, self.columns, places)
        self._check_variables(frame["variable"], spec.variable_names)
        unit = self.time_unit or spec.time_units
        frame["time"], since = read_times(frame["time"], self.origin, unit)
        numbers = frame[["value", *places]].to_numpy()
        known = np.isfinite(numbers).all(1) & np.isfinite(since)
        frame["error"] = self._errors(frame, known)

        indices = [fractional_index(Axis("time", np.arange(length)), since / spec.time_step)]
        indices += [fractional_index(axis, frame[axis.name].to_numpy()) for axis in spec.axes]
        inside = np.isfinite(indices).all(0)
        frame["time_index"] = np.where(inside, indices[0], np.nan)

        labels = [name for name in ("instrument",) if name in frame]
        again = frame.duplicated(["time", "variable", *places, "value", *labels])
        status = np.select(
            [~known, ~inside, again, self._rejected(frame, spec)],
            ["missing value", "out of range", "duplicate", "rejected"],
            "used",
        ).astype(object)
        status[self._withheld(frame, status == "used")] = "withheld"
        frame["status"] = status
        matched = MatchedObservations(frame=frame, spec=spec, length=length)
        if "used" not in matched.counts:
            if "withheld" in matched.counts:
                raise DataError(
                    f"there is no observation that can be used ({matched}): withhold less"
                )
            raise DataError(
                f"there is no observation that can be used ({matched}). The times of the {length} "
                f"states are 0 to {(length - 1) * spec.time_step:g} after observations.origin, in "
                f"units of {unit!r}: check origin and time_unit, the grid, and limits"
            )
        return matched

    def _check_variables(self, names: pd.Series, known: tuple[str, ...]) -> None:
        strange = ~names.isin(known)
        if strange.any():
            row = int(np.argmax(strange))
            name = str(names.iloc[row])
            raise DataError(
                f"{strange.sum()} observations are of a variable that the system does not have, "
                f"the first is {name!r} in row {row + 1}: {did_you_mean(name, known)}the system "
                f"has {list(known)}. Rename it, or leave these rows out"
            )
        for key, given in (("error", self.error), ("limits", self.limits)):
            for name in given if isinstance(given, dict) else ():
                if name not in known:
                    raise ConfigError(
                        f"observations.{key} has {name!r}, {did_you_mean(name, known)}allowed: "
                        f"{', '.join(known)}"
                    )

    def _errors(self, frame: pd.DataFrame, needed: np.ndarray) -> pd.Series:
        """Each observation's error, or the default."""
        errors = frame.get("error", pd.Series(np.nan, frame.index))
        if isinstance(self.error, dict):
            errors = errors.fillna(frame["variable"].map(self.error).astype(np.float64))
        elif self.error is not None:
            errors = errors.fillna(self.error)
        rows = np.flatnonzero(needed & ~((errors > 0) & np.isfinite(errors)))
        if len(rows):
            raise DataError(
                f"{len(rows)} observations have no error that is a positive number, the first is "
                f"in row {rows[0] + 1}: give each one in a column 'error', or give a default, as "
                "in error = 0.5"
            )
        return errors

    def _rejected(self, frame: pd.DataFrame, spec: SystemSpec) -> np.ndarray:
        """Which observations fail the quality control."""
        names, value = frame["variable"], frame["value"].to_numpy()
        low, high = (
            names.map({name: limits[end] for name, limits in self.limits.items()}).to_numpy(float)
            for end in (0, 1)
        )
        rejected = (value < low) | (value > high)  # neither is true where there is no limit
        if math.isinf(self.gross_error):
            return rejected
        if spec.mean is None or spec.std is None:
            raise ConfigError(
                f"observations.gross_error = {self.gross_error:g} compares with the mean and std "
                "of each variable, which this system does not have before its data are made: "
                "simulate them, or give gross_error = inf"
            )
        index = names.map({name: i for i, name in enumerate(spec.variable_names)}).to_numpy()
        away = np.abs(value - np.array(spec.mean)[index])
        size = np.hypot(np.array(spec.std)[index], frame["error"].to_numpy())
        return rejected | (away > self.gross_error * size)

    def _withheld(self, frame: pd.DataFrame, usable: np.ndarray) -> np.ndarray:
        """Which of the usable observations are kept for verification."""
        chosen = usable & frame.get("withheld", pd.Series(False, frame.index)).to_numpy()
        rows = np.flatnonzero(usable & ~chosen)
        order = torch.randperm(len(rows), generator=seeded_generator(self.seed)).numpy()
        chosen[rows[order[: round(self.withhold * len(rows))]]] = True
        return chosen
