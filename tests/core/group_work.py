"""Trainings for tests of groups, in a module, so that other processes can import it."""

from __future__ import annotations

import math
import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from sda_core.cluster import Local, WorkerChannel
from sda_core.data import TrajectoryStore, WindowDataset
from sda_core.denoiser import WindowDenoiser
from sda_core.plugins import hookimpl
from sda_core.schedule import VP
from sda_core.training import EpochMetrics, Group, Step, TrainConfig, Trainer

WINDOW = 3
SPEEDS = ("steps_per_second", "utilization")

#: Settings of trainings; there are 32 windows in an epoch.
CASES: dict[str, dict[str, Any]] = {
    # Batches of 7 and a last one of 4, none of which can be divided by 2 or 3.
    "uneven": {"batch_size": 7},
    # In parts, of which processes have different numbers.
    "parts": {
        "batch_size": 10,
        "accumulate": 5,
        "clip_norm": 0.05,
        "ema": 0.9,
        "variable_weights": (1.0, 3.0),
    },
    # One window is left for the last batch, and one for each of the last three validations.
    "idle": {"batch_size": 31, "optimizer": "sgd"},
    "skipped": {"batch_size": 7, "spoilt": 9},
    "half": {"batch_size": 7, "precision": "bfloat16"},
}


class Network(nn.Module):
    """A small network."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * WINDOW + 1, 16), nn.SiLU(), nn.Dropout(dropout), nn.Linear(16, 2 * WINDOW)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat((x.flatten(1), t[:, None]), 1)).reshape(x.shape)


class SpoiltTrainer(Trainer):
    """One window of the batch of one step holds a value that is not finite."""

    spoilt = 0

    def _train_on(self, x: Tensor) -> None:
        if self.step + 1 == self.spoilt:
            row = 5 - self.group.shard(self.config.batch_size).start
            if 0 <= row < len(x):
                x = x.clone()
                x[row, 0, 0] = math.nan
        super()._train_on(x)


def trainer(
    data: Path, group: Group | None = None, dropout: float = 0.0, spoilt: int = 0, **settings: Any
) -> Trainer:
    """A small training."""
    windows = [
        WindowDataset(TrajectoryStore(data / f"{split}.h5"), WINDOW) for split in ("train", "valid")
    ]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = WindowDenoiser(Network(dropout), VP(), WINDOW, "eps")
    settings = {"epochs": 4, "validate_every": 2, "learning_rate": 1e-2, **settings}
    made = SpoiltTrainer(denoiser, *windows, TrainConfig(**settings), 0, group)
    made.spoilt = spoilt
    return made


def curve(trainer: Trainer) -> list[dict[str, Any]]:
    """Train, and say what happens, but for speeds."""
    found = []
    for event in trainer.events():
        values = {k: v for k, v in attrs.asdict(event).items() if k not in SPEEDS}
        if isinstance(event, Step | EpochMetrics):
            values |= {"last_loss": trainer.last_loss, "norm": trainer.grad_norm}
        if isinstance(event, EpochMetrics):
            levels = trainer.report()
            values |= {k: v for k, v in levels.items() if k.startswith("loss")}
        found.append({"event": type(event).__name__, **values})
    return found


def stopped_after(trainer: Trainer, steps: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of a training after some steps."""
    events = trainer.events()
    while trainer.step < steps:
        if isinstance(next(events), EpochMetrics):
            trainer.report()
    tensors, state = trainer.state_dict()
    return {k: v.clone() for k, v in tensors.items()}, state


@attrs.frozen
class Train:
    """Train each case, and tell what happened; then go on with trainings that were stopped.

    Attributes:
        data: The data set.
        start: The state of a training of one process.
    """

    data: Path
    start: Any

    def __call__(self, channel: WorkerChannel) -> None:
        group = Group.current()

        def send(name: str, value: Any) -> None:
            mine = repr(value)  # numbers, with all their digits
            if group.broadcast(mine) != mine:
                raise AssertionError(f"{name}: process {group.rank} has {mine}")
            if group.is_main:
                channel.send((name, value))

        for name, settings in CASES.items():
            send(name, curve(trainer(self.data, group, **settings)))
        going_on = trainer(self.data, group, **CASES["parts"])
        going_on.load_state_dict(*self.start)
        send("from one", curve(going_on))
        stopped = stopped_after(trainer(self.data, group, **CASES["parts"]), 7)
        if group.is_main:
            channel.send(("stopped", stopped))

        # Random numbers of the kernel itself.
        noisy = {"dropout": 0.5, "batch_size": 7}
        undisturbed = curve(trainer(self.data, group, **noisy))
        state = group.broadcast(stopped_after(trainer(self.data, group, **noisy), 7))
        again = trainer(self.data, group, **noisy)
        again.load_state_dict(*state)
        send("noisy", (undisturbed, curve(again)))
        if group.is_main:
            channel.send(("listening", listening()))


def listening() -> list[str]:
    """The addresses at which this process listens, as Linux writes them."""
    own = {os.readlink(path) for path in _links(Path("/proc/self/fd"))}
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                found.append(fields[1].split(":")[0])
    return found


def _links(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_symlink()]


def hang(channel: WorkerChannel) -> None:
    """Tell the number of the process, and come to no end."""
    channel.send(os.getpid())
    time.sleep(600)


def die(channel: WorkerChannel) -> None:
    """Tell that it has begun, and die."""
    channel.send("begun")
    os.kill(os.getpid(), signal.SIGKILL)


def others() -> list[int]:
    """The other workers: those that the server has forked which forked this one, in this order."""
    server = os.getppid()
    text = Path(f"/proc/{server}/task/{server}/children").read_text()
    return [int(p) for p in text.split() if int(p) != os.getpid()]


@attrs.frozen
class Trouble:
    """A plugin that warns, kills a process of its group, once, and fails later."""

    folder: Path
    kill_after: int = 0
    own: bool = False
    fail_after: int = 0
    sda_interface = 1

    @hookimpl
    def sda_epoch_ended(self, metrics: dict[str, float]) -> None:
        with (self.folder / "seen").open("a") as file:
            file.write(f"{os.getpid()} {metrics['epoch']}\n")
        if metrics["epoch"] == 1:
            warnings.warn("a hook warns", stacklevel=1)
        if metrics["epoch"] == self.kill_after and not (self.folder / "killed").exists():
            (self.folder / "killed").touch()
            os.kill(os.getpid() if self.own else others()[-1], signal.SIGKILL)
        if metrics["epoch"] == self.fail_after:
            raise ZeroDivisionError(f"at epoch {self.fail_after}")


@attrs.frozen
class _Collapsing:
    work: Callable[[WorkerChannel], None]

    def __call__(self, channel: WorkerChannel) -> None:
        train_on = Trainer._train_on

        def collapse(trainer: Trainer, x: Tensor) -> None:
            if trainer.step + 1 == 156 and trainer.guards.rollbacks == 0:
                with torch.no_grad():
                    for p in trainer.denoiser.parameters():
                        p.mul_(10)
            train_on(trainer, x)

        Trainer._train_on = collapse  # type: ignore[method-assign]
        self.work(channel)


class Collapsing(Local):
    """Processes whose training collapses at step 156."""

    def run_distributed(self, work, **options):
        """Do work."""
        yield from super().run_distributed(_Collapsing(work), **options)
