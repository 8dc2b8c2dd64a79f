"""What composing windows costs, against exact answers and the composition itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

from sda_core import load_experiment, stages
from sda_core.denoiser import Denoiser, MarkovBlanketDenoiser, fold_weights, window_starts
from sda_core.denoiser.composition_error import (
    CompositionError,
    composition_error,
    noise_levels,
    position_weights,
)
from sda_core.errors import CheckpointError, DataError, ShapeError
from sda_core.random import MemberNoise
from sda_core.schedule import VE, VP
from sda_core.testing import (
    GaussianChain,
    GaussianDenoiser,
    affine_map,
    linear_gaussian_moments,
)

FOLDS = ("center", "average")


class Mixing(Denoiser):
    """Mixes the times of a window, and is not linear."""

    def __init__(self, window: int) -> None:
        super().__init__(VP())
        random = torch.Generator().manual_seed(0)
        self.mix = torch.randn(window, window, generator=random, dtype=torch.float64)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ij,bj...->bi...", self.mix, x_t + t).tanh() + x_t.sum(2, True)


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _chain(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (L, 2) and covariance (2 L, 2 L) of a stationary chain."""
    mean, covariance = linear_gaussian_moments(GaussianChain(), length, 64)
    return mean.reshape(length, 2), covariance


def _exact_window(window: int) -> GaussianDenoiser:
    return GaussianDenoiser(*_chain(window), VP())


def _exact_products(window: int, t: torch.Tensor) -> torch.Tensor:
    """G in closed form, from the middle state of a trajectory that has all of its windows."""
    length, state = 2 * window - 1, window - 1
    covariance = _chain(length)[1]
    denoiser = _exact_window(window)

    def estimates(x_t: torch.Tensor) -> torch.Tensor:
        found = [denoiser(x_t[:, state - j :][:, :window], t)[:, j] for j in range(window)]
        return torch.stack(found, 1)

    # e = N x_t - x_0, about its mean 0, with x_t = alpha x_0 + sigma eps; rows (W, C).
    N, _ = affine_map(estimates, (length, 2))
    alpha, sigma = VP().alpha(t), VP().sigma(t)
    from_x = (alpha * N).reshape(window, 2, -1)
    from_x[:, :, 2 * state : 2 * state + 2] -= torch.eye(2)
    from_eps = (sigma * N).reshape(window, 2, -1)
    products = torch.einsum("jca,ab,lcb->jl", from_x, covariance, from_x)
    return (products + torch.einsum("jca,lca->jl", from_eps, from_eps)) / 2


@pytest.fixture(scope="module")
def measured() -> CompositionError:
    window, trajectories, length = 7, 400, 19
    mean, covariance = _chain(length)
    x = mean + (_normal(trajectories, 2 * length) @ torch.linalg.cholesky(covariance).T).unflatten(
        1, (length, 2)
    )
    times = noise_levels(VP(), 5)
    return composition_error(_exact_window(window), window, x, times, seed=3)


