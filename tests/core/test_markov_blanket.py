"""Markov-blanket composition."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, strategies as st

from sda_core.denoiser import (
    Denoiser,
    MarkovBlanketDenoiser,
    WindowDenoiser,
    fold_weights,
    window_starts,
)
from sda_core.errors import ConfigError, ShapeError
from sda_core.guidance import Likelihood
from sda_core.kernel import WindowShape
from sda_core.method import peak_bytes
from sda_core.observation import Select
from sda_core.schedule import VP
from sda_core.testing import (
    GaussianChain,
    GaussianDenoiser,
    gaussian_problem,
    linear_gaussian_moments,
)
from sda_dps.mmps import MMPS
from sda_mlp.mlp import MLP


class Window(Denoiser):
    """Mixes times and variables within its window, each row on its own."""

    def __init__(self, window) -> None:
        super().__init__(VP())
        random = torch.Generator().manual_seed(0)
        self.mix = torch.randn(window, window, generator=random, dtype=torch.float64)
        self.sizes = []

    def forward(self, x_t, t):
        self.sizes.append(len(x_t))
        t = t.expand(len(x_t)).reshape(-1, *(1,) * (x_t.ndim - 1))
        return torch.einsum("ij,bj...->bi...", self.mix, x_t + t).tanh() + 0.1 * x_t.sum(2, True)


def _x(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _paper_fold(windows: torch.Tensor) -> torch.Tensor:
    """Algorithm 2: the first half of the first window, all centres, the last half of the last."""
    k = windows.shape[1] // 2
    return torch.cat((windows[0, :k], windows[:, k], windows[-1, k + 1 :]))


@st.composite
def sizes(draw):
    window = draw(st.integers(1, 12))
    length = draw(st.integers(window, 40))
    stride = draw(st.integers(1, window))
    return length, window, stride


@given(sizes())
def test_windows_cover_the_trajectory(size) -> None:
    length, window, stride = size
    starts = window_starts(length, window, stride)
    assert starts[0] == 0
    assert starts[-1] == length - window
    gaps = [b - a for a, b in pairwise(starts)]
    assert all(0 < gap <= stride for gap in gaps)
    assert {s + j for s in starts for j in range(window)} == set(range(length))


@given(sizes(), st.sampled_from(["center", "average"]))
def test_weights_sum_to_one_at_each_time(size, fold) -> None:
    length, window, stride = size
    weights = fold_weights(length, window, stride, fold)
    total, most = torch.zeros(length, dtype=torch.float64), [0] * length
    for start, row in zip(window_starts(length, window, stride), weights, strict=True):
        total[start : start + window] += row
        for j in range(window):
            most[start + j] = max(most[start + j], min(j, window - 1 - j))
    torch.testing.assert_close(total, torch.ones(length, dtype=torch.float64))
    assert (weights >= 0).all()
    if fold == "center":
        assert ((weights == 0) | (weights == 1)).all()
        for start, row in zip(window_starts(length, window, stride), weights, strict=True):
            for j in row.nonzero().flatten().tolist():
                assert min(j, window - 1 - j) == most[start + j]


@given(sizes(), st.sampled_from(["center", "average"]), st.integers(1, 7))
def test_composition(size, fold, chunk) -> None:
    """Time by time, as the weights say; whatever the chunk size."""
    length, window, stride = size
    inner = Window(window)
    x, t = _x(2, length, 2), torch.tensor([0.2, 0.6], dtype=torch.float64)
    composed = MarkovBlanketDenoiser(inner, window, stride, fold)
    out = composed(x, t)
    expected = torch.zeros_like(x)
    weights = fold_weights(length, window, stride, fold)
    for start, row in zip(window_starts(length, window, stride), weights, strict=True):
        part = inner(x[:, start : start + window], t)
        expected[:, start : start + window] += row[:, None] * part
    torch.testing.assert_close(out, expected)
    inner.sizes.clear()
    chunked = MarkovBlanketDenoiser(inner, window, stride, fold, chunk_size=chunk)(x, t)
    torch.testing.assert_close(chunked, out)
    assert max(inner.sizes) <= chunk


@pytest.mark.parametrize("window", [1, 3, 5, 9])
@pytest.mark.parametrize("grid", [(), (4,)])
def test_stride_1_is_the_fold_of_the_paper(window, grid) -> None:
    inner = Window(window)
    x, t = _x(3, 9, 2, *grid), torch.tensor(0.3, dtype=torch.float64)
    out = MarkovBlanketDenoiser(inner, window)(x, t)
    for member, result in zip(x, out, strict=True):
        windows = torch.stack([member[i : i + window] for i in range(9 - window + 1)])
        torch.testing.assert_close(result, _paper_fold(inner(windows, t)))


@pytest.mark.parametrize("fold", ["center", "average"])
@pytest.mark.parametrize("stride", [1, 4, 7])
def test_one_window_is_no_approximation(stride, fold) -> None:
    inner = Window(7)
    x, t = _x(3, 7, 2), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(MarkovBlanketDenoiser(inner, 7, stride, fold)(x, t), inner(x, t))


def test_members_do_not_depend_on_each_other() -> None:
    composed = MarkovBlanketDenoiser(Window(5), 5, 2, chunk_size=4)
    x, t = _x(4, 12, 2), torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=torch.float64)
    together = composed(x, t)
    for i in range(4):
        torch.testing.assert_close(composed(x[i : i + 1], t[i : i + 1]), together[i : i + 1])


def test_it_is_differentiable() -> None:
    x = _x(1, 9, 2).requires_grad_()
    composed = MarkovBlanketDenoiser(Window(5), 5, 2)
    t = torch.tensor(0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: composed(x, t), x)


@given(
    sizes(),
    st.sampled_from(["center", "average"]),
    st.integers(1, 3),
    st.integers(1, 40),
    st.booleans(),
)
def test_chunks_change_neither_result_nor_gradient(size, fold, batch, chunk, one_time) -> None:
    length, window, stride = size
    inner = Window(window)
    x = _x(batch, length, 2).requires_grad_()
    t = _x(batch).sigmoid()
    t = t[0] if one_time else t
    whole = MarkovBlanketDenoiser(inner, window, stride, fold)(x, t)
    inner.sizes.clear()
    parts = MarkovBlanketDenoiser(inner, window, stride, fold, chunk_size=chunk)(x, t)
    assert sum(inner.sizes) == batch * len(window_starts(length, window, stride))
    assert max(inner.sizes) <= chunk
    torch.testing.assert_close(parts, whole)
    cotangent = _x(batch, length, 2).flip(0, 1)
    gradients = [torch.autograd.grad(out, x, cotangent)[0] for out in (whole, parts)]
    torch.testing.assert_close(*gradients)


def test_chunks_give_gradients_of_the_weights_too() -> None:
    network = MLP(width=4, depth=1).build(WindowShape(window=5, variables=2))
    inner = WindowDenoiser(network, VP(), 5).double()
    inner.kernel.register_parameter("idle", torch.nn.Parameter(torch.ones(2)))
    x, t = _x(2, 9, 2).requires_grad_(), torch.tensor(0.3, dtype=torch.float64)
    found = []
    for size in (None, 3):
        inner.zero_grad()
        MarkovBlanketDenoiser(inner, 5, chunk_size=size)(x, t).square().sum().backward()
        idle = inner.kernel.idle.grad
        assert idle is None or not idle.any()
        found.append([p.grad for p in inner.parameters() if p.grad is not None and p.grad.any()])
    assert len(found[0]) > 4
    torch.testing.assert_close(*found)


def test_chunks_under_many_backward_passes() -> None:
    """MMPS goes back through one forward pass again and again."""
    operator = Select(variables=["u"], every=3, std=0.3).bind(GaussianChain().spec, 12)
    likelihood = Likelihood.gaussian(operator=operator.operator, y=_x(4, 1), std=operator.std)
    x, t = _x(3, 12, 2), torch.tensor(0.3, dtype=torch.float64)
    whole, parts = (
        MMPS()(MarkovBlanketDenoiser(Window(5), 5, 2, chunk_size=size), likelihood)(x, t)
        for size in (None, 4)
    )
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("fold", ["center", "average"])
def test_memory_for_activations_is_that_of_one_chunk(fold) -> None:
    kept = 2**20

    class Wide(Denoiser):
        """Keeps 3 arrays of this many bytes for the backward pass of each window."""

        def forward(self, x_t, t):
            h = x_t.mean((1, 2))[:, None].expand(-1, kept // 4)
            return x_t + h.sin().sin().sin().mean(1)[:, None, None]

    def peak(length, chunk):
        x = torch.zeros(2, length, 1, requires_grad=True)
        denoiser = MarkovBlanketDenoiser(Wide(VP()), 5, 2, fold, chunk)
        t = torch.tensor(0.5)
        return peak_bytes(lambda: torch.autograd.grad(denoiser(x, t).sum(), x)) / kept

    assert peak(25, None) > 3 * 22  # 2 members of 11 windows
    one = peak(25, 4)
    assert 3 * 4 <= one < 6 * 4
    assert peak(105, 4) < 1.05 * one


def test_wider_windows_are_closer_to_the_truth() -> None:
    """For a Markov chain the composed denoiser tends to the exact one as windows widen."""
    length = 17
    problem = gaussian_problem(length=length)
    exact = problem.model.denoiser
    x = _x(8, length, 2)
    t = torch.tensor(0.4, dtype=torch.float64)
    errors = []
    for window in (3, 7, 11, 17):
        mean, covariance = exact.mean[:window], exact.covariance[: 2 * window, : 2 * window]
        composed = MarkovBlanketDenoiser(GaussianDenoiser(mean, covariance, VP()), window)
        errors.append(float((composed(x, t) - exact(x, t)).square().mean().sqrt()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[-1] < 1e-12
    # The chain is stationary, so that windows have one distribution wherever they lie.
    mean, covariance = linear_gaussian_moments(problem.problem.system, length)
    torch.testing.assert_close(covariance[:6, :6], covariance[-6:, -6:])


def test_errors() -> None:
    with pytest.raises(ShapeError, match=r"4 states is shorter than the kernel's window of 5"):
        window_starts(4, 5, 1)
    for stride in (0, 6):
        with pytest.raises(ConfigError, match=f"stride = {stride} must lie between 1 and the win"):
            window_starts(10, 5, stride)


# --- long trajectories ---


@pytest.mark.parametrize("fold", ["center", "average"])
@pytest.mark.parametrize("stride", [1, 16])
def test_weights_grow_with_the_length_and_not_with_its_square(fold, stride) -> None:
    fold_weights.cache_clear()
    short, long = (peak_bytes(lambda n=n: fold_weights(n, 33, stride, fold)) for n in (1025, 4097))
    assert long < 4.5 * short
    assert long < 8 * 8 * 33 * len(window_starts(4097, 33, stride))


@pytest.mark.parametrize("gradients", [False, True])
def test_memory_beside_the_states_does_not_grow(gradients) -> None:
    """That of chunks of 16 windows, under a hundred times as many states."""

    class Wide(Denoiser):
        def forward(self, x_t, t):
            h = x_t.mean((1, 2))[:, None] * torch.ones(4096)
            return 0.5 * x_t + h.sin().mean(1)[:, None, None]

    def peak(length) -> int:
        composed = MarkovBlanketDenoiser(Wide(VP()), 33, 16, chunk_size=16)
        x = torch.zeros(1, length, 3, requires_grad=gradients)
        fold_weights(length, 33, 16, "center")

        def evaluate() -> None:
            x0 = composed(x, torch.tensor(0.5))
            if gradients:
                torch.autograd.grad(x0.sum(), x)

        return peak_bytes(evaluate)

    states = 4 * 3 * 32_000
    assert peak(320 + 32_000) - peak(320) < 6 * states


def test_chunks_are_made_once_where_they_are_few(monkeypatch) -> None:
    made = []
    make = MarkovBlanketDenoiser._make_chunk
    monkeypatch.setattr(
        MarkovBlanketDenoiser,
        "_make_chunk",
        lambda self, x_t, pairs: made.append(len(pairs)) or make(self, x_t, pairs),
    )
    for length, chunks in ((9, 1), (33, 4), (65, 8)):
        composed = MarkovBlanketDenoiser(Window(5), 5, 4, chunk_size=4)
        made.clear()
        for _ in range(3):
            composed(_x(2, length, 3), torch.tensor(0.5))
        assert len(made) == (chunks if chunks <= 4 else 3 * chunks)
        assert len(composed._kept) <= 4
