"""What a training reports of itself, and what plugins add to it."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from sda_core import stages
from sda_core.config import structure
from sda_core.data import Standardization, TrajectoryStore, WindowDataset
from sda_core.denoiser import WindowDenoiser
from sda_core.evaluation import diagnostics
from sda_core.evaluation.diagnostics import (
    BINS,
    MAX_BLOCKS,
    batch_diagnostics,
    histogram,
    network_blocks,
    sample_diagnostics,
    training_trajectories,
)
from sda_core.evaluation.metrics import log_prior
from sda_core.experiment import Experiment, Run
from sda_core.figures import Picture
from sda_core.plugins import PluginManager, hookimpl
from sda_core.schedule import VP
from sda_core.tracker import Histogram
from sda_core.training import TrainConfig, Trainer

from .data_systems import Swing, Walk, make

WINDOW = 3


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2 * WINDOW + 1, 16)
        self.body = nn.Sequential(nn.SiLU(), nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 16))
        self.tail = nn.Linear(16, 2 * WINDOW)

    def forward(self, x, t):
        h = self.head(torch.cat((x.flatten(1), t[:, None]), 1))
        return self.tail(h + self.body(h)).reshape(x.shape)


@pytest.fixture(scope="module")
def swings(tmp_path_factory) -> Path:
    return make(Swing(), tmp_path_factory.mktemp("swings"), trajectories=40)


def _trainer(data: Path, **settings) -> Trainer:
    windows = [
        WindowDataset(TrajectoryStore(data / f"{split}.h5"), WINDOW) for split in ("train", "valid")
    ]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = WindowDenoiser(Network(), VP(), WINDOW)
    trainer = Trainer(denoiser, *windows, TrainConfig(batch_size=8, **settings), seed=0)
    events = trainer.events()
    for _ in range(6):
        next(events)
    return trainer


def _norm(tensors) -> float:
    return math.sqrt(sum(float(x.detach().double().square().sum()) for x in tensors))


def test_norms(swings: Path) -> None:
    trainer = _trainer(swings, ema=0.9)
    values = batch_diagnostics(trainer)
    assert trainer.averaged is not None
    weights, averaged = (list(m.parameters()) for m in (trainer.denoiser, trainer.averaged))
    norm = _norm(weights)
    difference = _norm(a - w for a, w in zip(averaged, weights, strict=True))
    assert difference > 0
    assert values["param_norm"] == pytest.approx(norm, rel=1e-6)
    assert values["ema_distance"] == pytest.approx(difference / norm, rel=1e-5)
    assert set(values) == {"param_norm", "ema_distance", "memory_gib", "peak_memory_gib"}
    assert set(batch_diagnostics(_trainer(swings))) == set(values) - {"ema_distance"}


def test_memory_is_in_gibibytes(swings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "memory_in_use", lambda device: 3 * 2**29)
    monkeypatch.setattr(diagnostics, "peak_memory", lambda device: 2**32)
    values = batch_diagnostics(_trainer(swings))
    assert (values["memory_gib"], values["peak_memory_gib"]) == (1.5, 4)


def test_histograms_are_of_all_weights_and_gradients(swings: Path) -> None:
    trainer = _trainer(swings, histograms=True)
    values = batch_diagnostics(trainer)
    network = trainer.denoiser.kernel
    # The body has most weights, so that it is shown by its layers.
    blocks = {
        "kernel.head": network.head,
        "kernel.tail": network.tail,
        "kernel.body.1": network.body[1],
        "kernel.body.3": network.body[3],
    }
    histograms = {name: v for name, v in values.items() if isinstance(v, Histogram)}
    assert set(histograms) == {f"{k}/{b}" for k in ("weights", "gradients") for b in blocks}
    for name, block in blocks.items():
        parameters = list(block.parameters())
        for kind, tensors in (
            ("weights", parameters),
            ("gradients", [p.grad for p in parameters]),
        ):
            x = torch.cat([tensor.detach().flatten() for tensor in tensors]).numpy()
            found = histograms[f"{kind}/{name}"]
            assert (found.edges[0], found.edges[-1]) == (x.min(), x.max())
            assert sum(found.counts) == len(x)
            expected, edges = np.histogram(x.astype(np.float64), bins=BINS)
            np.testing.assert_allclose(found.edges, edges)
            np.testing.assert_array_equal(found.counts, expected)


def test_histogram_of_few_values() -> None:
    values = torch.tensor([-1.0, 1.0, 0.9, torch.nan, torch.inf, -torch.inf, 0.01])
    found = histogram([values[:2], values[2:].reshape(1, -1)])
    assert found is not None
    assert (found.edges[0], found.edges[-1]) == (-1, 1)
    where = {i: n for i, n in enumerate(found.counts) if n}
    assert where == {0: 1, BINS // 2: 1, BINS - 2: 1, BINS - 1: 1}
    same = histogram([torch.full((7,), 3.0)])
    assert same is not None
    assert (same.edges[0], same.counts[0]) == (3, 7)
    tiny = histogram([torch.tensor([0.0, 1e-40, 3e-40])])
    assert tiny is not None
    assert sum(tiny.counts) == 3
    assert histogram([torch.tensor([torch.nan])]) is None
    assert histogram([torch.zeros(0)]) is None


def _denoiser(kernel: nn.Module) -> WindowDenoiser:
    return WindowDenoiser(kernel, VP(), WINDOW)


def test_blocks_are_a_handful_and_hold_each_weight_once() -> None:
    def u_net(depth: int) -> nn.Module:
        parts = {"descent": nn.Linear(2**depth, 2**depth), "ascent": nn.Linear(2, 2)}
        if depth < 9:
            parts["below"] = u_net(depth + 1)
        return nn.ModuleDict(parts)

    many = nn.Sequential(*(nn.Linear(3, 3) for _ in range(MAX_BLOCKS + 1)))
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(9, 9), nn.ReLU()) for _ in range(3)))
    few = nn.ModuleDict({"head": nn.Linear(2, 2), "blocks": blocks})
    few.register_parameter("position", nn.Parameter(torch.zeros(4)))
    names = {
        many: {"kernel"},
        few: {"kernel.head", "kernel.position", *(f"kernel.blocks.{i}" for i in range(3))},
        nn.Linear(3, 3): {"kernel"},
        nn.Sequential(nn.Sequential(nn.Linear(3, 3))): {"kernel.0.0"},
    }
    for network, expected in names.items():
        assert set(network_blocks(_denoiser(network))) == expected
    for network in (*names, u_net(0)):
        found = network_blocks(_denoiser(network))
        assert len(found) <= MAX_BLOCKS
        held = [id(p) for block in found.values() for p in block]
        assert sorted(held) == sorted(id(p) for p in network.parameters())
    assert len(network_blocks(_denoiser(u_net(0)))) > 2


def _run(data: Path, system) -> SimpleNamespace:
    return SimpleNamespace(data=data, experiment=SimpleNamespace(system=system))


def _model(data: Path) -> SimpleNamespace:
    spec = TrajectoryStore(data / "train.h5").spec
    return SimpleNamespace(spec=spec, standardization=Standardization.from_spec(spec))


class GaussianSwing(Swing):
    """Steps with independent noise of variance 1, whatever the pendulum does."""

    def log_prob(self, x, x_next):
        return -((x_next - x) ** 2).sum(-1) / 2 - math.log(2 * math.pi)


def test_samples_of_a_system_without_grid(swings: Path) -> None:
    run, model = _run(swings, GaussianSwing()), _model(swings)
    samples = torch.randn(5, 12, 2, generator=torch.Generator().manual_seed(0))
    values = sample_diagnostics(run, model, samples)
    for i, name in enumerate(("q", "p")):
        x = (samples[:, :, i].double() - (0.0, 1.0)[i]) / (0.5, 2.0)[i]
        assert values[f"samples/mean_{name}"] == pytest.approx(float(x.mean()), abs=1e-6)
        deviation = float((x - x.mean()).square().mean().sqrt())
        assert values[f"samples/std_{name}"] == pytest.approx(deviation, rel=1e-6)
    data = TrajectoryStore(swings / "train.h5").read(slice(5))
    for name, x in (("log_prior", samples), ("log_prior_data", data)):
        steps = x.double().diff(dim=1).square().sum((1, 2)) / 2 + 11 * math.log(2 * math.pi)
        assert values[f"samples/{name}"] == pytest.approx(-float(steps.mean()), rel=1e-6)
        assert values[f"samples/{name}"] == float(log_prior(GaussianSwing(), x).mean())
    picture = values["samples/trajectories"]
    assert isinstance(picture, Picture)
    assert isinstance(picture.figure, Figure)
    axes = np.array(picture.figure.axes).reshape(2, 2)
    for c, (left, right) in enumerate(axes):
        for x, axis in ((samples, left), (data, right)):
            drawn = [line.get_ydata() for line in axis.lines]
            np.testing.assert_array_equal(drawn, x[:4, :, c])
            np.testing.assert_allclose(axis.lines[0].get_xdata(), 0.1 * np.arange(12))


def test_what_samples_are_compared_with(swings: Path) -> None:
    run = _run(swings, GaussianSwing())
    stored = TrajectoryStore(swings / "train.h5").read(slice(None))
    assert stored.shape == (32, 12, 2)
    some = training_trajectories(run, torch.zeros(3, 7, 2))
    torch.testing.assert_close(some, stored[:3, :7])
    torch.testing.assert_close(training_trajectories(run, torch.zeros(99, 50, 2)), stored)
    # No density of data is given that has fewer steps than the samples.
    values = sample_diagnostics(run, _model(swings), torch.zeros(99, 50, 2))
    assert "samples/log_prior" in values
    assert "samples/log_prior_data" not in values


def test_samples_of_a_grid_without_density(tmp_path: Path) -> None:
    data = make(Walk(), tmp_path)
    x = training_trajectories(_run(data, Walk()), torch.zeros(1000, 1000, 2, 4))
    values = sample_diagnostics(_run(data, Walk()), _model(data), x)
    # Walk is standardized by its data.
    expected = {"samples/mean_u": 0, "samples/std_u": 1, "samples/mean_T": 0, "samples/std_T": 1}
    assert values == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_samples_that_are_not_finite_end_no_training(
    swings: Path, tmp_path: Path, value: float
) -> None:
    samples = torch.full((5, 12, 2), value)
    values = sample_diagnostics(_run(swings, GaussianSwing()), _model(swings), samples)
    values["samples/trajectories"].save(tmp_path)
    assert math.isnan(values["samples/std_q"]) or value == 1e30


def _experiment(**train) -> Experiment:
    settings = {"epochs": 6, "batch_size": 8, "validate_every": 2, "report_every": 3} | train
    table = {
        "system": {"name": "noisy-lorenz63"},
        "data": {"trajectories": 40, "length": 8, "burn_in": 2},
        "kernel": {"name": "mlp", "width": 8, "depth": 1},
        "schedule": {"name": "vp"},
        "model": {"window": 3},
        "sampler": {"name": "ddim", "steps": 2},
        "sample": {"members": 2, "length": 4},
        "train": settings,
    }
    return structure(Experiment, table)


class Curious:
    """A plugin with numbers, histograms and pictures of its own, which writes down what it sees."""

    sda_interface = 1

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.contexts: dict[str, set[str]] = {}
        self.calls: Counter[str] = Counter()
        self.logged: list[tuple[int, dict]] = []

    @hookimpl
    def sda_diagnostics(self, stage, context):
        self.contexts[stage] = set(context)
        self.calls[stage] += 1
        return {
            f"own/{stage}": 1.5,
            f"own/{stage}_histogram": Histogram(counts=(1, 2), edges=(0, 1, 2)),
            f"own/{stage}_picture": Picture(name="own", caption="", figure=Figure()),
        }

    @hookimpl
    def sda_metrics_logged(self, step, values):
        self.logged.append((step, dict(values)))

    @hookimpl
    def sda_stop_training(self, metrics):
        done = self.stop_after is not None and metrics["epoch"] >= self.stop_after
        return "the plugin has seen enough" if done else None


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Trains with a plugin, and gives the events that are recorded."""

    def do(plugin: Curious, **settings) -> list[dict]:
        manager = PluginManager(plugins={"curious": plugin})
        monkeypatch.setattr("sda_core.experiment.run.default_manager", lambda: manager)
        experiment = _experiment(**settings)
        if not (tmp_path / "data").is_dir():
            stages.simulate(experiment, tmp_path, progress=False)
        stages.train(experiment, tmp_path, progress=False)
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return do


