"""What W&B itself wrote, offline, read back from its log and its files."""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.animation import FuncAnimation
from matplotlib.figure import Figure
from PIL import Image

from sda_core.config import unstructure
from sda_core.errors import ConfigError, DataError, StoppedError, TrackingWarning, TrainingError
from sda_core.experiment import Run, load_experiment
from sda_core.figures import Picture
from sda_core.stages import simulate, train
from sda_core.tracker import Histogram, Session

OFFLINE = 'trackers=[{name="wandb", mode="offline"}]'


def make_run(directory: Path, tracker: str = OFFLINE) -> Run:
    return Run(load_experiment("lorenz63-quick", [tracker]), directory, progress=False)


def start(run: Run, stage: str = "train") -> Session:
    (tracker,) = run.experiment.trackers
    return tracker.open(run, stage)


def offline_runs(run: Run) -> list[Path]:
    """What each stage left, in order."""
    return sorted(run.directory.glob("wandb/offline-run-*"), key=lambda p: p.stat().st_ctime_ns)


def records(folder: Path) -> list[Any]:
    """The records of a W&B log, once it is whole: another process writes it."""
    (path,) = folder.glob("*.wandb")
    deadline = time.monotonic() + 10
    while True:
        found = list(read_log(path.read_bytes()))
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        assert time.monotonic() < deadline, "the log was not ended"
        time.sleep(0.05)


def read_log(data: bytes) -> Iterator[Any]:
    """The records of a LevelDB log, whose blocks of 32 KiB start after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    position, record = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if position <= len(data) and kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def read_items(items: Any) -> dict[str, Any]:
    """A table of the items of a record, without W&B's own keys."""
    table: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        inner = table
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)
    return {key: value for key, value in table.items() if not key.startswith("_")}


def of_kind(folder: Path, kind: str) -> list[Any]:
    return [getattr(r, kind) for r in records(folder) if r.WhichOneof("record_type") == kind]


def history(folder: Path) -> list[dict[str, Any]]:
    """What was logged."""
    return [read_items(row.item) for row in of_kind(folder, "history")]


def described(folder: Path) -> Any:
    """The record that says which run it is."""
    return of_kind(folder, "run")[-1]


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for record in of_kind(folder, "summary"):
        found |= read_items(record.update)
    return found


def pictures() -> dict[str, Picture]:
    still, moving = Figure(figsize=(2, 1)), Figure(figsize=(1, 1))
    still.subplots().plot([0, 1])
    (line,) = moving.subplots().plot([0, 1], [0, 1])
    frames = FuncAnimation(moving, lambda i: line.set_data([0, i], [0, 1]), frames=3)
    # Pictures of one name must not take each other's place.
    return {
        "samples": Picture(name="samples", caption="Drawn.", figure=still),
        "film": Picture(name="samples", caption="Moving.", figure=frames),
    }


def test_run_and_configuration(tmp_path: Path) -> None:
    tracker = 'trackers=[{name="wandb", mode="offline", project="p", entity="e", group="g", '
    run = make_run(tmp_path / "first", tracker + 'tags=["a", "b"], run_name="mine"}]')
    start(run, "simulate").close({})
    (folder,) = offline_runs(run)
    told = described(folder)
    assert (told.project, told.entity, told.run_group) == ("p", "e", "g")
    assert (told.display_name, told.job_type, list(told.tags)) == ("mine", "simulate", ["a", "b"])
    assert read_items(told.config.update) == unstructure(run.experiment)


def test_defaults(tmp_path: Path) -> None:
    run = make_run(tmp_path / "first")
    start(run).close({})
    told = described(*offline_runs(run))
    assert (told.project, told.display_name, told.run_group) == ("sda", "first", "")
    assert not told.tags


def test_seeds_of_one_training_are_a_group(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "many" / f"seed-{i}") for i in range(2)]
    for run in runs:
        start(run).close({})
    told = [described(*offline_runs(run)) for run in runs]
    assert [t.run_group for t in told] == ["many", "many"]
    assert [t.display_name for t in told] == ["seed-0", "seed-1"]
    assert told[0].run_id != told[1].run_id


