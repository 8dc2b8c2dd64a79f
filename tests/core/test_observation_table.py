"""Tables of observations: read, matched with a status for each, and scored."""

from __future__ import annotations

import math
from pathlib import Path

import attrs
import cftime
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch import Generator, Tensor

from sda_core.config import structure, unstructure
from sda_core.errors import ConfigError, DataError
from sda_core.evaluation.verification import OBSERVATION_SCORES, departures, observation_scores
from sda_core.io.xarray import save
from sda_core.observation import MatchedObservations, ObservationTable
from sda_core.observation.matched import STATUSES, dataset
from sda_core.plugins import PluginManager
from sda_core.system import Axis, SystemSpec

SPEC = SystemSpec(
    variables=("u", "v"),
    axes=(Axis("lon", np.arange(4) * 90.0, period=360), Axis("lat", [60.0, 0.0, -60.0])),
    time_step=0.5,
    mean=(0.0, 10.0),
    std=(1.0, 2.0),
)
PLAIN = SystemSpec(variables=("u", "v"), time_step=0.5, mean=(0.0, 10.0), std=(1.0, 2.0))
LENGTH = 5


def frame(rows: list[tuple], columns: str = "time lon lat variable value error") -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns.split())


def plain(*rows: tuple, columns: str = "time variable value") -> pd.DataFrame:
    return frame(list(rows), columns)


GOOD = frame(
    [
        (0.0, 0.0, 60.0, "u", 0.5, 0.1),
        (0.5, 350.0, 30.0, "v", 9.0, 0.2),
        (1.75, -10.0, 30.0, "u", -1.0, 0.3),
        (2.0, 90.0, -60.0, "v", 11.0, 0.4),
    ]
)


def match(table: pd.DataFrame, spec: SystemSpec = PLAIN, **options) -> MatchedObservations:
    return ObservationTable(file=table, **{"error": 1.0, **options}).match(spec, LENGTH)


def statuses(matched: MatchedObservations) -> list[str]:
    return matched.frame["status"].tolist()


def test_observations_become_an_observation_model() -> None:
    matched = match(GOOD, SPEC, error=None)
    assert statuses(matched) == ["used"] * 4
    assert matched.counts == {"used": 4}
    model = matched.model("used")
    x = torch.randn(2, LENGTH, 2, 4, 3, dtype=torch.float64)
    column = (x[..., 0] + x[..., 1]) / 2  # at latitude 30
    wrapped = (column[:, :, :, 3] + 8 * column[:, :, :, 0]) / 9  # at longitude 350
    between = (wrapped[:, 3] + wrapped[:, 4]) / 2  # at time 1.75
    expected = [x[:, 0, 0, 0, 0], wrapped[:, 1, 1], between[:, 0], x[:, 4, 1, 1, 2]]
    # 350 degrees are 80 degrees after the last point, 10 before the first.
    torch.testing.assert_close(model.operator(x), torch.stack(expected, -1))
    assert model.std.tolist() == [0.1, 0.2, 0.3, 0.4]
    assert matched.y("used").tolist() == [0.5, 9.0, -1.0, 11.0]
    assert model.times is None


def test_filters_are_told_the_times() -> None:
    matched = match(plain((1.0, "u", 0.0), (0.50001, "v", 9.0)))
    times = matched.model("used").times
    assert times is not None
    assert times.tolist() == [2, 1]


def test_a_problem_has_standardized_units() -> None:
    """So that guidance means the same for all variables; the likelihood is the same up to 1/std."""
    matched = match(plain((0.25, "u", 1.0), (0.5, "v", 12.0)), error=0.5)
    model, y = matched.used()
    assert y.tolist() == [1.0, 1.0]
    assert model.std.tolist() == [0.5, 0.25]
    x = torch.randn(3, LENGTH, 2, dtype=torch.float64)
    physical = matched.model("used").log_prob(matched.y("used"), x)
    torch.testing.assert_close(model.log_prob(y, x), physical + math.log(2.0))
    bare = match(matched.frame, attrs.evolve(PLAIN, mean=None, std=None), gross_error=math.inf)
    assert bare.used()[1].tolist() == [1.0, 12.0]


