"""The solvers against a dense solve, and where they have to stop."""

from __future__ import annotations

import pytest
import torch

from sda_dps.solvers import conjugate_gradients, direct, gmres

N = 5
BASIS = torch.linalg.qr(
    torch.randn(N, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
)[0]
Z = torch.randn(3, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SOLVERS = {
    "cg": lambda product, z: conjugate_gradients(product, z, 4 * N),
    "gmres": lambda product, z: gmres(product, z, N),
    "direct": direct,
}
solvers = pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)


def _matrix(*eigenvalues: float) -> torch.Tensor:
    return BASIS @ torch.tensor(eigenvalues, dtype=torch.float64).diag() @ BASIS.T


def _product(M):
    """M p, and 2 p in place of the state it comes from."""
    return lambda p: (p @ M.T, 2 * p)


@solvers
@pytest.mark.parametrize(
    "M",
    [_matrix(0, 1e-3, 1, 30, 1e5), _matrix(7, 7, 7, 7, 7), _matrix(0, 0, 0, 0, 0)],
    ids=["spread", "equal", "zero"],
)
def test_solution(solve, M) -> None:
    w = torch.linalg.solve(torch.eye(N, dtype=torch.float64) + M, Z.T).T
    d, a, sound = solve(_product(M), Z)
    torch.testing.assert_close(d, 2 * w, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(a, w @ M, rtol=1e-6, atol=1e-8)
    assert sound.all()


@solvers
def test_nothing_to_solve(solve) -> None:
    """A member that meets its observation exactly is left where it is."""
    z = Z * torch.tensor([[1.0], [0.0], [1.0]])
    d, a, sound = solve(_product(_matrix(1, 2, 3, 4, 5)), z)
    assert d[1].eq(0).all()
    assert a[1].eq(0).all()
    assert sound.all()
    assert d[[0, 2]].abs().sum() > 0


@solvers
def test_negative_everywhere_is_unsound(solve) -> None:
    _, _, sound = solve(_product(_matrix(-1.5, -2, -3, -4, -5)), Z)
    assert not sound.any()


def test_directions_of_negative_curvature_are_left_out() -> None:
    d, _, sound = direct(_product(_matrix(-9, 1, 2, 3, 4)), Z)
    assert sound.all()
    along = d / 2 @ BASIS
    expected = Z @ BASIS / torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64)
    torch.testing.assert_close(along[:, 1:], expected[:, 1:])
    assert along[:, 0].abs().max() < 1e-12
    # Conjugate gradients keep what they had before they met one.
    d, _, sound = conjugate_gradients(_product(_matrix(-9, 1, 2, 3, 50)), Z, 4 * N)
    kept = d[sound]
    assert kept.isfinite().all()
    assert len(kept) > 0


def test_products_end_with_convergence() -> None:
    calls = []

    def product(p):
        calls.append(1)
        return 3 * p, p

    conjugate_gradients(product, Z, 20)
    assert len(calls) == 1


@solvers
def test_a_broken_member_leaves_its_mates_alone(solve) -> None:
    M = _matrix(1, 2, 3, 4, 5)

    def product(p):
        image = p @ M.T
        return torch.cat((image[:1], image[1:2] * torch.nan, image[2:])), 2 * p

    d, a, sound = solve(product, Z)
    expected = solve(_product(M), Z)
    assert sound.tolist() == [True, False, True]
    torch.testing.assert_close(d[[0, 2]], expected[0][[0, 2]])
    torch.testing.assert_close(a[[0, 2]], expected[1][[0, 2]])
