"""The picture of a training, from its record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from sda_core.figures import learning_curve, write_learning_curve

#: Epochs of 10 steps.
LOSSES = {1: 0.9, 2: 0.7, 3: 0.4, 4: 0.45, 5: 0.44, 6: 0.41}
VALID = {2: 0.8, 4: 0.5, 6: 0.55}


def _epochs() -> list[dict]:
    return [
        {"event": "epoch", "epoch": e, "step": 10 * e, "loss": loss}
        | ({"valid_loss": VALID[e]} if e in VALID else {})
        for e, loss in LOSSES.items()
    ]


def _reports(count: int) -> list[dict]:
    return [
        {"event": "report", "epoch": 0, "step": 5 * (i + 1), "loss": 0.6 - i * 1e-3}
        | {f"loss_t{j}": (j + 1.0) * (i + 1) for j in range(8)}
        for i in range(count)
    ]


def _draw(tmp_path: Path, events: list[dict], end: str = "") -> Figure:
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps(event) + "\n" for event in events) + end)
    figure = learning_curve(log)
    assert figure is not None
    return figure


def _lines(axis) -> dict[str, np.ndarray]:
    return {line.get_label(): np.array(line.get_data()) for line in axis.lines}


def test_losses(tmp_path: Path) -> None:
    events = [{"event": "simulate", "seconds": 1.0}, *_epochs(), {"event": "train", "steps": 60}]
    (axis,) = _draw(tmp_path, events).axes
    lines = _lines(axis)
    assert set(lines) == {"training", "validation", "best: 0.5, epoch 4"}
    np.testing.assert_allclose(lines["training"], [[10 * e for e in LOSSES], list(LOSSES.values())])
    np.testing.assert_allclose(lines["validation"], [[20, 40, 60], [0.8, 0.5, 0.55]])
    np.testing.assert_allclose(lines["best: 0.5, epoch 4"].flatten(), [40, 0.5])
    assert axis.get_yscale() == "linear"
    assert axis.get_legend() is not None


def test_epochs_without_validation_and_old_files(tmp_path: Path) -> None:
    """Old files have an epoch for each validation, and null where there was no validation set."""
    events = [{**e, "valid_loss": None} for e in _epochs()]
    (axis,) = _draw(tmp_path, events).axes
    assert set(_lines(axis)) == {"training"}
    events = [e for e in _epochs() if e["epoch"] in VALID]
    # A training that was killed and resumed could repeat epochs: the later ones count.
    (axis,) = _draw(tmp_path, [{**events[0], "loss": 99.0}, *events], end='{"event": "epo').axes
    np.testing.assert_allclose(_lines(axis)["training"], [[20, 40, 60], [0.7, 0.45, 0.41]])


def test_loss_by_noise_level(tmp_path: Path) -> None:
    losses, levels, bar = _draw(tmp_path, [*_epochs(), *_reports(4)]).axes
    for j, line in enumerate(levels.lines):
        expected = [[5, 10, 15, 20], [(j + 1) * (i + 1) for i in range(4)]]
        np.testing.assert_allclose(line.get_data(), expected)
    assert len(levels.lines) == 8
    assert len({line.get_color().tobytes() for line in levels.lines}) == 8
    assert (losses.get_yscale(), levels.get_yscale()) == ("linear", "log")
    assert losses.get_xlim() == levels.get_xlim()
    assert bar.get_ylabel() == "diffusion time t (1: noise)"
    assert bar.get_ylim() == (0, 1)


def test_many_reports_are_averaged_and_may_miss_levels(tmp_path: Path) -> None:
    reports = _reports(250)
    for report in reports[:50]:
        del report["loss_t3"]
    losses, levels, _ = _draw(tmp_path, [*_epochs(), *reports]).axes
    counts = [line.get_xdata().size for line in levels.lines]
    assert counts == [100] * 8
    assert levels.lines[3].get_xdata()[0] == 5 * (50 + 1.5)
    steps, values = levels.lines[0].get_data()
    np.testing.assert_allclose(values, steps / 5)  # since means of a straight line are on it
    # Reports are finer than epochs here, so that the training loss is theirs.
    assert _lines(losses)["training"].shape == (2, 250)


def test_reports_alone_before_the_first_epoch_ends(tmp_path: Path) -> None:
    losses, *_ = _draw(tmp_path, _reports(3)).axes
    np.testing.assert_allclose(_lines(losses)["training"], [[5, 10, 15], [0.6, 0.599, 0.598]])


def test_what_went_wrong_is_marked(tmp_path: Path) -> None:
    wrong = [
        {"event": "skipped", "epoch": 1, "step": 13, "loss": float("nan")},
        {"event": "skipped", "epoch": 2, "step": 27, "loss": float("inf")},
        {"event": "rollback", "epoch": 3, "step": 30, "from_step": 37},
    ]
    losses, levels, _ = _draw(tmp_path, [*_epochs(), *_reports(4), *wrong]).axes
    lines = _lines(losses)
    np.testing.assert_allclose(lines["skipped batches (2)"][0], [13, 27])
    np.testing.assert_allclose(lines["rolled back"][0], [30, 30])
    np.testing.assert_allclose(levels.lines[-1].get_xdata(), [30, 30])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_losses_that_cannot_be_drawn_are_left_out(tmp_path: Path, bad: float) -> None:
    events = _epochs()
    events[0]["loss"] = events[0]["valid_loss"] = bad
    events += [{"event": "epoch", "epoch": 7, "step": 70, "loss": 1e-3, "valid_loss": 1e-3}]
    figure = _draw(tmp_path, events)
    assert figure.axes[0].get_yscale() == "log"
    assert write_learning_curve(tmp_path) == tmp_path / "figures" / "learning-curve.png"


def test_writing(tmp_path: Path) -> None:
    assert write_learning_curve(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text('{"event": "simulate", "seconds": 1.0}\n')
    assert write_learning_curve(tmp_path) is None
    _draw(tmp_path, _epochs())
    path = write_learning_curve(tmp_path)
    assert path == tmp_path / "figures" / "learning-curve.png"
    assert path.read_bytes()[1:4] == b"PNG"