def grid_dataset() -> xr.Dataset:
    """The good observations as time x station, with gaps."""
    value, error = np.full((2, 4, 4), np.nan)
    value[range(4), range(4)], error[range(4), range(4)] = GOOD["value"], GOOD["error"]
    stations = {
        name: ("station", GOOD[name].to_numpy(object if name == "variable" else float))
        for name in ("lon", "lat", "variable")
    }
    data = {"value": (("time", "station"), value), "error": (("time", "station"), error)}
    return xr.Dataset({**data, **stations}, coords={"time": GOOD["time"].to_numpy()})


def write(form: str, folder: Path) -> Path:
    path = folder / f"observations.{form}"
    if form == "nc":
        save(GOOD.to_xarray(), path)
    elif form == "nc4":
        save(grid_dataset(), path)
    else:
        GOOD.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("form", ["csv", "csv.gz", "nc", "nc4"])
def test_all_formats_are_read_alike(form: str, tmp_path: Path) -> None:
    expected = match(GOOD, SPEC)
    found = ObservationTable(file=write(form, tmp_path)).match(SPEC, LENGTH)
    columns = GOOD.columns.tolist()
    used = found.frame[found.frame["status"] == "used"].reset_index(drop=True)
    pd.testing.assert_frame_equal(used[columns], expected.frame[columns], check_dtype=False)
    assert torch.equal(found.y("used"), expected.y("used"))
    assert torch.equal(found.model("used").std, expected.model("used").std)
    assert set(found.counts) <= {"used", "missing value"}


def test_an_index_with_names_is_columns() -> None:
    table = GOOD.set_index(["time", "variable"])
    assert match(table, SPEC).counts == {"used": 4}


@pytest.mark.parametrize("form", ["csv", "nc"])
def test_the_matched_table_is_written_and_read_again(form: str, tmp_path: Path) -> None:
    matched = match(GOOD.assign(instrument="buoy", withheld=[False, True, False, False]), SPEC)
    path = tmp_path / f"again.{form}"
    if form == "csv":
        matched.frame.to_csv(path, index=False)
    else:
        save(matched.to_dataset(), path)
    again = ObservationTable(file=path).match(SPEC, LENGTH)
    pd.testing.assert_frame_equal(again.frame, matched.frame, check_dtype=False)


def test_every_observation_has_a_status() -> None:
    rows = [
        (0.0, "u", 1.0, "used"),
        (-0.5, "u", 1.0, "out of range"),
        (2.1, "u", 1.0, "out of range"),
        (0.0, "u", math.nan, "missing value"),
        (math.nan, "u", 1.0, "missing value"),
        (9.0, "u", math.inf, "missing value"),
        (0.0, "u", 1.0, "duplicate"),
        (0.0, "v", -2.0, "rejected"),  # 12 below the mean, 5 sqrt(4 + 1) = 11.2
        (0.0, "u", 6.0, "used"),  # below 5 sqrt(1 + 1) = 7.07
        (0.0, "u", 7.1, "rejected"),
        (0.0, "u", -7.1, "rejected"),
        (2.0, "v", 12.0, "used"),
    ]
    matched = match(plain(*(row[:3] for row in rows)))
    assert statuses(matched) == [row[3] for row in rows]
    assert str(matched) == "3 used, 3 rejected, 1 duplicate, 3 missing value, 2 out of range"
    assert set(matched.counts) <= set(STATUSES)
    dataset(matched.frame)


def test_places_outside_are_out_of_range() -> None:
    rows = [(0.0, 720.0, 61.0), (0.0, 720.0, -60.0), (0.0, math.nan, 0.0)]
    table = frame([(*row, "u", 0.0, 1.0) for row in rows])
    assert statuses(match(table, SPEC)) == ["out of range", "used", "missing value"]


def test_two_instruments_may_see_the_same() -> None:
    rows = [(0.0, "u", 1.0, "a"), (0.0, "u", 1.0, "b"), (0.0, "u", 1.0, "a")]
    matched = match(plain(*rows, columns="time variable value instrument"))
    assert statuses(matched) == ["used", "used", "duplicate"]
    assert matched.frame["instrument"].tolist() == ["a", "b", "a"]


