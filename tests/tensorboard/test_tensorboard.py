"""What is in the event files, as TensorBoard itself reads them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tomllib
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from matplotlib.animation import FuncAnimation
from matplotlib.figure import Figure
from PIL import Image

from sda_core.config import unstructure
from sda_core.experiment import Run, load_experiment
from sda_core.figures import Picture
from sda_core.stages import simulate, train
from sda_core.tracker import Histogram, Session


def make_run(directory: Path, tracker: str = '{name="tensorboard"}') -> Run:
    experiment = load_experiment("lorenz63-quick", [f"trackers=[{tracker}]"])
    return Run(experiment, directory, progress=False)


def start(run: Run, stage: str = "train") -> Session:
    (tracker,) = run.experiment.trackers
    return tracker.open(run, stage)


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


def scalars(folder: Path, name: str = "loss") -> list[tuple[int, float]]:
    return [(e.step, e.value) for e in read(folder).Scalars(name)]


def texts(folder: Path) -> dict[str, tuple[int, str]]:
    """Newest texts by name, without the indentation that marks them as code."""
    events, found = read(folder), {}
    for name in events.Tags()["tensors"]:
        newest = events.Tensors(name)[-1]
        (text,) = newest.tensor_proto.string_val
        lines = text.decode().splitlines()
        assert all(line.startswith("    ") for line in lines)
        found[name.removesuffix("/text_summary")] = (newest.step, "\n".join(s[4:] for s in lines))
    return found


def test_numbers(tmp_path: Path) -> None:
    session = start(make_run(tmp_path))
    session.log({"loss": 3.0, "skipped": 2}, 10)
    session.log({"loss": math.nan, "loss_t0": math.inf}, 20)
    session.log({"valid/loss": 0.5}, 20)
    session.close({})
    folder = tmp_path / "tensorboard" / "train"
    (first, second) = scalars(folder)
    assert first == (10, 3.0)
    assert second[0] == 20
    assert math.isnan(second[1])
    assert scalars(folder, "skipped") == [(10, 2.0)]
    assert scalars(folder, "loss_t0") == [(20, math.inf)]
    assert scalars(folder, "valid/loss") == [(20, 0.5)]


def test_histogram(tmp_path: Path) -> None:
    session = start(make_run(tmp_path))
    session.log({"gradients": Histogram(counts=(3, 0, 1), edges=(-1, 0, 2, 4))}, 5)
    session.close({})
    (event,) = read(tmp_path / "tensorboard" / "train").Histograms("gradients")
    value = event.histogram_value
    assert event.step == 5
    assert (value.min, value.max, value.num) == (-1, 4, 4)
    assert (value.sum, value.sum_squares) == (3 * -0.5 + 3, 3 * 0.25 + 9)
    assert value.bucket_limit == [-1, 0, 2, 4]
    assert value.bucket == [0, 3, 0, 1]


def test_pictures(tmp_path: Path) -> None:
    still, moving = Figure(figsize=(2, 1)), Figure(figsize=(1, 1))
    (line,) = moving.subplots().plot([0, 1], [0, 1])
    frames = FuncAnimation(moving, lambda i: line.set_data([0, i], [0, 1]), frames=3)
    session = start(make_run(tmp_path))
    session.log({"still": Picture(name="a", caption="A figure.", figure=still)}, 7)
    session.log({"film": Picture(name="a", caption="An animation.", figure=frames)}, 8)
    session.close({})
    events = read(tmp_path / "tensorboard" / "train")
    for name, step, kind in (("still", 7, "PNG"), ("film", 8, "GIF")):
        (event,) = events.Images(name)
        assert event.step == step
        with Image.open(BytesIO(event.encoded_image_string)) as image:
            assert (image.format, image.size) == (kind, (event.width, event.height))
            assert getattr(image, "n_frames", 1) == (3 if kind == "GIF" else 1)


def test_configuration_and_results(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    session = start(run)
    session.log({"loss": 1.0}, 10)
    session.close({"seconds": 1.5, "scores": {"rmse": math.nan}})
    found = texts(tmp_path / "tensorboard" / "train")
    assert found["config"][0] == 0
    assert tomllib.loads(found["config"][1]) == unstructure(run.experiment)
    step, results = found["results"]
    assert step == 10
    assert json.loads(results)["seconds"] == 1.5


def test_each_stage_has_a_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for stage in ("simulate", "train"):
        start(run, stage).close({"seconds": 1.0})
    for stage in ("simulate", "train"):
        assert "results" in texts(tmp_path / "tensorboard" / stage)


def test_a_stage_that_failed_has_no_results(tmp_path: Path) -> None:
    session = start(make_run(tmp_path))
    session.log({"loss": 1.0}, 1)
    session.close(None)
    assert set(texts(tmp_path / "tensorboard" / "train")) == {"config"}


def test_repeated_steps_are_shown_once(tmp_path: Path) -> None:
    """After a kill (nothing is closed) the training goes on from the checkpoint of step 20."""
    killed = start(make_run(tmp_path))
    for step in (10, 20, 30, 40):
        killed.log({"loss": 1.0}, step)
    killed._writer.flush()  # type: ignore[attr-defined]
    folder = tmp_path / "tensorboard" / "train"
    assert len(scalars(folder)) == 4
    resumed = start(make_run(tmp_path))
    resumed.log({"loss": 2.0}, 30)
    resumed.close({})
    assert scalars(folder) == [(10, 1.0), (20, 1.0), (30, 2.0)]
    assert tomllib.loads(texts(folder)["config"][1])


def test_steps_that_were_rolled_back(tmp_path: Path) -> None:
    session = start(make_run(tmp_path))
    for step, loss in ((10, 1.0), (20, 9.0), (20, 8.0), (10, 2.0), (20, 3.0)):
        session.log({"loss": loss}, step)
    session.close({})
    assert scalars(tmp_path / "tensorboard" / "train") == [(10, 2.0), (20, 3.0)]


def test_steps_from_0_on_leave_the_configuration(tmp_path: Path) -> None:
    session = start(make_run(tmp_path))
    session.log({"loss": 1.0}, 0)
    session.close(None)
    folder = tmp_path / "tensorboard" / "train"
    assert scalars(folder) == [(0, 1.0)]
    assert set(texts(folder)) == {"config"}


def test_a_training_with_nothing_left_to_do_hides_nothing(tmp_path: Path) -> None:
    for values in ({"loss": 1.0}, {}):
        session = start(make_run(tmp_path))
        if values:
            session.log(values, 10)
        session.close({})
    assert scalars(tmp_path / "tensorboard" / "train") == [(10, 1.0)]


@pytest.mark.parametrize("place", ["events", "/elsewhere"])
def test_directory(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere" if place.startswith("/") else tmp_path / "run" / place
    given = str(folder) if place.startswith("/") else place
    session = start(make_run(tmp_path / "run", f'{{name="tensorboard", directory="{given}"}}'))
    session.log({"loss": 1.0}, 10)
    session.close({})
    assert scalars(folder / "train") == [(10, 1.0)]


def reported(directory: Path, event: str, name: str) -> list[tuple[int, float]]:
    lines = [json.loads(s) for s in (directory / "metrics.jsonl").read_text().splitlines()]
    return [(s["step"], pytest.approx(s[name])) for s in lines if s["event"] == event]


def test_a_training_that_is_stopped_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is all there, and each step once."""
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
    experiment = load_experiment("lorenz63-quick", [*settings, 'trackers=[{name="tensorboard"}]'])
    simulate(experiment, tmp_path, progress=False)
    log = Run.log_values

    def fail(self: Run, event: str, epoch: int, step: int, values: Any) -> None:
        log(self, event, epoch, step, values)
        if (event, step) == ("report", 5):  # the newest checkpoint is that of step 4
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "log_values", fail)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, tmp_path, progress=False)
    folder = tmp_path / "tensorboard" / "train"
    assert [step for step, _ in scalars(folder, "report/windows_per_second")] == [1, 2, 3, 4, 5]
    monkeypatch.undo()
    train(experiment, tmp_path, progress=False)
    for event, name in (("report", "windows_per_second"), ("epoch", "steps_per_second")):
        assert scalars(folder, f"{event}/{name}") == reported(tmp_path, event, name)
    assert [step for step, _ in scalars(folder, "report/windows_per_second")] == [*range(1, 9)]
    assert [step for step, _ in scalars(folder, "epoch/valid_loss")] == [4, 8]
    events = read(folder)
    assert len(events.Images("epoch/samples/trajectories")) == 1
    assert any(name.startswith("report/gradients/") for name in events.Tags()["histograms"])
    assert json.loads(texts(folder)["results"][1])["seconds"] > 0


def test_configuring_imports_no_tensorboard() -> None:
    code = (
        "import sys\n"
        "from sda_core.experiment import load_experiment\n"
        "(t,) = load_experiment('lorenz63-quick', ['trackers=[{name=\"tensorboard\"}]']).trackers\n"
        "assert type(t).__name__ == 'TensorBoard'\n"
        "assert 'tensorboard' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
