"""Training by several processes is training by one."""

from __future__ import annotations

import math
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from sda_core.cluster import Local
from sda_core.cluster.local import _shares_of_gpus
from sda_core.errors import ClusterError, StoppedError
from sda_core.training import Group

from . import group_work
from .data_systems import Swing, make


@pytest.fixture(autouse=True)
def _found_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(Swing(), tmp_path_factory.mktemp("data"), trajectories=40)


def _same(found: Any, wanted: Any, rel: float = 2e-5) -> bool:
    """Whether values are those wanted, within float error."""
    if isinstance(wanted, dict):
        same = found.keys() == wanted.keys()
        return same and all(_same(found[k], v, rel) for k, v in wanted.items())
    if isinstance(wanted, list):
        pairs = zip(found, wanted, strict=False)
        return len(found) == len(wanted) and all(_same(a, b, rel) for a, b in pairs)
    if isinstance(wanted, float) and isinstance(found, float):
        return found == pytest.approx(wanted, rel=rel, abs=1e-6, nan_ok=True)
    return found == wanted


@pytest.mark.parametrize("workers", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_any_number_of_processes_is_one(data: Path, workers: int) -> None:
    start = group_work.stopped_after(group_work.trainer(data, **group_work.CASES["parts"]), 7)
    work = group_work.Train(data, start)
    with closing(Local().run_distributed(work, workers=workers)) as told:
        found = dict(told)
    for name, settings in group_work.CASES.items():
        alone = group_work.curve(group_work.trainer(data, **settings))
        rel = 2e-2 if name == "half" else 2e-5
        for mine, wanted in zip(found[name], alone, strict=True):
            assert _same(mine, wanted, rel), (name, mine, wanted)
    skipped = [e for e in found["skipped"] if e["event"] == "SkippedBatch"]
    assert [(e["step"], math.isnan(e["loss"]), len(e["levels"])) for e in skipped] == [(9, True, 1)]

    # From one process to several, and back.
    alone = group_work.curve(group_work.trainer(data, **group_work.CASES["parts"]))
    assert _same(found["from one"], alone[7:])
    going_on = group_work.trainer(data, **group_work.CASES["parts"])
    going_on.load_state_dict(*found["stopped"])
    assert _same(group_work.curve(going_on), alone[7:])

    undisturbed, again = found["noisy"]
    assert repr(again) == repr(undisturbed[7:])
    assert undisturbed[-1]["loss"] > 0
    assert set(found["listening"]) <= {"0100007F"}  # 127.0.0.1


def test_shares_are_all_there_is() -> None:
    for size in (1, 2, 3, 7):
        for n in (1, 2, 3, 10, 64):
            rows = [i for rank in range(size) for i in range(n)[Group(rank, size).shard(n)]]
            assert rows == list(range(n))
            counts = [len(range(n)[Group(rank, size).shard(n)]) for rank in range(size)]
            assert max(counts) - min(counts) <= 1


def test_a_process_alone_does_nothing_more() -> None:
    group, x, value = Group.current(), torch.ones(3), object()
    assert (group.rank, group.size, group.is_main) == (0, 1, True)
    assert group.all_gather_rows(x, 3) is x
    assert group.total(x) is x
    assert group.broadcast(value) is value
    network = torch.add
    assert group.network(torch.nn.Identity(), network) is network


# --- the processes of this machine ---


def test_processes_that_die_too_often() -> None:
    begun = []
    with (
        pytest.raises(ClusterError, match=r"one of 1 worker processes died, and again after 1 "),
        closing(Local(retries=1).run_distributed(group_work.die, workers=1)) as told,
    ):
        begun.extend(told)
    assert len(begun) <= 2  # what is told last may be lost


def test_processes_that_die_when_they_are_to_stop_are_not_started_anew() -> None:
    work = Local().run_distributed(group_work.die, workers=1, should_stop=lambda: True)
    with pytest.raises(StoppedError, match="ended when the work was to stop"), closing(work):
        list(work)


def test_processes_end_with_whoever_asked() -> None:
    with closing(Local().run_distributed(group_work.hang, workers=1)) as told:
        process = next(told)
        os.kill(process, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_work_that_cannot_be_sent() -> None:
    with pytest.raises(ClusterError, match=r"cannot be sent to 2 worker.*define its classes"):
        list(Local().run_distributed(lambda channel: None, workers=2))


@pytest.mark.parametrize(
    ("count", "workers", "each", "shares", "backend"),
    [
        (0, 2, None, ["", ""], "gloo"),
        (1, 2, None, ["", ""], "gloo"),
        (4, 3, None, ["4", "5", "6"], "nccl"),
        (4, 2, 2.0, ["4,5", "6,7"], "nccl"),
        (2, 4, 0.5, ["4", "4", "5", "5"], "gloo"),
        (2, 3, 0.4, ["4", "4", "5"], "gloo"),
        (1, 3, 1 / 3, ["4", "4", "4"], "gloo"),
        (2, 2, 0.0, ["", ""], "gloo"),
    ],
)
def test_gpus_are_shared_out(count, workers, each, shares, backend, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(str(4 + i) for i in range(count)))
    assert _shares_of_gpus(workers, each) == (shares, backend)


def test_gpus_that_are_not_there(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        ClusterError, match=r"3 workers with 0.5 GPUs each need 2 GPUs, and this machine has 1: use"
    ):
        _shares_of_gpus(3, 0.5)