def test_quality_control_can_be_changed() -> None:
    table = plain((0.0, "u", 8.0), (0.0, "u", 2.0), (0.0, "v", 30.0))
    assert statuses(match(table, gross_error=math.inf)) == ["used"] * 3
    limits = {"u": (-1.0, 3.0)}
    matched = match(table, gross_error=math.inf, limits=limits)
    assert statuses(matched) == ["rejected", "used", "used"]
    # A larger error makes a larger departure believable.
    assert statuses(match(table, error={"u": 2.0, "v": 5.0})) == ["used", "used", "used"]


def test_systems_without_statistics_need_no_gross_error() -> None:
    spec = attrs.evolve(PLAIN, mean=None, std=None)
    table = plain((0.0, "u", 800.0))
    with pytest.raises(ConfigError, match=r"gross_error = 5 compares.*gross_error = inf"):
        match(table, spec)
    assert statuses(match(table, spec, gross_error=math.inf)) == ["used"]


def test_defaults_fill_in_for_missing_errors() -> None:
    table = plain(
        (0.0, "u", 0.0, 0.3), (0.0, "v", 9.0, math.nan), columns="time variable value error"
    )
    assert match(table, error=0.5).model("used").std.tolist() == [0.3, 0.5]
    errors = {"u": 0.1, "v": 0.2}
    assert match(table, error=errors).model("used").std.tolist() == [0.3, 0.2]
    assert match(table.drop(columns="error"), error=errors).model("used").std.tolist() == [0.1, 0.2]


def test_flagged_observations_are_withheld() -> None:
    table = plain((0.0, "u", 0.0), (0.5, "u", 0.1), (1.0, "u", 99.0)).assign(
        withheld=["yes", "no", "no"]
    )
    with pytest.raises(
        DataError, match=r"'withheld' has neither true nor false in row 1 \('yes'\)"
    ):
        match(table)
    for flags in ([True, False, True], [1, 0, 1], ["True", None, "true"], [1.0, math.nan, 1.0]):
        matched = match(table.assign(withheld=flags))
        assert statuses(matched) == ["withheld", "used", "rejected"]
        assert matched.y("withheld").tolist() == [0.0]


def test_a_random_share_is_withheld() -> None:
    n = 40
    table = plain(*((i % 5 * 0.5, "u", i / n) for i in range(n)))
    table.loc[:9, "value"] = math.nan
    one, two, three = (match(table, withhold=0.3, seed=seed) for seed in (0, 0, 1))
    assert one.counts == {"used": 21, "withheld": 9, "missing value": 10}
    assert statuses(one) == statuses(two) != statuses(three)
    assert len(one.model("withheld").std) == 9


@pytest.mark.parametrize(
    ("dates", "origin", "unit"),
    [
        (["2024-01-01", "2024-01-01T15:00"], "2023-12-31T18:00", "6 hours"),
        (["2024-01-01T00:00Z", "2024-01-01T16:00+01:00"], "2023-12-31 18:00", "6h"),
        (
            np.array(["2024-01-01", "2024-01-01T15:00"], "M8[s]"),
            "2023-12-31T19:00+01:00",
            "360 min",
        ),
        (["2024-01-01", "2024-01-01T15:00"], "2023-12-31T18:00", ".25 days"),
    ],
)
def test_dates(dates, origin: str, unit: str) -> None:
    table = pd.DataFrame({"time": dates, "variable": "u", "value": [0.0, 0.1]})
    matched = match(table, origin=origin, time_unit=unit, gross_error=math.inf)
    # 6 and 21 hours after the origin are 1 and 3.5 units of time, 2 and 7 steps of half a unit.
    assert matched.frame["time_index"].tolist()[0] == 2.0
    assert statuses(matched) == ["used", "out of range"]
    assert matched.frame["time"].tolist()[1] == pd.Timestamp("2024-01-01T15:00")
    days = attrs.evolve(PLAIN, time_units="days")
    by_spec = match(table, days, origin="2024-01-01", gross_error=math.inf)
    assert by_spec.frame["time_index"].tolist() == [0.0, 2 * 15 / 24]