def test_what_a_plugin_gives_arrives(train, tmp_path: Path) -> None:
    plugin = Curious()
    events = train(plugin, sample_every=3)
    assert plugin.contexts["batch"] == {"trainer"}
    assert plugin.contexts["epoch"] == plugin.contexts["validation"] == {"trainer", "metrics"}
    assert plugin.contexts["training-samples"] == {"model", "samples"}
    # 32 trajectories are 4 steps in each of 6 epochs.
    expected = {
        "batch": [3, 6, 9, 12, 15, 18, 21, 24],
        "epoch": [4, 8, 12, 16, 20, 24],
        "validation": [8, 16, 24],
        "training-samples": [12, 24],
    }
    for stage, steps in expected.items():
        assert plugin.calls[stage] == len(steps)
        names = [f"own/{stage}", f"own/{stage}_histogram", f"own/{stage}_picture"]
        kind = "report" if stage == "batch" else "epoch"
        lines = [e for e in events if e["event"] == kind and names[0] in e]
        assert [e["step"] for e in lines] == steps
        for event in lines:
            where = f"figures/training/own-{stage}_picture/step-{event['step']:08d}.png"
            written = {"counts": [1, 2], "edges": [0, 1, 2]}
            assert [event[name] for name in names] == [1.5, written, where]
            assert (tmp_path / where).read_bytes()[1:4] == b"PNG"
        number, histogram, picture = (f"{kind}/{name}" for name in names)
        logged = [(step, values) for step, values in plugin.logged if number in values]
        assert [step for step, _ in logged] == steps
        for _, values in logged:
            assert values[number] == 1.5
            assert values[histogram] == Histogram(counts=(1, 2), edges=(0, 1, 2))
            assert isinstance(values[picture], Picture)