def test_values_at_their_steps(tmp_path: Path) -> None:
    """Also where steps go back to a checkpoint's; numbers that are not finite are kept as such."""
    run = make_run(tmp_path)
    session = start(run)
    session.log({"loss": 3.0, "skipped": 2}, 10)
    session.log({"loss": float("nan")}, 20)
    session.log({"loss": 2.0, "loss_t0": float("inf")}, 15)
    session.log({"gradients": Histogram(counts=(3, 1), edges=(-1, 0, 2))}, 15)
    session.close({"seconds": 1.5, "scores": {"rmse": 0.1}})
    (folder,) = offline_runs(run)
    assert [row["step"] for row in history(folder)] == [10, 20, 15, 15]
    first, second, third, last = history(folder)
    assert first == {"step": 10, "loss": 3.0, "skipped": 2.0}
    assert math.isnan(second["loss"])
    assert third == {"step": 15, "loss": 2.0, "loss_t0": math.inf}
    assert last["gradients"] == {"_type": "histogram", "values": [3, 1], "bins": [-1, 0, 2]}
    axes = of_kind(folder, "metric")
    assert [(a.glob_name, a.step_metric) for a in axes if a.glob_name] == [("*", "step")]
    assert summary(folder)["train"] == {"seconds": 1.5, "scores": {"rmse": 0.1}}


