"""Times of observations: numbers, dates, and dates of the calendars of climate models."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

from sda_core.errors import ConfigError, DataError

_DATE = "2024-01-31T18:00"
_PARTS = re.compile(r"(\d{1,4})-(\d\d?)-(\d\d?)(?:[T ](\d\d?):(\d\d)(?::(\d\d))?)?Z?")


def refuse(column: pd.Series, unread: pd.Series, what: str) -> None:
    """Refuse values that could not be read, by the numbers of their rows; the first row is 1.

    Raises:
        DataError: There are such values.
    """
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
        The times as numbers, as dates in UTC, or as dates of their calendar (cftime); and the time
        since the origin, (n,), NaN where there is none.

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
    if column.map(lambda time: hasattr(time, "calendar")).any():
        return _calendar_times(column, origin, unit)
    numbers = pd.Series(np.nan, column.index)
    if not pd.api.types.is_datetime64_any_dtype(column):
        numbers = pd.to_numeric(column, errors="coerce").astype(np.float64)
    rest = column.where(numbers.isna())
    dates = pd.to_datetime(rest, errors="coerce", utc=True, format="ISO8601")
    if not (numbers.notna().any() or dates.notna().any()):
        refuse(column, column.notna(), f"no number and no date such as {_DATE}")
    if numbers.notna().sum() >= dates.notna().sum():
        refuse(column, numbers.isna(), "no number")
        if isinstance(origin, str):
            raise ConfigError(
                f"observations.origin = {origin!r}, but the observations' times are numbers: give "
                "a number"
            )
        return numbers, numbers.to_numpy() - (origin or 0.0)
    refuse(column, dates.isna(), f"no date such as {_DATE}")

    def parse(text: str) -> pd.Timestamp:
        return pd.to_datetime(text, utc=True, format="ISO8601")

    first = _date(origin, dates.min(), parse)
    return dates.dt.tz_localize(None), ((dates - first) / _length(unit)).to_numpy(np.float64)


def _calendar_times(
    column: pd.Series, origin: float | str | None, unit: str
) -> tuple[pd.Series, np.ndarray]:
    """Times as cftime gives them, in a calendar of their own, such as one without leap years."""
    present = column.dropna()
    calendars = sorted({str(getattr(time, "calendar", "none")) for time in present})
    if len(calendars) > 1:
        raise DataError(f"the observations' times are of several calendars {calendars}: keep one")
    make = type(present.iloc[0])

    def parse(text: str) -> Any:
        parts = _PARTS.fullmatch(text.strip())
        if parts is None:
            raise ValueError(text)
        return make(*(int(part or 0) for part in parts.groups()))

    first = _date(origin, present.min(), parse)
    length = _length(unit).total_seconds()
    since = present.map(lambda time: (time - first).total_seconds() / length)
    return column, since.reindex(column.index).to_numpy(np.float64)


def _date(origin: float | str | None, earliest: Any, parse: Callable[[str], Any]) -> Any:
    """The date that an origin is, in the calendar of the times."""
    if not isinstance(origin, str):
        raise ConfigError(
            "the observations' times are dates: give the date of the first state as "
            f'observations.origin, as in origin = "{earliest.strftime("%Y-%m-%dT%H:%M")}" (the '
            "earliest one)"
        )
    try:
        return parse(origin)
    except ValueError as error:
        calendar = getattr(earliest, "calendar", None)
        of_calendar = f" of the calendar {calendar!r}" if calendar else ""
        raise ConfigError(
            f"observations.origin = {origin!r} is no date{of_calendar} such as {_DATE}"
        ) from error


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
