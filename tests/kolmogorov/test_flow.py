"""Kolmogorov flow: exact solutions, measured orders, balances, and what the core relies on."""

from __future__ import annotations

import math
import multiprocessing

import attrs
import pytest
import torch
from torch import Generator, Tensor

from sda_core.errors import ConfigError, ShapeError, SimulationError
from sda_core.system import simulate_block, trajectory
from sda_kolmogorov.jax_compat import cfd, from_jax, to_jax
from sda_kolmogorov.kolmogorov import KolmogorovFlow
from sda_kolmogorov.solver import coarsen, to_centres, to_faces

CPU = torch.device("cpu")
#: Shared by tests with blocks of 3 and 4 states, as each configuration and shape is compiled anew.
SMALL = KolmogorovFlow(size=16, coarsening=1, block_size=3)


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def torch_of(array: object) -> Tensor:
    return from_jax(array, CPU)


def mesh(n: int, offset: tuple[float, float] = (0.5, 0.5)) -> tuple[Tensor, Tensor]:
    """Coordinates x and y of points, (n, n) each; by default the centres of the cells."""
    x, y = ((torch.arange(n).double() + o) * 2 * math.pi / n for o in offset)
    return tuple(torch.meshgrid(x, y, indexing="ij"))


# Exact solutions.


def taylor_green(n: int) -> Tensor:
    x, y = mesh(n)
    return torch.stack((x.sin() * y.cos(), -x.cos() * y.sin()))[None]


def vortex_after_one(n: int, dt: float) -> Tensor:
    """The Taylor-Green vortex at t = 1, simulated in steps of dt; viscosity is 0.05, drag 0.1."""
    flow = KolmogorovFlow(
        size=n, coarsening=1, time_step=dt, reynolds=20.0, drag=0.1, forcing_amplitude=0.0
    )
    assert flow.inner_steps == 1
    return flow.trajectory(taylor_green(n), 1, round(1 / dt) - 1, Generator())[:, 0]


def amplitude(x: Tensor) -> float:
    vortex = taylor_green(x.shape[-1])
    return float((x * vortex).sum() / vortex.square().sum())


def test_taylor_green_vortex_decays_at_its_rate_and_keeps_its_shape() -> None:
    x = vortex_after_one(32, 0.002)
    assert -math.log(amplitude(x)) == pytest.approx(2 * 0.05 + 0.1, rel=0.01)
    vortex = taylor_green(32)
    assert (x / amplitude(x) - vortex).norm() < 2e-3 * vortex.norm()


def test_time_steps_are_of_first_order() -> None:
    a, b, c = (amplitude(vortex_after_one(16, dt)) for dt in (0.008, 0.004, 0.002))
    assert math.log2((a - b) / (b - c)) == pytest.approx(1, abs=0.3)


def test_grids_are_of_second_order_at_least() -> None:
    # The order of the flux limiter's dissipation, which leads here, is 3.
    a, b = (
        (vortex_after_one(n, 0.002) - math.exp(-0.2) * taylor_green(n)).square().mean().sqrt()
        for n in (16, 32)
    )
    assert math.log2(a / b) > 1.7


def test_laminar_flow_is_steady_and_reached_from_rest() -> None:
    flow = KolmogorovFlow(
        size=16, coarsening=1, reynolds=5.0, forcing_wavenumber=2, forcing_amplitude=0.7
    )
    h = 2 * math.pi / 16
    decay = (2 - 2 * math.cos(2 * h)) / h**2 / 5 + 0.1  # of sin(2 y), by finite differences
    laminar = torch.stack((0.7 / decay * flow.context()["forcing"], torch.zeros(16, 16)))[None]
    for start, burn_in, tolerance in ((laminar, 3, 1e-5), (0 * laminar, 400, 1e-4)):
        x = flow.trajectory(start, 1, burn_in, Generator())[:, 0]
        torch.testing.assert_close(x, laminar, rtol=0, atol=tolerance)


# Grids.


def waves(n: int, offset: tuple[float, float]) -> Tensor:
    x, y = mesh(n, offset)
    return 0.3 + (3 * x + 1).sin() * (2 * y).cos() + 0.5 * (x - 3 * y + 2).cos()


def on_faces(n: int) -> Tensor:
    return torch.stack((waves(n, (1.0, 0.5)), waves(n, (0.5, 1.0))))