def test_pictures(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    session = start(run)
    session.log(pictures(), 7)
    session.close({})
    (folder,) = offline_runs(run)
    (row,) = history(folder)
    assert row["samples"]["_type"] == "image-file"
    assert row["film"]["_type"] == "video-file"
    assert [row[name]["caption"] for name in ("samples", "film")] == ["Drawn.", "Moving."]
    with Image.open(folder / "files" / row["samples"]["path"]) as still:
        assert still.format == "PNG"
        assert still.width > still.height
    with Image.open(folder / "files" / row["film"]["path"]) as film:
        assert (film.format, film.n_frames) == ("GIF", 3)


@pytest.mark.parametrize("upload", [True, False])
def test_model(upload: bool, tmp_path: Path) -> None:
    flag = str(upload).lower()
    tracker = f'trackers=[{{name="wandb", mode="offline", upload_model={flag}}}]'
    run = make_run(tmp_path, tracker)
    run.model.mkdir()
    for name in ("model.safetensors", "model.json"):
        (run.model / name).write_text(name)
    session = start(run)
    session.save_model(run.model)
    session.close({})
    (folder,) = offline_runs(run)
    found = of_kind(folder, "artifact")
    assert len(found) == upload
    for artifact in found:
        assert artifact.type == "model"
        assert artifact.name == f"model-{described(folder).run_id}"
        entries = {e.path: Path(e.local_path) for e in artifact.manifest.contents}
        assert entries == {p.name: p for p in run.model.iterdir()}


def test_stages_are_one_run(tmp_path: Path) -> None:
    for stage in ("simulate", "train", "evaluate"):
        session = start(make_run(tmp_path), stage)
        session.log({"loss": 1.0}, 1)
        session.close({"seconds": 1.0})
    run = make_run(tmp_path)
    told = [described(folder) for folder in offline_runs(run)]
    assert [t.job_type for t in told] == ["simulate", "train", "evaluate"]
    (identity,) = {t.run_id for t in told}
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": identity}


@pytest.mark.parametrize(
    ("results", "error", "code"),
    [
        ({}, None, 0),
        (None, TrainingError("the loss rose"), 1),
        (None, None, 1),
        (None, StoppedError("stopped at step 3"), 0),
    ],
)
def test_how_it_ended(results: Any, error: Any, code: int, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    start(run).close(results, error)
    (folder,) = offline_runs(run)
    assert [end.exit_code for end in of_kind(folder, "exit")] == [code]
    assert ("train" in summary(folder)) == (results is not None)


def test_the_end_waits_for_the_model_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that is asked to stop has little time; models are uploaded at good ends only."""
    import wandb

    waited: list[int] = []

    def wait(artifact: object, timeout: int) -> None:
        waited.append(timeout)
        raise wandb.Error("it timed out")

    run = make_run(tmp_path)
    run.model.mkdir()
    session = start(run)
    assert 0 < session._run.settings.finish_timeout <= 20  # type: ignore[attr-defined]
    monkeypatch.setattr(wandb.Artifact, "wait", wait)
    session.save_model(run.model)
    assert waited == []  # what is offline is not waited for
    monkeypatch.setattr(wandb.Run, "offline", False)
    with pytest.warns(TrackingWarning, match="the model may not be on W&B: it timed out"):
        session.save_model(run.model)
    assert waited == [300]
    session.close({})


def test_two_runs_at_a_time(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("a", "b")]
    sessions = [start(run) for run in runs]
    for loss, session in enumerate(sessions):
        session.log({"loss": float(loss)}, 1)
    for session in sessions:
        session.close({})
    assert [history(*offline_runs(run)) for run in runs] == [
        [{"loss": 0.0, "step": 1}],
        [{"loss": 1.0, "step": 1}],
    ]


def test_an_address_is_announced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    monkeypatch.setattr(wandb.Run, "url", "https://wandb.test/run")
    for _ in range(2):
        run = make_run(tmp_path)
        run.progress = True
        start(run).close({})
    told = capsys.readouterr()
    assert told.err == "tracked at https://wandb.test/run\n"
    assert told.out == ""


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_record_of_the_run(text: str, tmp_path: Path) -> None:
    (tmp_path / "wandb.json").write_text(text)
    with pytest.raises(DataError, match=r"wandb\.json does not say which W&B run .*: delete it"):
        start(make_run(tmp_path))


def test_a_wrong_mode() -> None:
    with pytest.raises(ConfigError, match="mode"):
        load_experiment("lorenz63-quick", ['trackers=[{name="wandb", mode="ofline"}]'])


def test_a_training(tmp_path: Path) -> None:
    """Reports and epochs, histograms, samples, results and model are there."""
    settings = [
        "data.trajectories=16",
        "data.length=40",
        "data.burn_in=4",
        "kernel.width=8",
        "kernel.heads=1",
        "kernel.blocks=1",
        "train.epochs=4",
        "train.batch_size=8",
        "train.validate_every=2",
        "train.report_every=1",
        "train.histograms=true",
        "train.checkpoint_every=1",
        "train.sample_every=4",
        "sample.members=2",
        "sample.length=33",
        "sampler.steps=2",
    ]
    experiment = load_experiment("lorenz63-quick", [*settings, OFFLINE])
    simulate(experiment, tmp_path, progress=False)
    train(experiment, tmp_path, progress=False)
    run = make_run(tmp_path)
    _, folder = offline_runs(run)
    lines = [json.loads(s) for s in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = history(folder)
    for event, name in (("report", "windows_per_second"), ("epoch", "steps_per_second")):
        given = [(s["step"], pytest.approx(s[name])) for s in lines if s["event"] == event]
        logged = f"{event}/{name}"
        assert [(row["step"], row[logged]) for row in rows if logged in row] == given
    assert [row["step"] for row in rows if "epoch/samples/trajectories" in row] == [8]
    assert any(name.startswith("report/gradients/") for name in rows[0])
    assert summary(folder)["train"]["seconds"] > 0
    (artifact,) = of_kind(folder, "artifact")
    assert {e.path for e in artifact.manifest.contents} == {"model.json", "model.safetensors"}


# --- in a process of its own, as a user who is not logged in ---

CHILD = """
import os, signal, socket, sys
from pathlib import Path
from sda_core.experiment import load_experiment
from sda_core.experiment import Run

def refuse(host, *rest, **more):
    print("asked for the address of", host, file=sys.stderr)
    raise OSError("no network")

socket.getaddrinfo = refuse
experiment = load_experiment("lorenz63-quick", [sys.argv[1]])
assert "wandb" not in sys.modules
run = Run(experiment, Path("run"))
session = experiment.trackers[0].open(run, "train")
session.log({"loss": 1.0}, 1)
if len(sys.argv) > 2:
    os.kill(os.getpid(), signal.SIGKILL)
session.close({})
print("done")
"""


def child(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "NETRC"))}
    return subprocess.run(
        [sys.executable, "-c", CHILD, *arguments],
        env={**kept, "HOME": str(folder), **environment},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


NOWHERE = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_HTTP_TIMEOUT": "1"}


@pytest.mark.parametrize(
    ("login", "problem"),
    [({}, "there is no login"), ({"WANDB_API_KEY": "a" * 40}, "Failed to authenticate with http")],
    ids=["no login", "no server"],
)
def test_what_cannot_be_online_is_recorded_offline(
    login: dict[str, str], problem: str, tmp_path: Path
) -> None:
    done = child(tmp_path, 'trackers=[{name="wandb"}]', **NOWHERE, **login)
    assert done.stdout == "done\n", done.stderr
    assert f"{TrackingWarning.__name__}: not online on W&B: {problem}" in done.stderr
    (folder,) = offline_runs(make_run(tmp_path / "run"))
    assert history(folder) == [{"loss": 1.0, "step": 1}]


def test_offline_is_silent_and_uses_no_network(tmp_path: Path) -> None:
    done = child(tmp_path, OFFLINE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert len(offline_runs(make_run(tmp_path / "run"))) == 1


def test_a_killed_run_is_gone_on_with(tmp_path: Path) -> None:
    killed = child(tmp_path, 'trackers=[{name="wandb"}]', "kill", WANDB_MODE="offline")
    assert (killed.returncode, killed.stderr) == (-signal.SIGKILL, "")
    run = make_run(tmp_path / "run")
    session = start(run)
    session.log({"loss": 2.0}, 1)
    session.close({})
    first, last = offline_runs(run)
    assert first.name.rpartition("-")[2] == described(last).run_id
    assert history(last) == [{"loss": 2.0, "step": 1}]