def test_dates_in_netcdf(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "time": pd.to_datetime(["2024-01-01", "2024-01-02"]),
            "variable": ["u", "v"],
            "value": [0.0, 9.0],
        }
    )
    save(table.to_xarray(), tmp_path / "o.nc")
    days = attrs.evolve(PLAIN, time_units="days")
    source = ObservationTable(file=tmp_path / "o.nc", error=1.0, origin="2024-01-01")
    matched = source.match(days, LENGTH)
    assert matched.frame["time_index"].tolist() == [0.0, 2.0]
    save(matched.to_dataset(), tmp_path / "again.nc")
    with xr.open_dataset(tmp_path / "again.nc") as again:
        assert again["time"].dtype.kind == "M"
        assert again["status"].values.tolist() == ["used", "used"]


def test_numbers_in_netcdf_stay_numbers(tmp_path: Path) -> None:
    """Whatever the unit of their time is called, it is the system's."""
    table = plain((0.0, "u", 0.0), (1.0, "v", 9.0)).to_xarray()
    table["time"].attrs["units"] = "days"
    save(table, tmp_path / "o.nc")
    matched = ObservationTable(file=tmp_path / "o.nc", error=1.0).match(PLAIN, LENGTH)
    assert matched.frame["time_index"].tolist() == [0.0, 2.0]


def test_instruments_of_mixed_types_are_text(tmp_path: Path) -> None:
    """As pandas reads numbers and words of one column of a long file."""
    labels = pd.Series([7, "buoy", b"ship", None], dtype=object)
    matched = match(GOOD.assign(instrument=labels), SPEC)
    assert matched.frame["instrument"].tolist()[:3] == ["7", "buoy", "ship"]
    save(matched.to_dataset(), tmp_path / "o.nc")
    with xr.open_dataset(tmp_path / "o.nc") as again:
        assert again["instrument"].values.tolist() == ["7", "buoy", "ship", ""]


def test_numbers_since_an_origin() -> None:
    table = plain((100.0, "u", 0.0), (101.0, "u", 0.1))
    assert match(table, origin=100).frame["time_index"].tolist() == [0.0, 2.0]


def test_columns_of_other_names() -> None:
    table = GOOD.rename(columns={"value": "Temperature", "lon": "x"}).assign(remark="none")
    columns = {"value": "Temperature", "lon": "x"}
    matched = match(table, SPEC, columns=columns)
    assert matched.counts == {"used": 4}
    assert "remark" not in matched.frame


