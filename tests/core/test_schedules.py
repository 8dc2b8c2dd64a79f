"""Schedules: formulas of the original code, and their inverses. The kit does the rest."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings, strategies as st

from sda_core.config import structure
from sda_core.errors import ConfigError
from sda_core.schedule import VE, VP, LogNormal, RectifiedFlow, Schedule, SubSubVP, SubVP

T = torch.linspace(0, 1, 101, dtype=torch.float64)
ETA = 1e-3
ALPHAS = {
    "lin": 1 - (1 - ETA) * T,
    "cos": torch.cos(math.acos(math.sqrt(ETA)) * T) ** 2,
    "exp": torch.exp(math.log(ETA) * T**2),
}


@pytest.mark.parametrize("shape", list(ALPHAS))
def test_original_formulas(shape) -> None:
    alpha = ALPHAS[shape]
    for cls, sigma in (
        (VP, (1 - alpha**2 + ETA**2).sqrt()),
        (SubVP, 1 - alpha**2 + ETA),
        (SubSubVP, 1 - alpha + ETA),
    ):
        schedule = cls(alpha_shape=shape)
        torch.testing.assert_close(schedule.alpha(T), alpha, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(schedule.sigma(T), sigma, rtol=1e-8, atol=1e-12)
        assert float(schedule.sigma(T[0])) == pytest.approx(ETA)
        assert float(schedule.alpha(T[-1])) == pytest.approx(ETA)


def test_ve_and_rectified_flow() -> None:
    ve = VE(sigma_min=0.01, sigma_max=4.0)
    torch.testing.assert_close(ve.sigma(T), 0.01 * 400**T)
    assert (ve.alpha(T) == 1).all()
    flow = RectifiedFlow(eta=0.01)
    torch.testing.assert_close(flow.alpha(T) + flow.sigma(T), torch.full_like(T, 1.01))
    torch.testing.assert_close(flow.alpha(T) - flow.sigma(T), 0.99 - 2 * 0.99 * T)


@pytest.mark.parametrize("schedule", [VP(), VP(alpha_shape="exp"), VE(), RectifiedFlow()])
@settings(max_examples=25)
@given(t=st.floats(0.0, 1.0))
def test_time_is_the_inverse_of_log_snr(schedule, t) -> None:
    log_snr = schedule.log_snr(torch.tensor(t, dtype=torch.float64))
    back = schedule.log_snr(schedule.time(log_snr))
    torch.testing.assert_close(back, log_snr, rtol=1e-7, atol=1e-7)


def test_float32_is_accurate_where_sigma_is_small() -> None:
    """1 - alpha^2 would cancel there: 5 % off for cos."""
    t = torch.linspace(0, 0.01, 200)
    for shape in ALPHAS:
        schedule = VP(alpha_shape=shape)
        torch.testing.assert_close(
            schedule.sigma(t).double(), schedule.sigma(t.double()), rtol=1e-6, atol=0.0
        )


def test_errors() -> None:
    with pytest.raises(ConfigError, match=r"sigma_min = 5.0 must be smaller than sigma_max = 1.0"):
        VE(sigma_min=5.0, sigma_max=1.0)
    with pytest.raises(ConfigError, match=r"sigma_min: got -1.0, allowed: from 1e-06"):
        structure(Schedule, {"name": "ve", "sigma_min": -1.0})
    with pytest.raises(ConfigError, match=r"eta: got 0.5, allowed: from 1e-06 to 0.1"):
        structure(Schedule, {"name": "vp", "eta": 0.5})
    with pytest.raises(ConfigError, match=r"alpha_shape: got 'cosine' .*did you mean 'cos'"):
        structure(Schedule, {"name": "vp", "alpha_shape": "cosine"})


@pytest.mark.parametrize("key", ["sigma_min", "sigma_max"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, 1e-308, 0.0])
def test_scales_that_float32_cannot_hold_are_refused(key: str, value: float) -> None:
    for schedule in (VE, LogNormal):
        with pytest.raises(ConfigError, match=re.escape(f"{key}: got {value}")):
            schedule(**{key: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    for key in ("mean", "std"):
        with pytest.raises(ConfigError, match=re.escape(f"{key}: got {value}")):
            LogNormal(**{key: value})