def test_it_is_the_posterior_variance_of_a_linear_chain(measured: CompositionError) -> None:
    """The error at a position is the variance of a state given the noised window."""
    window = measured.window
    C = _chain(window)[1]
    errors = measured.products.diagonal(dim1=-2, dim2=-1)  # (N, T, W)
    mean, std_error = errors.mean(0), errors.std(0) / len(errors) ** 0.5
    for level, t in enumerate(measured.times):
        alpha, sigma = VP().alpha(t), VP().sigma(t)
        S = alpha**2 * C + sigma**2 * torch.eye(len(C))
        posterior = C - alpha**2 * C @ torch.linalg.solve(S, C)
        variance = posterior.diagonal().reshape(window, 2).mean(1)
        assert ((mean[level] - variance).abs() < 4 * std_error[level]).all()
        central = variance[window // 2]
        assert measured.full.value[level] == pytest.approx(float(central), rel=0.1)
        for b in range(window // 2):
            expected = (variance[b] + variance[window - 1 - b]) / 2 / central - 1
            found = measured.excess_at(b)
            assert abs(found.value[level] - expected) < 4 * found.std_error[level]
    at_ends = measured.excess_at(0)
    assert at_ends.value[2] > max(0.2, 20 * float(at_ends.std_error[2]))  # precise enough to fail


@pytest.mark.parametrize("fold", FOLDS)
def test_compositions_have_their_closed_form(measured: CompositionError, fold: str) -> None:
    window = measured.window
    exact = torch.stack([_exact_products(window, t) for t in measured.times])
    truth = CompositionError(
        window=window,
        times=measured.times,
        noise=measured.noise,
        products=exact.expand(2, *exact.shape),
    )
    for stride in range(1, window + 1):
        for quantity in (CompositionError.excess, CompositionError.difference):
            value, std_error = quantity(measured, stride, fold)
            expected = quantity(truth, stride, fold).value
            assert ((value - expected).abs() <= 4 * std_error + 1e-12).all()
    # Windows of one centre are nested, so that errors grow as blankets shrink.
    largest = [truth.worst_excess(stride, "center") for stride in range(1, window + 1)]
    assert largest[0] == 0
    assert largest[::2] == sorted(largest[::2])


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize(("window", "stride"), [(5, 1), (5, 2), (5, 5), (6, 1), (6, 4), (3, 3)])
def test_it_is_the_error_of_the_composition(window: int, stride: int, fold: str) -> None:
    """Each state composed by the denoiser of trajectories, at each phase."""
    denoiser, x, seed = Mixing(window), _normal(3, 2 * window + 2, 2, 3), 5
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    found = composition_error(denoiser, window, x, t, seed, chunk_size=4)
    composed = MarkovBlanketDenoiser(denoiser, window, stride, fold)
    central = MarkovBlanketDenoiser(denoiser, window)
    errors, apart, full = [], [], []
    for level in t:
        eps = MemberNoise(seed, range(3), x.dtype).normal(x.shape)
        x_t = VP().alpha(level) * x + VP().sigma(level) * eps
        for state in range(window - 1, x.shape[1] - window + 1):
            best = central(x_t, level)[:, state]
            full.append((best - x[:, state]).square().mean())
            for phase in range(stride):
                starts = [
                    s for s in range(state - window + 1, state + 1) if (s - phase) % stride == 0
                ]
                part = slice(starts[0], starts[-1] + window)
                estimate = composed(x_t[:, part], level)[:, state - starts[0]]
                errors.append((estimate - x[:, state]).square().mean())
                apart.append((estimate - best).square().mean())
    errors, apart, full = (torch.stack(v).reshape(2, -1).mean(1) for v in (errors, apart, full))
    torch.testing.assert_close(found.full.value, full)
    torch.testing.assert_close(found.excess(stride, fold).value, errors / full - 1)
    torch.testing.assert_close(found.difference(stride, fold).value, apart / full)


def test_a_trajectory_depends_on_its_number_alone() -> None:
    """Neither on the others nor on how many windows are evaluated at once."""
    denoiser, x, t = Mixing(5), _normal(4, 12, 2), torch.tensor([0.5], dtype=torch.float64)
    together = composition_error(denoiser, 5, x, t, 1)
    few = composition_error(denoiser, 5, x[:2], t, 1, chunk_size=3)
    torch.testing.assert_close(few.products, together.products[:2])


def test_standard_errors_are_those_of_the_ratio() -> None:
    """As many repetitions of the whole measurement scatter."""
    denoiser, t = Mixing(3), torch.tensor([0.5], dtype=torch.float64)
    x = _normal(2_000, 5, 2)
    runs = [composition_error(denoiser, 3, part, t, s) for s, part in enumerate(x.split(40))]
    estimates = [run.excess(3) for run in runs]
    scatter = torch.stack([e.value for e in estimates]).std()
    assert float(torch.stack([e.std_error for e in estimates]).mean() / scatter) == pytest.approx(
        1, abs=0.3
    )


@given(st.integers(1, 12), st.data(), st.sampled_from(FOLDS))
def test_weights_by_position(window: int, data: st.DataObject, fold: str) -> None:
    stride = data.draw(st.integers(1, window))
    weights = position_weights(window, stride, fold)
    assert weights.shape == (stride, window)
    torch.testing.assert_close(weights.sum(1), torch.ones(stride, dtype=torch.float64))
    used = weights > 0
    # Phases share out the positions; with ``average`` none is left out.
    assert (used.sum(0) <= 1).all()
    assert int(used.sum()) == (stride if fold == "center" else window)
    j = torch.arange(window)
    centrality = torch.minimum(j, window - 1 - j) + 1
    if fold == "center":
        assert sorted(centrality[used.any(0)]) == sorted(centrality)[window - stride :]
    else:
        for row, taken in zip(weights, used, strict=True):
            share = centrality[taken].double()
            torch.testing.assert_close(row[taken], share / share.sum())


@given(st.integers(1, 8), st.integers(0, 20), st.data())
def test_average_is_weighted_by_centrality(window: int, more: int, data: st.DataObject) -> None:
    """At the ends of a trajectory too, where fewer windows overlap."""
    length, stride = window + more, data.draw(st.integers(1, window))
    starts = window_starts(length, window, stride)
    weights = fold_weights(length, window, stride, "average")
    for i in range(length):
        inside = [n for n, s in enumerate(starts) if 0 <= i - s < window]
        share = [min(i - starts[n], window - 1 - i + starts[n]) + 1 for n in inside]
        found = [float(weights[n, i - starts[n]]) for n in inside]
        assert found == pytest.approx([s / sum(share) for s in share])


def test_averaged_members_do_not_depend_on_each_other() -> None:
    x, t = _normal(4, 12, 2), torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=torch.float64)
    together = MarkovBlanketDenoiser(MixingByMember(5), 5, 2, "average", chunk_size=3)(x, t)
    for i in range(4):
        alone = MarkovBlanketDenoiser(MixingByMember(5), 5, 2, "average")(
            x[i : i + 1], t[i : i + 1]
        )
        torch.testing.assert_close(alone, together[i : i + 1])


class MixingByMember(Mixing):
    """The same with one time per window."""

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return super().forward(x_t, t[:, None, None])


def test_noise_levels() -> None:
    noise = [VE(sigma_min=1e-3, sigma_max=50.0), VE(sigma_min=0.05, sigma_max=2.0)]
    wide, narrow = (s.sigma(noise_levels(s, 4)) for s in noise)
    expected = torch.logspace(math.log10(0.01), math.log10(30), 4, dtype=torch.float64)
    torch.testing.assert_close(wide, expected)
    expected = torch.logspace(math.log10(0.05), math.log10(2), 4, dtype=torch.float64)
    torch.testing.assert_close(narrow, expected)


def test_recommended_stride() -> None:
    """The largest that is good at every noise level, though a smaller one is not."""
    window = 5
    products = torch.ones(2, 2, window, window, dtype=torch.float64)  # all estimates are equal
    make = lambda products: CompositionError(  # noqa: E731
        window=window, times=torch.zeros(2), noise=torch.ones(2), products=products
    )
    assert make(products).recommended_stride(0.01) == 5
    e = torch.ones(2, 2, window, dtype=torch.float64)
    e[:, 1, 0] = e[:, 1, 4] = 1.2  # at one noise level only
    outer = make(e[..., :, None] * e[..., None, :])
    assert outer.recommended_stride(0.01) == 3
    assert outer.recommended_stride(0.2) == 5
    assert outer.worst_excess(5) == pytest.approx(2 * 0.44 / 5)
    assert outer.recommended_stride(0.0) is None


def test_errors() -> None:
    t = torch.tensor([0.5])
    with pytest.raises(ShapeError, match=r"3 trajectories of 8 states: give two or more.*9 states"):
        composition_error(Mixing(5), 5, _normal(3, 8, 2), t, 0)
    with pytest.raises(ShapeError, match="1 trajectories of 9 states"):
        composition_error(Mixing(5), 5, _normal(1, 9, 2), t, 0)


TINY = (
    "data.trajectories=12",
    "data.fractions=[0.5,0.25,0.25]",
    "data.length=24",
    "data.burn_in=8",
    "kernel.width=16",
    "kernel.blocks=1",
    "model.window=5",
    "model.stride=2",
    "train.epochs=1",
    "train.warmup_steps=0",
)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sda_core.cli import main
    from sda_core.figures.composition import composition_figure

    run = tmp_path / "run"
    experiment = load_experiment("lorenz63-quick", TINY)
    with pytest.raises(CheckpointError, match="train first"):
        stages.composition(experiment, run, progress=False)
    stages.simulate(experiment, run, progress=False)
    stages.train(experiment, run, progress=False)
    with pytest.raises(DataError, match=r"3 trajectories of 8 states are there.*at least 9"):
        stages.composition(experiment, run, length=8, progress=False)
    seen: list[tuple[int, int]] = []
    error = stages.composition(experiment, run, levels=3, progress=lambda *now: seen.append(now))
    assert error.products.shape == (3, 3, 5, 5)
    assert seen[-1] == (9, 9)
    assert (run / "figures" / "composition.png").stat().st_size > 10_000
    assert composition_figure(error, 0.0).axes
    found = json.loads((run / "composition.json").read_text())
    assert found["length"] == 13
    assert found["recommended_stride"] == {f: error.recommended_stride(0.01, f) for f in FOLDS}
    compositions = {(c["stride"], c["fold"]): c for c in found["compositions"]}
    assert set(compositions) == {(s, f) for s in range(1, 6) for f in FOLDS}
    assert (
        compositions[3, "average"]["excess"]["value"] == error.excess(3, "average").value.tolist()
    )
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["composition", str(run), "--levels", "3", "--tolerance", "1000", "--quiet"])
    shown = capsys.readouterr().out
    assert "Window 5, fold center: excess error in %" in shown
    assert "fold average: stride 5 is the largest within 100000 %" in shown
    assert "model.stride = 2 and model.fold = 'center'" in shown
    with pytest.raises(SystemExit):
        main(["composition", str(run), "--levels", "3", "--json", "-q"])
    assert json.loads(capsys.readouterr().out) == found
