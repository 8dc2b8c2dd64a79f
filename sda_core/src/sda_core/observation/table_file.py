"""Reading a table of observations: its columns, numbers, flags and times."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from sda_core.errors import ConfigError, DataError
from sda_core.plugins.names import did_you_mean

#: Columns that a table has besides one for each grid axis, and those that it may have.
REQUIRED, OPTIONAL = ("time", "variable", "value"), ("error", "instrument", "withheld")
_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_DATE = "2024-01-31T18:00"


def read_table(
    file: Path | pd.DataFrame, columns: Mapping[str, str], places: Sequence[str]
) -> pd.DataFrame:
    """Read a table.

    Args:
        file: A CSV or NetCDF file, or a data frame.
        columns: Names of columns in the file by those here, where they differ.
        places: Names of the grid axes.

    Returns:
        The columns that are known here, in order; numbers and flags as such, times as they are.

    Raises:
        DataError: It cannot be read, is empty, lacks a column or holds what is no number or flag.
        ConfigError: ``columns`` has a name that is not known here, or the file is of another kind.
    """
    frame, known = _load(file), [*REQUIRED, *places, *OPTIONAL]
    for ours, theirs in columns.items():
        if ours not in known:
            raise ConfigError(
                f"observations.columns has {ours!r}, {did_you_mean(ours, known)}allowed: "
                f"{', '.join(known)}"
            )
        if theirs not in frame:
            raise DataError(
                f"the observations have no column {theirs!r}, which observations.columns gives for "
                f"{ours!r}: {did_you_mean(theirs, frame.columns)}there are {list(frame)}"
            )
    frame = frame.rename(columns={theirs: ours for ours, theirs in columns.items()})
    for name in [*REQUIRED, *places]:
        if name not in frame:
            raise DataError(
                f"the observations have no column {name!r}: {did_you_mean(name, frame.columns)}"
                f"there are {list(frame)}. If it is called otherwise, say so, as in "
                f'columns = {{ {name} = "..." }}'
            )
    repeated = [name for name in known if list(frame.columns).count(name) > 1]
    if repeated:
        raise DataError(f"the observations have several columns {repeated}: keep one of each")
    if not len(frame):
        raise DataError("the table of observations has no rows")
    frame = frame[[name for name in known if name in frame]].reset_index(drop=True)
    for name in [n for n in ("value", *places, "error") if n in frame]:
        numbers = pd.to_numeric(frame[name], errors="coerce").astype(np.float64)
        _refuse(frame[name], numbers.isna(), "no number")
        frame[name] = numbers
    for name in [n for n in ("variable", "instrument") if n in frame]:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            frame[name] = frame[name].map(_text, na_action="ignore")
    if "withheld" in frame:
        text = frame["withheld"].astype(object).where(frame["withheld"].notna(), False)
        flags = text.astype(str).str.strip().str.lower().map(_FLAGS)
        _refuse(frame["withheld"], flags.isna(), "neither true nor false")
        frame["withheld"] = flags.astype(bool)
    return frame


def _load(file: Path | pd.DataFrame) -> pd.DataFrame:
    if isinstance(file, pd.DataFrame):
        indexed = any(name is not None for name in file.index.names)
        return file.reset_index() if indexed else file.copy()
    path = Path(file)
    if not path.is_file():
        raise DataError(f"observations.file: there is no file {path}")
    try:
        if ".csv" in path.suffixes:
            return pd.read_csv(path, skipinitialspace=True)
        if path.suffix in (".nc", ".nc4"):
            # Numbers stay numbers, in the system's unit of time, whatever theirs is called.
            with xr.open_dataset(path, decode_timedelta=False) as data:
                return data.to_dataframe().reset_index()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    raise ConfigError(f"observations.file = {path}, allowed: a file .csv, .csv.gz, .nc or .nc4")


def _text(label: object) -> str:
    return label.decode() if isinstance(label, bytes) else str(label)


def _refuse(column: pd.Series, unread: pd.Series, what: str) -> None:
    """Refuse values that could not be read, by the numbers of their rows; the first row is 1."""
    rows = np.flatnonzero(unread & column.notna())
    if len(rows):
        shown = ", ".join(f"row {i + 1} ({column.iloc[i]!r})" for i in rows[:3])
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        raise DataError(f"the observations' column {column.name!r} has {what} in {shown}{more}")


def read_times(
    column: pd.Series, origin: float | str | None, unit: str
) -> tuple[pd.Series, np.ndarray]:
    """Read times, as numbers or as dates, whichever most of them are.

    Args:
        column: The times.
        origin: Time of the first state, a number (None for 0) or a date.
        unit: Unit of time of the result, such as ``"s"`` or ``"6 hours"``; used for dates alone.

    Returns:
        The times as numbers, or as dates in UTC; and the time since the origin, (n,), NaN where
        there is none.

    Raises:
        DataError: Some times can be read and some cannot, or they are durations.
        ConfigError: The origin is missing, or not of the same sort as the times; or a unit is
            needed and not known.
    """
    if pd.api.types.is_timedelta64_dtype(column):
        raise DataError(
            "the observations' times are durations: give dates, or numbers in the system's unit of "
            "time"
        )
    numbers = pd.Series(np.nan, column.index)
    if not pd.api.types.is_datetime64_any_dtype(column):
        numbers = pd.to_numeric(column, errors="coerce").astype(np.float64)
    rest = column.where(numbers.isna())
    dates = pd.to_datetime(rest, errors="coerce", utc=True, format="ISO8601")
    if numbers.notna().sum() >= dates.notna().sum():
        _refuse(column, numbers.isna(), "no number")
        if isinstance(origin, str):
            raise ConfigError(
                f"observations.origin = {origin!r}, but the observations' times are numbers: give "
                "a number"
            )
        return numbers, numbers.to_numpy() - (origin or 0.0)
    _refuse(column, dates.isna(), f"no date such as {_DATE}")
    since = (dates - _date(origin, dates.min())) / _length(unit)
    return dates.dt.tz_localize(None), since.to_numpy(np.float64)


def _date(origin: float | str | None, earliest: pd.Timestamp) -> pd.Timestamp:
    if not isinstance(origin, str):
        raise ConfigError(
            "the observations' times are dates: give the date of the first state as "
            f'observations.origin, as in origin = "{earliest:%Y-%m-%dT%H:%M}" (the earliest one)'
        )
    try:
        return pd.to_datetime(origin, utc=True, format="ISO8601")
    except ValueError as error:
        raise ConfigError(f"observations.origin = {origin!r} is no date such as {_DATE}") from error


def _length(unit: str) -> pd.Timedelta:
    length = pd.Timedelta(0)
    if (found := re.fullmatch(r"\s*([\d.]*)\s*([A-Za-z]+)\s*", unit)) is not None:
        with suppress(ValueError):
            length = pd.Timedelta(float(found[1] or 1), found[2])
    if length <= pd.Timedelta(0):
        raise ConfigError(
            f"the observations' times are dates, and the system's unit of time is {unit!r}, whose "
            'length is not known: give it as observations.time_unit, as in time_unit = "6 hours"'
        )
    return length
