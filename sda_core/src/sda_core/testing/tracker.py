"""What every tracker promises."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from matplotlib.animation import FuncAnimation
from matplotlib.figure import Figure

from sda_core.errors import StoppedError, TrainingError
from sda_core.experiment import Experiment, Run
from sda_core.figures import Picture
from sda_core.plugins import Component, PluginManager, hookimpl
from sda_core.testing.chain import GaussianChain
from sda_core.testing.promises import keep, require
from sda_core.tracker import Histogram, Session, Tracker, Value


class _Plugin:
    sda_interface = 1

    @hookimpl
    def sda_register_components(self) -> list[Component]:
        target = f"{GaussianChain.__module__}:{GaussianChain.__name__}"
        return [Component("system", "gaussian-chain", target)]


@contextmanager
def _run() -> Iterator[Run]:
    """A run in a directory of its own."""
    with TemporaryDirectory() as folder:
        manager = PluginManager((), {"testing": _Plugin()})
        yield Run(Experiment(system=GaussianChain()), Path(folder), manager, progress=False)


@contextmanager
def _session(tracker: Tracker, stage: str = "train") -> Iterator[Session]:
    with _run() as run:
        yield tracker.open(run, stage)


def _pictures() -> dict[str, Value]:
    still, moving = Figure(figsize=(1, 1)), Figure(figsize=(1, 1))
    (line,) = moving.subplots().plot([0, 1], [0, 1])
    frames = FuncAnimation(moving, lambda i: line.set_data([0, i], [0, 1]), frames=2)
    animation = Picture(name="moving", caption="An animation.", figure=frames)
    with TemporaryDirectory() as folder:
        animation.save(Path(folder))  # matplotlib warns of animations that nobody looked at
    return {
        "samples/still": Picture(name="still", caption="A figure.", figure=still),
        "samples/moving": animation,
    }


def _values(tracker: Tracker) -> None:
    """Numbers, histograms and pictures are taken, together and one by one."""
    histogram = Histogram(counts=(0, 3, 1), edges=(-1, 0, 0.5, 2))
    values: dict[str, Value] = {"loss": 0.5, "skipped": 0, "gradients/input": histogram}
    values |= _pictures()
    with _session(tracker) as session:
        session.log(values, 10)
        for name, value in values.items():
            session.log({name: value}, 20)
        session.log({}, 30)
        session.close({"seconds": 1.5, "stopped": "no", "scores": {"rmse": 0.1}})


def _not_finite(tracker: Tracker) -> None:
    """Numbers that are not finite are taken."""
    with _session(tracker) as session:
        session.log({"loss": float("nan"), "loss_t0": float("inf"), "grad_norm": -float("inf")}, 1)
        session.close({"loss": float("nan")})


def _steps(tracker: Tracker) -> None:
    """Steps may start anywhere, stay, and go back."""
    with _session(tracker) as session:
        for step in (30, 30, 40, 10, 20, 0):
            session.log({"loss": float(step)}, step)
        session.close({})


def _model(tracker: Tracker) -> None:
    """A trained model is taken, and left as it is."""
    with _run() as run:
        run.model.mkdir()
        for name in ("model.safetensors", "model.json"):
            (run.model / name).write_text(name)
        session = tracker.open(run, "train")
        session.save_model(run.model)
        session.close({})
        left = {path.name: path.read_text() for path in run.model.iterdir()}
        require(all(text == name for name, text in left.items()), f"it changed to {left}")
        require(len(left) == 2, f"there is {sorted(left)} now")


def _failure(tracker: Tracker) -> None:
    """A stage may fail or be stopped, before or after something was logged."""
    for values in ({}, {"loss": 1.0}):
        for error in (TrainingError("the loss rose"), StoppedError("stopped"), KeyboardInterrupt()):
            with _session(tracker) as session:
                if values:
                    session.log(values, 1)
                session.close(None, error)


def _again(tracker: Tracker) -> None:
    """A run is resumed, in the same stage and in others."""
    with _run() as run:
        for stage in ("simulate", "train", "train", "evaluate"):
            session = tracker.open(run, stage)
            session.log({"loss": 1.0}, 5)
            session.close({"seconds": 1.0})


def _side_effects(tracker: Tracker) -> None:
    """Nothing is printed on stdout; signals, exit and random numbers stay as they are."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    hooks = sys.excepthook, sys.exit
    state, printed = torch.get_rng_state(), io.StringIO()
    with redirect_stdout(printed), _session(tracker) as session:
        session.log({"loss": 1.0, **_pictures()}, 1)
        session.close({"seconds": 1.0})
    require(not printed.getvalue(), f"it printed {printed.getvalue()!r}")
    require(
        before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)),
        "it changed what signals do",
    )
    require(hooks == (sys.excepthook, sys.exit), "it replaced sys.excepthook or sys.exit")
    require(torch.equal(torch.get_rng_state(), state), "it drew from torch's global state")


PROMISES = (_values, _not_finite, _steps, _model, _failure, _again, _side_effects)


def check_tracker(tracker: Tracker) -> None:
    """Check what every tracker promises, in run directories that are deleted afterwards.

    Args:
        tracker: The tracker; where it would use a network, configured to do without.

    Raises:
        AssertionError: A promise is broken; says which, and how.
    """
    keep(PROMISES, tracker)