def test_the_core_reports_through_the_same_hook(train, tmp_path: Path) -> None:
    plugin = Curious()
    events = train(plugin, sample_every=6, histograms=True, ema=0.9)
    reports = [e for e in events if e["event"] == "report"]
    assert len(reports) == 8
    for name in ("param_norm", "ema_distance", "memory_gib", "peak_memory_gib", "loss"):
        assert all(e[name] > 0 for e in reports)
    weights = [name for name in reports[0] if name.startswith("weights/")]
    assert weights
    assert all(sum(e[name]["counts"]) > 0 for e in reports for name in weights)
    (sampled,) = (e for e in events if "samples/log_prior" in e)
    assert sampled["samples/log_prior"] < sampled["samples/log_prior_data"]
    assert (tmp_path / sampled["samples/trajectories"]).is_file()
    assert plugin.logged[-1][1].keys() >= {"epoch/samples/std_z", "epoch/samples/trajectories"}


def test_nothing_is_computed_at_other_steps(train, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, reports = [], []
    report = Trainer.report
    monkeypatch.setattr(diagnostics, "batch_diagnostics", lambda t: steps.append(t.step) or {})
    monkeypatch.setattr(Trainer, "report", lambda t: reports.append(t.step) or report(t))
    for name in ("network_blocks", "histogram", "sample_diagnostics"):
        monkeypatch.setattr(diagnostics, name, lambda *_: pytest.fail("nobody asked"))
    events = train(Curious(), report_every=7, histograms=True)
    assert steps == reports == [7, 14, 21]
    assert [e["step"] for e in events if e["event"] == "report"] == steps


def test_diagnostics_do_not_change_the_training(train, tmp_path: Path) -> None:
    train(Curious(), report_every=1000)
    weights = tmp_path / "model" / "model.safetensors"
    quiet = weights.read_bytes()
    for name in ("checkpoints", "model"):
        (tmp_path / name).rename(tmp_path / f"{name}-quiet")
    train(Curious(), report_every=1, histograms=True, sample_every=3)
    assert weights.read_bytes() == quiet


def test_a_plugin_ends_a_training(train, tmp_path: Path) -> None:
    plugin = Curious(stop_after=3)
    events = train(plugin)
    # It is asked at validations, which come every two epochs.
    epochs = [e["epoch"] for e in events if e["event"] == "epoch"]
    assert epochs == [1, 2, 3, 4]
    assert (tmp_path / "model" / "model.json").is_file()
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance["stages"]["train"]["steps"] == 16
    # Nothing more is trained when it is run again, though nobody ends it now.
    again = Curious()
    events = train(again)
    assert [e["epoch"] for e in events if e["event"] == "epoch"] == epochs
    assert again.calls.keys() <= {"train"}


def test_the_reason_of_an_end_is_kept_and_said(
    train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    monkeypatch.setattr("sda_core.training.progress.announce", lambda _, line: said.append(line))
    train(Curious(stop_after=2))
    assert said == ["training ends after epoch 2: the plugin has seen enough"]
    newest = Run(_experiment(), tmp_path).checkpoints.newest()
    assert newest is not None
    assert newest.state["ended"] == "the plugin has seen enough"


def test_patience_ends_a_training(train) -> None:
    """With a learning rate of nearly 0 no validation is better than the first."""
    events = train(Curious(), learning_rate=1e-30, weight_decay=0.0, patience=2, epochs=20)
    assert [e["epoch"] for e in events if e["event"] == "epoch"][-1] == 6
