"""Reading a table of observations: its columns, numbers and flags."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from pandas.io.common import get_handle

from sda_core.errors import ConfigError, DataError
from sda_core.observation.table_times import refuse
from sda_core.plugins.names import did_you_mean

#: Columns that a table has besides one for each grid axis, and those that it may have.
REQUIRED, OPTIONAL = ("time", "variable", "value"), ("error", "instrument", "withheld")
_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
#: What stands for a missing number or flag in text.
_MISSING = ("", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "null", "none", "nat")
_SEPARATORS = (",", ";", "\t", "|")


def read_table(
    file: Path | pd.DataFrame, columns: Mapping[str, str], places: Sequence[str]
) -> pd.DataFrame:
    """Read a table.

    Args:
        file: A CSV or NetCDF file, or a data frame.
        columns: Names of columns in the file by those here, where they differ; in a NetCDF file
            with groups as ``"group/name"``.
        places: Names of the grid axes.

    Returns:
        The columns that are known here, in order; numbers and flags as such, labels as text as it
        is written, times as they are.

    Raises:
        DataError: It cannot be read, is empty, lacks a column or holds what is no number or flag.
        ConfigError: ``columns`` has a name that is not known here, or the file is of another kind.
    """
    known = [*REQUIRED, *places, *OPTIONAL]
    for ours in columns:
        if ours not in known:
            raise ConfigError(
                f"observations.columns has {ours!r}, {did_you_mean(ours, known)}allowed: "
                f"{', '.join(known)}"
            )
    frame = _load(file, {name: columns.get(name, name) for name in known}, set(columns))
    for name in [*REQUIRED, *places]:
        if name not in frame:
            raise _no_column(name, frame.attrs["names"])
    if not len(frame):
        raise DataError("the table of observations has no rows")
    for name in [n for n in ("value", *places, "error") if n in frame]:
        frame[name] = _numbers(frame[name])
    for name in [n for n in ("variable", "instrument") if n in frame]:
        if name == "variable" or not pd.api.types.is_numeric_dtype(frame[name]):
            frame[name] = frame[name].map(_text, na_action="ignore")
    if "withheld" in frame:
        text = _without_missing(frame["withheld"]).astype(object)
        flags = text.where(text.notna(), False).astype(str).str.strip().str.lower().map(_FLAGS)
        refuse(frame["withheld"], flags.isna(), "neither true nor false")
        frame["withheld"] = flags.astype(bool)
    return frame


def _no_column(name: str, names: Sequence[str]) -> DataError:
    return DataError(
        f"the observations have no column {name!r}: {did_you_mean(name, names)}there are "
        f'{list(names)}. If it is called otherwise, say so, as in columns = {{ {name} = "..." }}'
    )


def _load(file: Path | pd.DataFrame, wanted: Mapping[str, str], asked: set[str]) -> pd.DataFrame:
    """The wanted columns that there are, by our names; ``attrs["names"]`` are those of the file.

    Args:
        file: Where they are.
        wanted: Names in the file by ours.
        asked: Those of ours whose names in the file the user gave, so that they must be there.
    """
    if isinstance(file, pd.DataFrame):
        indexed = any(name is not None for name in file.index.names)
        return _pick(file.reset_index() if indexed else file, wanted, asked)
    path = Path(file)
    if not path.is_file():
        raise DataError(f"observations.file: there is no file {path}")
    try:
        if ".csv" in path.suffixes:
            return _pick(_read_csv(path), wanted, asked)
        if path.suffix in (".nc", ".nc4"):
            return _read_netcdf(path, wanted, asked)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    raise ConfigError(
        f"observations.file = {path}, allowed: a file .csv, .csv.gz, .csv.bz2, .csv.xz, .csv.zip, "
        ".nc or .nc4"
    )


def _pick(frame: pd.DataFrame, wanted: Mapping[str, str], asked: set[str]) -> pd.DataFrame:
    names = [str(name) for name in frame.columns]
    there = _names_there(names, wanted, asked)
    frame = frame.set_axis(names, axis=1)
    picked = pd.DataFrame({ours: frame[theirs] for ours, theirs in there.items()})
    picked = picked.reset_index(drop=True)
    picked.attrs["names"] = names
    return picked


def _names_there(
    names: Sequence[str], wanted: Mapping[str, str], asked: set[str]
) -> dict[str, str]:
    """Those of the wanted names that a file has, by ours."""
    for ours, theirs in wanted.items():
        if ours in asked and theirs not in names:
            raise DataError(
                f"the observations have no column {theirs!r}, which observations.columns gives for "
                f"{ours!r}: {did_you_mean(theirs, names)}there are {list(names)}"
            )
        if names.count(theirs) > 1 or (theirs != ours and ours in names):
            raise DataError(
                f"the observations have several columns {[ours]}, by their names and by "
                "observations.columns: keep one of each"
            )
    return {ours: theirs for ours, theirs in wanted.items() if theirs in names}


def _read_csv(path: Path) -> pd.DataFrame:
    """All cells as text; comment lines are left out, and the header shows the separator."""
    with get_handle(path, "r", compression="infer", encoding="utf-8-sig") as opened:
        lines = [line for line in opened.handle if line.strip() and not line.startswith("#")]
    if not lines:
        raise ValueError("it has no header and no rows")
    separator = max(_SEPARATORS, key=lines[0].count)
    table = pd.read_csv(
        StringIO("".join(lines)),
        sep=separator,
        header=None,  # with a header, pandas renames columns that it has twice
        dtype=str,
        keep_default_na=False,
        skipinitialspace=True,
        index_col=False,
    )
    names = [str(name).strip() for name in table.iloc[0]]
    return table.iloc[1:].set_axis(names, axis=1).reset_index(drop=True)


def _read_netcdf(path: Path, wanted: Mapping[str, str], asked: set[str]) -> pd.DataFrame:
    """The wanted variables, broadcast to the dimensions of the values, one row for each value."""
    # Numbers stay numbers, in the system's unit of time, whatever theirs is called.
    groups = xr.open_groups(path, engine="h5netcdf", decode_timedelta=False)
    try:
        arrays = {
            f"{group}/{name}".lstrip("/"): data[name]
            for group, data in groups.items()
            for name in data.variables
        }
        names = list(map(str, arrays))
        there = {k: arrays[name] for k, name in _names_there(names, wanted, asked).items()}
        if "value" not in there:
            raise _no_column("value", names)
        value = there["value"]
        for ours, array in there.items():
            sizes = {d: n for d, n in array.sizes.items() if value.sizes.get(d) != n}
            if sizes:
                raise DataError(
                    f"the variable {wanted[ours]!r} has the dimensions {dict(array.sizes)}, and "
                    f"the values in {wanted['value']!r} have {dict(value.sizes)}: the former must "
                    f"be among the latter. Rename its dimensions, or leave it out of the file"
                )
        columns = {
            ours: array.variable.set_dims(dict(value.sizes)).transpose(*value.dims).values.ravel()
            for ours, array in there.items()
        }
        group, _, name = wanted["value"].rpartition("/")
        if group and "variable" not in columns:  # as in IODA's ObsValue/airTemperature
            columns["variable"] = np.full(value.size, name, dtype=object)
        frame = pd.DataFrame({ours: columns[ours] for ours in wanted if ours in columns})
        frame.attrs["names"] = names
        return frame
    finally:
        for data in groups.values():
            data.close()


def _text(label: object) -> str:
    """A label as text, whole numbers without a point."""
    if isinstance(label, bytes):
        return label.decode()
    if isinstance(label, float | np.floating) and float(label).is_integer():
        return str(int(label))
    return str(label).strip()


def _is_text(column: pd.Series) -> bool:
    return pd.api.types.is_string_dtype(column) or column.dtype == object


def _without_missing(column: pd.Series) -> pd.Series:
    """A column in which text that stands for a missing value is one."""
    if not _is_text(column):
        return column
    missing = column.map(lambda v: isinstance(v, str) and v.strip().lower() in _MISSING)
    return column.astype(object).where(~missing.astype(bool), None)


def _numbers(column: pd.Series) -> pd.Series:
    """A column as numbers; of text also with a decimal comma, if no cell has a point.

    Raises:
        DataError: It has cells that are none.
    """
    present = _without_missing(column)
    if _is_text(present):
        cells = [v for v in present if isinstance(v, str)]
        if max((v.count(",") for v in cells), default=0) == 1 and not any("." in v for v in cells):
            present = present.map(lambda v: v.replace(",", ".") if isinstance(v, str) else v)
    numbers = pd.to_numeric(present, errors="coerce").astype(np.float64)
    unread = numbers.isna() & present.notna()
    units = len(numbers) > 1 and bool(unread.iloc[0]) and not unread.iloc[1:].any()
    hint = " (a row of units? begin it with #, or take it out)" if units else ""
    refuse(present.rename(column.name), unread, "no number" + hint)
    return numbers