def test_the_half_cell_shift_is_exact() -> None:
    centres = waves(16, (0.5, 0.5)).float().expand(2, 16, 16)
    torch.testing.assert_close(
        torch_of(to_centres(to_jax(on_faces(16)))), centres, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        torch_of(to_faces(to_jax(centres), 1)), on_faces(16).float(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("m", [1, 2, 3])
def test_coarsening_undoes_refinement(m: int) -> None:
    x = torch.randn(3, 2, 16, 16, generator=seeded(0))
    fine = to_faces(to_jax(x), m)
    assert fine.shape == (3, 2, 16 * m, 16 * m)
    torch.testing.assert_close(torch_of(coarsen(to_centres(fine), m)), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("m", [2, 3])
def test_refinement_undoes_coarsening_of_long_waves(m: int) -> None:
    fine = on_faces(8 * m).float()
    again = to_faces(coarsen(to_centres(to_jax(fine)), m), m)
    torch.testing.assert_close(torch_of(again), fine, rtol=0, atol=1e-5)


def test_a_coarsened_flow_is_the_means_of_the_fine_one() -> None:
    fine = KolmogorovFlow(size=32, coarsening=1)
    coarse = KolmogorovFlow(size=16, coarsening=2)
    assert fine.inner_steps == coarse.inner_steps
    start = torch_of(to_centres(to_jax(on_faces(32))))[None]
    x = coarse.trajectory(torch_of(coarsen(to_jax(start), 2)), 5, 2, Generator())
    y = torch_of(coarsen(to_jax(fine.trajectory(start, 5, 2, Generator())), 2))
    torch.testing.assert_close(x, y, rtol=0, atol=1e-4)


def test_inner_steps_are_those_of_the_paper_and_stricter_where_diffusion_is() -> None:
    grid = cfd.grids.Grid((256, 256), domain=((0, 2 * math.pi), (0, 2 * math.pi)))
    dt = cfd.equations.stable_time_step(
        max_velocity=5.0, max_courant_number=0.5, viscosity=1e-3, grid=grid
    )
    assert KolmogorovFlow().inner_steps == math.ceil(0.2 / dt) == 82
    grid = cfd.grids.Grid((32, 32), domain=((0, 2 * math.pi), (0, 2 * math.pi)))
    viscous = KolmogorovFlow(size=32, coarsening=1, reynolds=1.0)
    limit = cfd.diffusion.stable_time_step(1.0, grid)
    assert 0.2 / viscous.inner_steps <= limit < 0.2 / (viscous.inner_steps - 1)


# Physics.

VISCOUS = KolmogorovFlow(
    size=64, coarsening=1, reynolds=20.0, time_step=0.05, drag=0.3, max_velocity=2.0
)


def divergence(x: Tensor) -> Tensor:
    """Of states on the simulated grid, as finite volumes have it."""
    u, v = torch_of(to_faces(to_jax(x), 1)).double().unbind(-3)
    return (u - u.roll(1, -2) + v - v.roll(1, -1)) * x.shape[-1] / (2 * math.pi)


def test_velocities_have_no_divergence() -> None:
    x = SMALL.prior((3,), seeded(0))
    for states in (x, SMALL.trajectory(x, 4, 0, Generator())):
        assert divergence(states).abs().max() < 1e-4
    assert divergence(torch.randn(x.shape, generator=seeded(0))).abs().max() > 1


def test_initial_fields_have_the_speed_and_scale_asked_for() -> None:
    x = attrs.evolve(VISCOUS, max_velocity=2.0, peak_wavenumber=6.0).prior((8,), seeded(0)).double()
    speed = x.norm(dim=1).flatten(1).amax(1)
    assert ((speed > 1.8) & (speed < 2.2)).all()
    k = torch.fft.fftfreq(64, 1 / 64).double()
    wavenumber = (k[:, None] ** 2 + k**2).sqrt().round()
    energy = torch.fft.fft2(x).abs().square().sum((0, 1))
    spectrum = torch.stack([energy[wavenumber == s].sum() for s in range(20)])
    assert 4 <= int(spectrum.argmax()) <= 7


def test_energy_balance_closes() -> None:
    # Energy changes by what the forcing puts in less what viscosity and drag take. The flux
    # limiter takes some too; at this Reynolds number and grid little beside viscosity.
    x = VISCOUS.trajectory(VISCOUS.prior((4,), seeded(0)).double(), 41, 20, Generator())
    k = 1j * torch.fft.fftfreq(64, 1 / 64).double()
    dv_dx = torch.fft.ifft2(k[:, None] * torch.fft.fft2(x[:, :, 1])).real
    du_dy = torch.fft.ifft2(k * torch.fft.fft2(x[:, :, 0])).real
    energy = 0.5 * x.square().sum(2).mean((-2, -1))
    forcing = (x[:, :, 0] * VISCOUS.context()["forcing"]).mean((-2, -1))
    viscosity = (dv_dx - du_dy).square().mean((-2, -1)) / 20.0
    drag = 2 * 0.3 * energy

    def total(rate: Tensor) -> Tensor:
        return torch.trapezoid(rate, dx=0.05, dim=1)

    expected = total(forcing) - total(viscosity) - total(drag)
    gained = energy[:, -1] - energy[:, 0]
    for term in (forcing, viscosity, drag):
        assert (total(term) > 0.1).all()
    assert ((gained - expected).abs() < 0.01 * total(viscosity)).all()


def test_turbulence_stays_within_bounds() -> None:
    energy = 0.5 * simulate_block(SMALL, 0, 0, 4, burn_in=128).square().sum(2).mean((-2, -1))
    assert energy.min() > 0.1
    assert energy.max() < 3


# What the core relies on.


def test_blocks_are_the_same_bytes_each_time_and_in_other_processes() -> None:
    here = simulate_block(SMALL, 3, 1, 4, 1)
    assert torch.equal(here, simulate_block(attrs.evolve(SMALL), 3, 1, 4, 1))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert torch.equal(here, pool.apply(simulate_block, (SMALL, 3, 1, 4, 1)))


def test_burn_in_is_what_is_cut_off_in_front() -> None:
    x = SMALL.prior((3,), seeded(0))
    whole = SMALL.trajectory(x, 7, 0, Generator())
    cut = SMALL.trajectory(x, 4, 3, Generator())
    torch.testing.assert_close(cut, whole[:, 3:], rtol=1e-6, atol=1e-6)


def test_transitions_add_up_to_a_trajectory_without_coarsening() -> None:
    x = SMALL.prior((3,), seeded(0))
    whole = SMALL.trajectory(x, 4, 0, Generator())
    for expected in whole.unbind(1):
        x = SMALL.transition(x, Generator())
        torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)


def test_transitions_keep_batch_shape_and_dtype() -> None:
    x = SMALL.prior((3,), seeded(0))
    assert x.dtype == torch.float32
    y = SMALL.transition(x.double()[:, None], Generator())
    assert y.dtype == torch.float64
    assert y.shape == (3, 1, 2, 16, 16)
    assert torch.equal(y[:, 0].float(), SMALL.transition(x, Generator()))


@pytest.mark.parametrize("factor", [100.0, math.nan])
def test_a_member_that_blows_up_is_nan_and_leaves_the_others_alone(factor: float) -> None:
    x = SMALL.prior((3,), seeded(0))
    wild = torch.stack((x[0], factor * x[1], x[2]))
    y = SMALL.trajectory(wild, 4, 2, Generator())
    assert y[1].isnan().all()
    assert torch.equal(y[::2], SMALL.trajectory(x, 4, 2, Generator())[::2])
    with pytest.raises(SimulationError, match=r"members \[1\] of 3"):
        trajectory(SMALL, wild, 4, Generator())


def test_a_block_that_blows_up_is_named_and_its_advice_helps() -> None:
    fast = attrs.evolve(SMALL, max_velocity=30.0)
    with pytest.raises(SimulationError, match=r"trajectories 3 to 5.* raise design_velocity"):
        simulate_block(fast, 5, 1, 4)
    simulate_block(attrs.evolve(fast, design_velocity=40.0), 5, 1, 4)


def test_the_limit_is_on_the_courant_number_and_holds_in_the_burn_in() -> None:
    # Uniform flows, which only slow down: (u, v) exp(-t).
    flow = attrs.evolve(SMALL, forcing_amplitude=0.0, drag=1.0)
    limit = 2 * math.pi / 16 / (flow.time_step / flow.inner_steps)
    directions = torch.tensor([(1.0, 0.0), (0.0, -1.0), (-0.5, 0.5)])
    speeds = limit * torch.cat((0.95 * directions, 1.05 * directions))
    x = speeds[:, :, None, None].expand(6, 2, 16, 16)
    for burn_in in (0, 5):
        y = flow.trajectory(x, 1, burn_in, Generator())
        assert y.flatten(1).isfinite().all(1).tolist() == [True] * 3 + [False] * 3
        assert y[3:].isnan().all()


@pytest.mark.parametrize("shape", [(1, 2, 16, 15), (1, 3, 16, 16), (2, 16, 16)])
def test_states_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"size 16 has states of shape \(2, 16, 16\)"):
        SMALL.trajectory(torch.zeros(shape), 1, 0, Generator())


@pytest.mark.parametrize("size", [2, 15])
def test_sizes_are_even(size: int) -> None:
    with pytest.raises(ConfigError, match=r"size: got .*an even number"):
        KolmogorovFlow(size=size)


def test_states_say_what_they_are() -> None:
    spec = KolmogorovFlow().spec
    assert spec.variable_names == ("u", "v")
    assert [v.long_name for v in spec.variables] == ["x-velocity", "y-velocity"]
    assert spec.state_shape == (2, 64, 64)
    assert [axis.name for axis in spec.axes] == ["grid_x", "grid_y"]
    assert spec.axes[0].values[0] == pytest.approx(math.pi / 64)
    assert spec.mean is None
    forcing = KolmogorovFlow().context()["forcing"]
    torch.testing.assert_close(forcing.double(), (4 * mesh(64)[1]).sin(), rtol=0, atol=1e-6)