@pytest.mark.parametrize(
    ("table", "options", "error", "message"),
    [
        (
            GOOD.rename(columns={"value": "Values"}),
            {},
            DataError,
            r"no column 'value': did you mean 'Values'\? there are.*columns = \{ value = ",
        ),
        (GOOD.drop(columns="lat"), {}, DataError, "no column 'lat'"),
        (GOOD, {"columns": {"valu": "x"}}, ConfigError, r"has 'valu', did you mean 'value'\?"),
        (
            GOOD,
            {"columns": {"value": "errors"}},
            DataError,
            r"no column 'errors', which.*for 'value': did you mean 'error'\?",
        ),
        (GOOD, {"columns": {"value": "error"}}, DataError, r"several columns \['value'\]"),
        (GOOD[:0], {}, DataError, "has no rows"),
        (
            GOOD.assign(variable=["u", "V", "V", "v"]),
            {},
            DataError,
            r"2 observations are of a variable.*first is 'V' in row 2: did you mean 'v'\? the "
            r"system has \['u', 'v'\]",
        ),
        (
            GOOD.assign(value=["1", "x", "3", "4"]),
            {},
            DataError,
            r"column 'value' has no number in row 2 \('x'\)$",
        ),
        (
            GOOD.assign(lat=["a", "b", "c", "d"]),
            {},
            DataError,
            r"column 'lat' has no number in row 1 \('a'\), .*row 3 \('c'\) and 1 more",
        ),
        (GOOD.assign(time=["0", "x", "1", "2"]), {}, DataError, r"no number in row 2 \('x'\)"),
        (
            GOOD.assign(time=["2024-01-01", "x", "2024-01-01", "2024-01-01"]),
            {"origin": "2024-01-01"},
            DataError,
            r"no date such as 2024-01-31T18:00 in row 2 \('x'\)",
        ),
        (
            GOOD.assign(error=[0.1, 0.0, 0.1, 0.1]),
            {},
            DataError,
            "1 observations have no error that is a positive number, the first is in row 2",
        ),
        (GOOD.drop(columns="error"), {"error": None}, DataError, "4 observations have no error"),
        (GOOD, {"error": {"w": 1.0}}, ConfigError, r"observations\.error has 'w'.*allowed: u, v"),
        (GOOD, {"limits": {"w": (0, 1)}}, ConfigError, r"observations\.limits has 'w'"),
        (
            GOOD.assign(time=100.0),
            {},
            DataError,
            r"no observation that can be used \(4 out of range\).*5 states are 0 to 2 after",
        ),
        (GOOD, {"origin": "2024-01-01"}, ConfigError, "times are numbers: give a number"),
        (
            GOOD.assign(time="2024-01-01T06:00"),
            {},
            ConfigError,
            r'as in origin = "2024-01-01T06:00" \(the earliest one\)',
        ),
        (
            GOOD.assign(time="2024-01-01"),
            {"origin": "yesterday"},
            ConfigError,
            "origin = 'yesterday' is no date",
        ),
        (
            GOOD.assign(time="2024-01-01"),
            {"origin": "2024-01-01"},
            ConfigError,
            "unit of time is '1', whose length is not known",
        ),
        *(
            (
                GOOD.assign(time="2024-01-01"),
                {"origin": "2024-01-01", "time_unit": unit},
                ConfigError,
                f"unit of time is '{unit}'",
            )
            for unit in ("moons", "6", "6.0 ", "0 days", "-6 hours", "1.2.3 days")
        ),
        (
            GOOD.assign(time=pd.to_timedelta([0, 1, 2, 3], unit="D")),
            {},
            DataError,
            "times are durations: give dates, or numbers",
        ),
        (GOOD.assign(variable=1), {}, DataError, r"first is '1' in row 1: the system has"),
        (
            GOOD.assign(withheld=True),
            {},
            DataError,
            r"no observation that can be used \(4 withheld\): withhold less",
        ),
        (GOOD, {"limits": {"u": (1, 0)}}, ConfigError, r"allowed: \[lowest, highest\]"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(table, options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        match(table, SPEC, **options)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "o.nc").write_text("time,value")
    (tmp_path / "o.csv").write_text('a,b\n1,"2\n')
    (tmp_path / "o.xlsx").write_text("")
    for name, error, message in (
        ("none.csv", DataError, r"there is no file .*none\.csv"),
        ("o.nc", DataError, r"o\.nc cannot be read"),
        ("o.csv", DataError, r"o\.csv cannot be read"),
        ("o.xlsx", ConfigError, r"o\.xlsx, allowed: a file \.csv"),
    ):
        with pytest.raises(error, match=message):
            ObservationTable(file=tmp_path / name).match(PLAIN, LENGTH)


def test_a_table_is_configuration(tmp_path: Path) -> None:
    file = tmp_path / "o.csv"
    data = {
        "file": str(file),
        "error": {"u": 0.5},
        "gross_error": math.inf,
        "limits": {"u": [0, 1]},
    }
    table = structure(ObservationTable, data, manager=PluginManager())
    assert table.file == file
    assert table.digest() == ""
    file.write_text("a")
    one = table.digest()
    file.write_text("b")
    assert "" != one != table.digest()
    assert unstructure(table, manager=PluginManager())["error"] == {"u": 0.5}
    assert ObservationTable(file=GOOD).digest() == ""
    with pytest.raises(ConfigError, match=r"withhold.*from 0 to below 1"):
        ObservationTable(file=file, withhold=1.0)


def ensemble(members: int, generator: Generator) -> Tensor:
    return torch.randn(members, LENGTH, 2, generator=generator, dtype=torch.float64)


def test_scores_are_those_computed_by_hand() -> None:
    table = plain(
        (0.0, "u", 1.0), (0.5, "v", 12.0), (1.0, "u", -1.0), (9.0, "u", 0.0), (1, "v", 99.0)
    )
    table = table.assign(withheld=[True, True, False, False, False])
    matched = match(table, error={"u": 0.5, "v": 1e-6})
    x = torch.zeros(3, LENGTH, 2)
    x[:, 0, 0] = torch.tensor([0.0, 1.0, 5.0])  # mean 2, variance 7
    x[:, 1, 1] = torch.tensor([11.0, 12.0, 16.0])  # mean 13, variance 7
    x[:, 2, 0] = torch.tensor([-2.0, -2.0, -2.0])
    x[:, 2, 1] = torch.tensor([98.0, 99.0, 100.0])
    scores = observation_scores(matched, x)
    assert scores["withheld_count"] == 2
    assert scores["withheld_rmse"] == pytest.approx(1.0)
    assert scores["withheld_bias"] == pytest.approx(-1.0)
    s2 = 7 * 4 / 3
    assert scores["withheld_chi_square"] == pytest.approx((1 / (0.25 + s2) + 1 / s2) / 2)
    assert scores["used_rmse"] == scores["used_bias"] == pytest.approx(1.0)
    assert scores["used_chi_square"] == pytest.approx(1 / 0.25)
    assert set(scores) <= set(OBSERVATION_SCORES)

    seen = departures(matched, x)
    assert seen["mean"].tolist()[:3] == pytest.approx([2, 13, -2])
    assert seen["spread"].tolist()[:3] == pytest.approx([math.sqrt(s2), math.sqrt(s2), 0])
    assert seen["departure"].tolist()[:3] == pytest.approx([-1, -1, 1])
    assert seen.loc[3, ["mean", "spread", "departure"]].isna().all()  # out of range
    assert seen.loc[4, "departure"] == pytest.approx(0)  # rejected, but still compared
    pd.testing.assert_frame_equal(seen[matched.frame.columns], matched.frame)


def test_crps_of_exact_observations_is_that_of_the_ensemble() -> None:
    matched = match(
        plain((0.0, "u", 1.0), (0.0, "v", 10.0)).assign(withheld=[True, False]), error=1e-9
    )
    x = torch.zeros(3, LENGTH, 2)
    x[:, 0, 0] = torch.tensor([0.0, 1.0, 5.0])
    # Mean |x_i - y| minus half the mean |x_i - x_j| over the pairs i != j.
    expected = (1 + 0 + 4) / 3 - (1 + 5 + 4) / 3 / 2
    assert observation_scores(matched, x)["withheld_crps"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("error", [0.1, 2.0])
def test_scores_of_a_calibrated_ensemble(error: float) -> None:
    """Truth and members from one distribution: chi-square is 1, and 90 % are covered."""
    generator = torch.Generator().manual_seed(0)
    n, members = 4000, 19
    x = 3 * torch.randn(members + 1, n, 2, generator=generator, dtype=torch.float64)
    noise = error * torch.randn(n, generator=generator, dtype=torch.float64)
    table = pd.DataFrame(
        {
            "time": 0.5 * np.arange(n),
            "variable": "u",
            "value": (x[0, :, 0] + noise).numpy(),
            "withheld": np.arange(n) > 0,
        }
    )
    source = ObservationTable(file=table, error=error, gross_error=math.inf)
    scores = observation_scores(source.match(PLAIN, n), x[1:])
    assert scores["withheld_chi_square"] == pytest.approx(1, abs=0.2)
    assert scores["withheld_coverage_90"] == pytest.approx(0.9, abs=0.02)
    # sigma / sqrt(pi), for a normal forecast of standard deviation sigma.
    sigma = math.hypot(3, error)
    assert scores["withheld_crps"] == pytest.approx(sigma / math.sqrt(math.pi), rel=0.05)
    assert abs(scores["withheld_bias"]) < 5 * sigma / math.sqrt(n)


FREE = {"error": 1.0, "gross_error": math.inf}


@pytest.mark.parametrize(
    "text",
    [
        "time;variable;value\n0;u;1,5\n2;u;-2,25\n",
        "time\tvariable\tvalue\n0\tu\t1.5\n2\tu\t-2.25\n",
        "time | variable | value\n0 | u | 1.5\n2 | u | -2.25\n",
        "# a station\n#units: K\ntime,variable,value\n0,u,1.5\n# later\n2,u,-2.25\n",
        "\ufefftime,variable,value\n0,u,1.5\n\n2,u,-2.25\n",
        'time,variable,value,note\n0,u,1.5,"a, b"\n2,u,-2.25,\n',
        "time,variable,value\r\n0,u,1.5\r\n2,u,-2.25\r\n",
    ],
    ids=["semicolon", "tab", "bar", "comments", "byte order mark", "quotes", "line ends"],
)
def test_csv_as_agencies_write_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "o.csv").write_bytes(text.encode())
    matched = ObservationTable(file=tmp_path / "o.csv", **FREE).match(PLAIN, 5)
    assert matched.frame["value"].tolist() == [1.5, -2.25]
    assert matched.frame["time"].tolist() == [0.0, 2.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,variable,value\nUTC,,K\n0,u,1\n", r"'value' has no number \(a row of units\?"),
        ("time,variable,value,value\n0,u,1,2\n", r"several columns \['value'\]"),
        ("time;variable;value\n0;u;1.000,5\n1;u;2,5\n", r"no number in row 1 \('1.000,5'\)"),
        ("time;variable;value\n0;u;1,000,5\n1;u;2,5\n", r"no number in row 1 \('1,000,5'\)"),
        ("time,variable,value\n01.02.2020,u,1\n", r"no date such as .* in row 1 \('01.02.2020'\)"),
        ("", "it has no header"),
        ("# only\n# comments\n", "it has no header"),
    ],
)
def test_csv_that_cannot_be_understood(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "o.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        ObservationTable(file=tmp_path / "o.csv", **FREE).match(PLAIN, 5)


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zip"])
def test_archives(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"o.csv.{ending}"
    plain((0, "u", 1.5)).to_csv(path, index=False)
    table = ObservationTable(file=path, **FREE)
    assert table.match(PLAIN, 5).frame["value"].tolist() == [1.5]
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"junk", b"PK\x03\x04", b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"o\.csv\.{ending} cannot be read"):
            table.match(PLAIN, 5)


def test_labels_stay_as_they_are_written(tmp_path: Path) -> None:
    spec, path = SystemSpec(variables=("500", "0850"), time_step=1.0), tmp_path / "o.csv"
    path.write_text("time,variable,value,instrument\n0,500,1,01001\n1,0850,2,\n2,500,NA,1e5\n")
    matched = ObservationTable(file=path, **FREE).match(spec, 5)
    assert matched.frame["variable"].tolist() == ["500", "0850", "500"]
    assert matched.frame["instrument"].tolist() == ["01001", "", "1e5"]
    assert matched.frame["status"].tolist() == ["used", "used", "missing value"]
    matched.frame.to_csv(tmp_path / "kept.csv", index=False)
    matched.to_dataset().to_netcdf(tmp_path / "kept.nc")
    for kept in ("kept.csv", "kept.nc"):
        again = ObservationTable(file=tmp_path / kept, **FREE).match(spec, 5)
        assert again.frame["instrument"].tolist() == ["01001", "", "1e5"]


@pytest.mark.parametrize("given", [[500, 850], [500.0, 850.0], ["500", "850"]])
def test_variables_whose_names_are_numbers(given: list[object]) -> None:
    spec = SystemSpec(variables=("500", "850"), time_step=1.0)
    table = pd.DataFrame({"time": [0, 1], "variable": given, "value": [1.0, 2.0]})
    matched = ObservationTable(file=table, **FREE).match(spec, 5)
    assert matched.frame["variable"].tolist() == ["500", "850"]


def test_only_what_belongs_to_the_values_is_read_of_netcdf(tmp_path: Path) -> None:
    n, path = 400, tmp_path / "o.nc"
    rows = {
        "time": ("o", np.linspace(0, 2, n)),
        "variable": ("o", np.array(["u"] * n, object)),
        "value": ("o", np.arange(n) * 1.0),
        "R": (("o", "other"), np.eye(n)),
        "far": ("p", np.zeros(7)),
    }
    xr.Dataset(rows).to_netcdf(path)
    table = ObservationTable(file=path, **FREE)
    assert table.match(PLAIN, 5).counts == {"used": n}
    xr.Dataset({**rows, "error": ("p", np.ones(7))}).to_netcdf(path)
    with pytest.raises(DataError, match=r"'error' has the dimensions \{'p': 7\}"):
        table.match(PLAIN, 5)


def test_groups_of_netcdf(tmp_path: Path) -> None:
    """The layout of IODA files: a group for values, one for errors, one for times and places."""
    path, units = tmp_path / "ioda.nc", {"units": "seconds since 2020-01-01"}
    groups = {
        "ObsValue": {"u": ("Location", [1.0, 2.0])},
        "ObsError": {"u": ("Location", [0.5, 0.25])},
        "MetaData": {"dateTime": ("Location", np.array([0, 3600]), units)},
    }
    for i, (group, data) in enumerate(groups.items()):
        xr.Dataset(data).to_netcdf(path, group=group, mode="a" if i else "w")
    options = {"origin": "2020-01-01", "time_unit": "hours", "gross_error": math.inf}
    with pytest.raises(DataError, match=r"no column 'value'.*'ObsValue/u'.*'MetaData/dateTime'"):
        ObservationTable(file=path, **options).match(PLAIN, 5)
    columns = {"value": "ObsValue/u", "error": "ObsError/u", "time": "MetaData/dateTime"}
    matched = ObservationTable(file=path, **options, columns=columns).match(PLAIN, 5)
    assert matched.frame["variable"].tolist() == ["u", "u"]
    assert matched.frame["error"].tolist() == [0.5, 0.25]
    assert matched.frame["time_index"].tolist() == [0.0, 2.0]  # the time step is 0.5


@pytest.mark.parametrize(
    ("calendar", "start", "days"),
    [
        ("noleap", "2020-02-27", 365),
        ("all_leap", "2021-02-27", 366),
        ("360_day", "2020-02-29", 360),
        ("julian", "1900-02-27", 366),
        ("standard", "2020-02-27", 366),
    ],
)
def test_calendars(tmp_path: Path, calendar: str, start: str, days: int) -> None:
    """Day n is n days after the origin in the calendar of the file, and a year has its days."""
    path, since = tmp_path / "o.nc", np.array([0.0, 1.0, 2.0, 3.5, days])
    data = {
        "time": ("o", since, {"units": f"days since {start}", "calendar": calendar}),
        "variable": ("o", np.array(["u"] * 5, object)),
        "value": ("o", np.zeros(5)),
    }
    xr.Dataset(data).to_netcdf(path)
    spec = SystemSpec(variables=("u",), time_step=0.5)
    table = ObservationTable(file=path, origin=start, time_unit="days", **FREE)
    matched = table.match(spec, 2 * days + 1)
    assert (matched.frame["time_index"] * 0.5).tolist() == since.tolist()
    assert str(matched.frame["time"].iloc[-1])[:10] == f"{int(start[:4]) + 1}{start[4:]}"
    matched.to_dataset().to_netcdf(tmp_path / "again.nc")
    again = ObservationTable(file=tmp_path / "again.nc", origin=start, time_unit="days", **FREE)
    assert (again.match(spec, 2 * days + 1).frame["time_index"] * 0.5).tolist() == since.tolist()


def test_an_origin_that_its_calendar_does_not_have() -> None:
    table = plain((cftime.Datetime360Day(2020, 2, 30), "u", 1.0))
    options = {"error": 1.0, "time_unit": "days", "gross_error": math.inf}
    assert match(table, origin="2020-02-30", **options).counts == {"used": 1}
    with pytest.raises(ConfigError, match=r"origin = '2020-02-31' is no date of .*'360_day'"):
        match(table, origin="2020-02-31", **options)
