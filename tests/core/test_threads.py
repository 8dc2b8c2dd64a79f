"""How many threads compute."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sda_core import threads
from sda_core.cluster import Local
from sda_core.threads import ThreadTuner, cores, set_most

VARIABLES = ("OMP_NUM_THREADS", "SDA_THREADS", "OMP_WAIT_POLICY", "NPROC")


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch):
    before = torch.get_num_threads()
    for name in VARIABLES:
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # to be put back
    monkeypatch.delenv("SDA_THREADS")
    yield
    torch.set_num_threads(before)


def groups(folder: Path, text: str, **files: str) -> int:
    (folder / "groups").write_text(text)
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_max", ".max").replace("cfs", ".cfs")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return cores(folder, folder / "groups")


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_affinity", lambda: 8)


@pytest.mark.usefixtures("eight")
def test_cores_by_quota(tmp_path: Path):
    assert groups(tmp_path, "") == 8
    for name, text, files, expected in [
        ("v2", "0::/", {"cpu_max": "250000 100000\n"}, 3),
        ("v2-max", "0::/a/b", {"cpu_max": "max 100000\n"}, 8),
        ("v2-parent", "0::/a/b", {"a__cpu_max": "50000 100000", "a__b__cpu_max": "max 100000"}, 1),
        (
            "v1",
            "4:cpuacct,cpu:/pod\n3:memory:/pod\n",
            {"cpu__pod__cpucfs_quota_us": "200000", "cpu__pod__cpucfs_period_us": "100000"},
            2,
        ),
        (
            "v1-container",  # whose group is mounted as the root
            "4:cpu:/docker/0123\n",
            {"cpu__cpucfs_quota_us": "400000", "cpu__cpucfs_period_us": "100000"},
            4,
        ),
        ("v1-none", "4:cpu:/\n", {"cpu__cpucfs_quota_us": "-1"}, 8),
        ("odd", "0::/", {"cpu_max": "?"}, 8),
    ]:
        folder = tmp_path / name
        folder.mkdir()
        assert groups(folder, text, **files) == expected, name


def test_cores_of_this_machine():
    assert 1 <= cores() <= (os.cpu_count() or 1)


SHOW = """
import os
import sda_core, torch
print(*(os.environ.get(n) for n in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "NPROC")))
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("PASSIVE", None, None)),
        ({"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "1"}, ("ACTIVE", "1", "1")),
        ({"SDA_THREADS": "1", "OMP_NUM_THREADS": "2"}, ("PASSIVE", "1", "1")),
    ],
)
def test_import_sets_the_environment(given: dict, expected: tuple):
    rest = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    found = subprocess.run(
        [sys.executable, "-c", SHOW], env=rest | given, capture_output=True, text=True, check=True
    )
    shown, number = found.stdout.splitlines()
    if cores() == threads._affinity():  # else the quota is set where nothing is
        assert shown == " ".join(map(str, expected))
    assert int(number) == int(expected[1] or cores())


def _number_and_environment(task: int) -> tuple:
    import torch

    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], os.environ["NPROC"]


@pytest.mark.parametrize(("here", "workers", "each"), [(4, 2, 2), (3, 2, 1), (1, 2, 1)])
def test_workers_share_the_threads(here: int, workers: int, each: int):
    torch.set_num_threads(here)
    found = list(Local().map(_number_and_environment, range(3), workers=workers))
    assert [value for _, value in found] == [(each, str(each), str(each))] * 3


class Work:
    """A step that takes a number of milliseconds, by the number of threads."""

    def __init__(self, **milliseconds: float) -> None:
        self.milliseconds = {int(k[1:]): v for k, v in milliseconds.items()}
        self.tried: list[int] = []

    def __call__(self) -> None:
        number = torch.get_num_threads()
        if number not in self.tried:
            self.tried.append(number)
        Clock.now += self.milliseconds[number] / 1000


class Clock:
    """Time that passes with work alone."""

    now = 0.0

    @classmethod
    def read(cls) -> float:
        return cls.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    both = SimpleNamespace(perf_counter=Clock.read, monotonic=Clock.read)
    monkeypatch.setattr(threads, "time", both)


def tuner_of(most: int, **options: bool) -> ThreadTuner:
    torch.set_num_threads(most)
    return ThreadTuner(**options)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("times", "best", "tried"),
    [
        ({"_4": 10, "_2": 6, "_1": 1}, 1, [4, 2, 1]),
        ({"_4": 1, "_2": 4, "_1": 8}, 4, [4, 2]),  # not those that are too slow anyway
        ({"_4": 6, "_2": 2, "_1": 6}, 2, [4, 2, 1]),
        ({"_4": 5.0, "_2": 5.2, "_1": 5.4}, 1, [4, 2, 1]),  # what hardly differs: the fewest
        ({"_4": 500, "_2": 900, "_1": 2000}, 4, [4, 2, 1]),
    ],
)
def test_the_fastest_number_is_taken(times: dict, best: int, tried: list):
    tuner, work = tuner_of(4), Work(**times)
    assert tuner.threads is None
    with tuner:
        tuner.before_step(work)
        assert tuner.threads == torch.get_num_threads() == best
        tuner.before_step(work)
    assert work.tried == tried
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("clock")
def test_it_is_measured_again_when_steps_are_slower(monkeypatch: pytest.MonkeyPatch):
    tuner = tuner_of(2)
    with tuner:
        tuner.before_step(Work(_2=1, _1=5))
        assert tuner.threads == 2
        slow = Work(_2=20, _1=5)
        for seconds in (0.3, 0.31, 0.29, 0.3, 0.3, 0.3, 0.3, 0.3):
            tuner.after_step(seconds)
            tuner.before_step(slow)
        assert tuner.threads == 2
        for _ in range(5):
            tuner.after_step(0.6)
        tuner.before_step(slow)
        assert tuner.threads == torch.get_num_threads() == 1
        again = Work(_2=5.0, _1=5.5)
        monkeypatch.setattr(threads, "_AGAIN", -1.0)
        tuner.after_step(3.0)
        tuner.before_step(again)
        assert again.tried
        assert tuner.threads == 1  # nothing to gain by a change


@pytest.mark.usefixtures("clock")
def test_what_is_not_measured(monkeypatch: pytest.MonkeyPatch):
    def never() -> None:
        pytest.fail("measured")

    for tuner in (tuner_of(1), tuner_of(4, fixed=True)):
        with tuner:
            tuner.before_step(never)
            assert torch.get_num_threads() == tuner.threads in (1, 4)
    tuner = tuner_of(4)
    tuner.resume(2)
    with tuner:
        tuner.before_step(never)
        assert torch.get_num_threads() == 2
    tuner.resume(8)  # of a larger machine
    assert tuner.threads is None
    monkeypatch.setenv("SDA_THREADS", "4")
    with tuner_of(4) as _:
        tuner_of(4).before_step(never)
    set_most(2)
    assert (os.environ["SDA_THREADS"], torch.get_num_threads()) == ("2", 2)
