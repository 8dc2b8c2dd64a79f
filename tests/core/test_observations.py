"""Observations: what each operator observes, their noise and their errors."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sda_core.errors import AssimilationError, ConfigError, ShapeError
from sda_core.method import Problem
from sda_core.observation import Compose, Concatenate, Function, Index, Linear, Mask, Select
from sda_core.system import Axis, SystemSpec
from sda_core.testing import GaussianChain

SPEC = SystemSpec(
    variables=("u", "v"),
    axes=(Axis("place", np.arange(3)),),
    time_step=0.5,
    mean=(1.0, -1.0),
    std=(2.0, 4.0),
)
POINT = SystemSpec(variables=("x", "y", "z"), time_step=0.1)
X = torch.arange(2 * 6 * 2 * 3, dtype=torch.float64).reshape(2, 6, 2, 3)


def test_select() -> None:
    everything = Select().operator(SPEC)(X)
    assert torch.equal(everything, X)
    picked = Select(variables=("v",), every=2, offset=1).operator(SPEC)(X)
    assert torch.equal(picked, X[:, 1::2, 1:])
    swapped = Select(variables=("v", "u")).operator(SPEC)(X)
    assert torch.equal(swapped, X[:, :, [1, 0]])
    scaled = Select(variables=("v",), standardized=True).operator(SPEC)(X)
    torch.testing.assert_close(scaled, (X[:, :, 1:] + 1) / 4)


def test_select_says_what_comes_out() -> None:
    out = Select(variables=("v",), every=3).output(SPEC)
    assert (out.variable_names, out.time_step, out.grid_shape) == (("v",), 1.5, (3,))
    assert (out.mean, out.std) == ((-1.0,), (4.0,))
    assert Select(variables=("z",)).output(POINT).mean is None


def test_mask(tmp_path) -> None:
    marks = np.array([[True, False, False], [False, True, True]])
    for mask in (marks.tolist(), tmp_path / "mask.npy"):
        np.save(tmp_path / "mask.npy", marks)
        out = Mask(mask=mask).operator(SPEC)(X)
        assert torch.equal(out, X[:, :, torch.from_numpy(marks)])
    both = Mask(mask=[False, True, False]).operator(SPEC)(X)
    assert torch.equal(both, X[..., 1])
    assert Mask(mask=marks.tolist()).output(SPEC).state_shape == (3,)


def test_index() -> None:
    out = Index(entries=((0, 1, 2), (-1, 0, -3), (0, 0, 0))).operator(SPEC)(X)
    assert torch.equal(out, torch.stack((X[:, 0, 1, 2], X[:, -1, 0, 0], X[:, 0, 0, 0]), -1))


def test_linear(tmp_path) -> None:
    H = np.random.default_rng(0).normal(size=(2, 6))
    np.save(tmp_path / "H.npy", H)
    for matrix in (H.tolist(), tmp_path / "H.npy"):
        out = Linear(matrix=matrix).operator(SPEC)(X)
        torch.testing.assert_close(out, X.flatten(2) @ torch.from_numpy(H).T)
    assert Linear(matrix=H.tolist()).output(SPEC).state_shape == (2,)
    whole = Linear(matrix=np.ones((1, 36)).tolist(), trajectory=True).operator(SPEC)(X)
    torch.testing.assert_close(whole, X.sum((1, 2, 3))[:, None])


def test_function() -> None:
    out = Function(target="torch:sin").operator(SPEC)(X)
    assert torch.equal(out, X.sin())
    assert torch.equal(Function(target=torch.cos).operator(SPEC)(X), X.cos())
    assert Function(target=torch.cos, statewise=False).times(torch.arange(3)) is None


def test_compose() -> None:
    parts = (Select(variables=("v",), every=2), Function(target=torch.sin), Select(every=2))
    composed = Compose(parts=parts, std=0.1)
    assert torch.equal(composed.operator(SPEC)(X), X[:, ::4, 1:].sin())
    assert composed.times(torch.arange(6)).tolist() == [0, 4]
    assert composed.output(SPEC).time_step == 2.0
    mixed = Compose(parts=(Function(target=torch.sin, statewise=False), Select()), std=0.1)
    assert mixed.times(torch.arange(6)) is None


def test_compose_knows_the_states_between_its_parts() -> None:
    """A mask leaves no grid, so that the matrix after it must not take time for one."""
    mask = Mask(mask=[[True, False, False], [False, True, False]])
    H = Linear(matrix=[[1.0, 1.0]])
    out = Compose(parts=(mask, H), std=1.0).operator(SPEC)(X)
    torch.testing.assert_close(out[..., 0], X[:, :, 0, 0] + X[:, :, 1, 1])
    twice = Compose(parts=(Linear(matrix=np.eye(6).tolist()), mask.__class__(mask=[True] * 6)))
    torch.testing.assert_close(twice.operator(SPEC)(X), X.flatten(2))


def test_concatenate() -> None:
    parts = (Select(variables=("u",), every=3, std=0.5), Index(entries=((2, 1, 1),), std=0.1))
    model = Concatenate(parts=parts).bind(SPEC, 6)
    out = model.operator(X)
    assert out.shape == (2, 7)
    assert torch.equal(out[:, :6], X[:, ::3, 0].flatten(1))
    assert torch.equal(out[:, 6], X[:, 2, 1, 1])
    assert model.std.tolist() == [0.5] * 6 + [0.1]
    assert model.times.tolist() == [0] * 3 + [3] * 3 + [2]
    mixed = Concatenate(parts=(*parts, Function(target=torch.sin, statewise=False, std=1.0)))
    assert mixed.bind(SPEC, 6).times is None


def test_concatenate_within_compose_mixes_times() -> None:
    """Its flat output has no time axis; 6 entries of 6 states are not one for each."""
    flat = Concatenate(parts=(Select(variables=("u",), every=3),))
    model = Compose(parts=(flat, Function(target=torch.sin)), std=1.0).bind(SPEC, 6)
    assert model.shape == (6,)
    assert model.times is None


def test_std_per_entry() -> None:
    model = Select(std=(1.0, 2.0, 3.0)).bind(POINT, 2)
    assert model.std.tolist() == [[1.0, 2.0, 3.0]] * 2
    x = torch.zeros(2, 3)
    y = torch.ones(2, 3, dtype=torch.float64)
    expected = -2 * (0.5 * (1 + 1 / 4 + 1 / 9) + math.log(6) + 1.5 * math.log(2 * math.pi))
    assert float(model.log_prob(y, x)) == pytest.approx(expected)


def test_log_prob_of_a_single_number() -> None:
    total = Function(target=lambda x: x.sum((-1, -2)), statewise=False, std=2.0)
    model = total.bind(POINT, 4)
    assert model.shape == ()
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    y = model.sample(x[0], torch.Generator().manual_seed(0))
    expected = torch.distributions.Normal(x.sum((1, 2)), 2.0).log_prob(y)
    torch.testing.assert_close(model.log_prob(y, x), expected)
    assert model.log_prob(y, x[0]).shape == ()


def test_log_prob_at_a_time_without_observations() -> None:
    model = Select(every=2, std=1.0).bind(POINT, 4)
    y = torch.zeros(2, 3, dtype=torch.float64)
    assert model.log_prob_at(1, y, torch.zeros(5, 3)) is None
    assert model.log_prob_at(2, y, torch.zeros(5, 3)).shape == (5,)


def test_sampling_is_in_double_precision_and_seeded() -> None:
    model = Select(std=0.1).bind(POINT, 4)
    x = torch.randn(4, 3)
    a, b = (model.sample(x, torch.Generator().manual_seed(1)) for _ in range(2))
    assert a.dtype == torch.float64
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (Select(), r"observation.std is missing: give the standard deviation"),
        (Select(std=0.0), r"observation.std = 0.0 must be positive"),
        (Select(std=(1.0, -1.0, 1.0)), r"must be positive"),
        (Select(std=(1.0, 1.0)), r"std has 2 entries, but .* shape \(4, 3\): give 1 or 3"),
        (Select(variables=("w",), std=1.0), r"no variable 'w'.*This system has \['x', 'y', 'z'\]"),
        (Select(variables=("xx",), std=1.0), r"no variable 'xx'; did you mean 'x'"),
        (Select(variables=(), std=1.0), r"observation.variables is empty"),
        (Select(offset=4, std=1.0), r"offset = 4 lies beyond the trajectory of 4 states"),
        (Select(standardized=True, std=1.0), r"standardized = true needs a system with a standard"),
        (Mask(mask=[True], std=1.0), r"mask has shape \(1,\) and type bool, .* shape \(3,\)$"),
        (Mask(mask=[[True], [True, False]], std=1.0), r"mask: the nested list is no array"),
        (Mask(mask=Path(__file__), std=1.0), r"mask: .*test_observations.py is no array"),
        (Mask(mask=[1, 0, 1], std=1.0), r"type int64, but must be a boolean array"),
        (Mask(mask=[False] * 3, std=1.0), r"mask is false everywhere"),
        (Index(entries=(), std=1.0), r"observation.entries is empty"),
        (Index(entries=((0, 3),), std=1.0), r"entries\[0\] = \[0, 3\] .*2 indices .*inside \(3,\)"),
        (Index(entries=((0, 0), (0,)), std=1.0), r"entries\[1\] = \[0\] does not name an entry"),
        (Index(entries=((4, 0), (-5, 0)), std=1.0), r"times \[4, -5\] outside .* of 4 states"),
        (Linear(matrix=[1.0, 2.0], std=1.0), r"matrix has the shape \(2,\), but must be \(n, m\)"),
        (
            Linear(matrix=[[1.0, 2.0]], std=1.0),
            r"shape \(1, 2\), but must be \(n, 3\).*flattened state",
        ),
        (Linear(matrix=[[1.0]], trajectory=True, std=1.0), r"must be \(n, 12\).* trajectory"),
        (Function(target="nowhere:f", std=1.0), r"'nowhere:f' cannot be imported .*No module"),
        (Function(target="torch:no_such", std=1.0), r"'torch:no_such' cannot be imported"),
        (Function(target="torch", std=1.0), r"'torch' cannot be imported"),
        (Function(target="math:pi", std=1.0), r"'math:pi' is not a function"),
        (
            Function(target=lambda x: x.flatten(-2)[..., :5], std=1.0),
            r"should keep the time axis, with 4 times, but gives the shape \(5,\)",
        ),
    ],
)
def test_errors_when_bound(observation, message) -> None:
    with pytest.raises(ConfigError, match=message):
        observation.bind(POINT, 4)


@pytest.mark.parametrize("cls", [Mask, Linear])
def test_missing_files(cls, tmp_path) -> None:
    field = "mask" if cls is Mask else "matrix"
    observation = cls(**{field: tmp_path / "none.npy"}, std=1.0)
    with pytest.raises(ConfigError, match=f"observation.{field}: there is no file .*none.npy"):
        observation.bind(POINT, 4)


def test_mask_of_a_system_with_a_grid_may_have_either_shape() -> None:
    with pytest.raises(ConfigError, match=r"boolean array of shape \(2, 3\) or \(3,\)"):
        Mask(mask=[True, False], std=1.0).bind(SPEC, 4)


def test_errors_when_made() -> None:
    with pytest.raises(
        ConfigError, match=r"observation.parts is empty: give at least one operator"
    ):
        Compose(parts=())
    with pytest.raises(ConfigError, match=r"parts\[1\].std = 0.5: noise is added once"):
        Compose(parts=(Select(), Select(std=0.5)))
    with pytest.raises(ConfigError, match=r"parts\[0\].parts\[1\].std = 0.5: noise is added once"):
        Compose(parts=(Concatenate(parts=(Select(), Select(std=0.5))),), std=1.0)
    with pytest.raises(ConfigError, match="parts is empty: give at least one observation"):
        Concatenate(parts=())
    with pytest.raises(ConfigError, match=r"std = 0.5: each part of a 'concatenate' has its own"):
        Concatenate(parts=(Select(std=1.0),), std=0.5)
    with pytest.raises(ConfigError, match=r"observation.std is missing"):
        Concatenate(parts=(Select(),)).bind(POINT, 4)


def test_errors_when_used() -> None:
    model = Select(every=2, std=1.0).bind(POINT, 4)
    with pytest.raises(ShapeError, match=r"shape \(3, 3\), but the operator gives \(2, 3\) for"):
        model.log_prob(torch.zeros(3, 3), torch.zeros(4, 3))
    mixed = Function(target=torch.sin, statewise=False, std=1.0).bind(POINT, 4)
    with pytest.raises(AssimilationError, match=r"mixes times, .*statewise = true.*'sda'"):
        mixed.log_prob_at(0, torch.zeros(4, 3), torch.zeros(5, 3))
    chain = GaussianChain()
    with pytest.raises(ShapeError, match=r"observation has the shape \(3, 2\), .*gives \(2, 2\)"):
        Problem(
            system=chain,
            observation=Select(every=2, std=1.0).bind(chain.spec, 4),
            y=torch.zeros(3, 2),
        )


def test_a_function_may_work_in_place() -> None:
    x = X.clone()
    for target in (lambda x: x.mul_(2.0), torch.sin_, lambda x: x.clamp_(0.0, 1.0)):
        model = Function(target=target, std=0.1).bind(SPEC, X.shape[1])
        model.sample(x[0], torch.Generator().manual_seed(0))
        model.log_prob(model.operator(x[0]), x)
        assert torch.equal(x, X)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda x: x.detach() * 2, "is not differentiable"),
        (lambda x: torch.from_numpy(x.detach().numpy() * 2.0), "is not differentiable"),
        (lambda x: x.detach().numpy(), "gives ndarray, but must give a tensor"),
        (lambda x: x.numpy(), "fails on a trajectory of shape .* RuntimeError"),
        ("torch:isnan", r"operator torch:isnan gives torch.bool, but must"),
        (lambda x: (x > 0).long(), "gives torch.int64"),
        (lambda x: 1.0, "gives float"),
        ("os:getcwd", "operator os:getcwd fails on .* TypeError"),
        ("sys:exit", "operator sys:exit fails on .* SystemExit"),
        (lambda x: x[1000], "fails on .* IndexError"),
    ],
)
def test_functions_that_cannot_be_used(target, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Function(target=target, std=0.1).bind(SPEC, 4)


@pytest.mark.parametrize(
    "matrix",
    [[1, "a"], [[1, 0, 0], [1, 0]], [["a", "b"]], [[1.0, float("nan")]], [], [[[1.0]]], [1.0]],
)
def test_a_matrix_that_is_none(matrix) -> None:
    with pytest.raises(ConfigError, match=r"matrix(: the nested list is no| has the shape|: got)"):
        Linear(matrix=matrix, std=0.1).bind(POINT, 4)


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY"])
def test_a_matrix_file_that_is_none(content, tmp_path) -> None:
    (tmp_path / "h.npy").write_bytes(content)
    with pytest.raises(ConfigError, match=r"h\.npy is no matrix of numbers"):
        Linear(matrix=tmp_path / "h.npy", std=0.1).bind(POINT, 4)


def test_indices_that_no_trajectory_has() -> None:
    with pytest.raises(ConfigError, match=r"entries"):
        Index(entries=((10**30, 0),), std=0.1).bind(POINT, 4)
    with pytest.raises(ConfigError, match=r"times \[1000000000000\] outside"):
        Index(entries=((10**12, 0),), std=0.1).bind(POINT, 4)
