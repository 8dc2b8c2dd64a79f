"""What every schedule promises."""

from __future__ import annotations

import torch

from sda_core.schedule import Schedule
from sda_core.testing.promises import keep, require, require_close

_T = torch.linspace(0, 1, 1001, dtype=torch.float64)


def _positive(schedule: Schedule) -> None:
    """alpha and sigma are positive and finite on [0, 1]."""
    for name, scale in (("alpha", schedule.alpha(_T)), ("sigma", schedule.sigma(_T))):
        bad = _T[~((scale > 0) & scale.isfinite())]
        require(len(bad) == 0, f"{name} is not, at t = {bad[:3].tolist()}")


def _monotone(schedule: Schedule) -> None:
    """alpha does not increase, sigma does not decrease, and alpha / sigma strictly decreases."""
    alpha, sigma, log_snr = (f(_T) for f in (schedule.alpha, schedule.sigma, schedule.log_snr))
    for name, wrong in (
        ("alpha increases", alpha.diff() > 0),
        ("sigma decreases", sigma.diff() < 0),
        ("alpha / sigma does not decrease", log_snr.diff() >= 0),
    ):
        require(not bool(wrong.any()), f"{name} near t = {_T[1:][wrong][:3].tolist()}")


def _ends(schedule: Schedule) -> None:
    """t = 0 is almost the data, and t = 1 almost pure noise."""
    alpha, sigma = schedule.alpha(_T[[0, -1]]), schedule.sigma(_T[[0, -1]])
    require(abs(float(alpha[0]) - 1) < 1e-3, f"alpha(0) = {float(alpha[0]):g}, not 1")
    require(float(sigma[0]) < 0.1, f"sigma(0) = {float(sigma[0]):g}, not below 0.1")
    ratio = float(sigma[1] / alpha[1])
    require(ratio > 8, f"sigma(1) / alpha(1) = {ratio:g}, not above 8")


def _broadcasting(schedule: Schedule) -> None:
    """A time of any shape gives scales of that shape, each a function of its own time alone."""
    t = torch.tensor([[0.0, 0.3, 0.5], [0.7, 0.9, 1.0]], dtype=torch.float64)
    for name, f in (("alpha", schedule.alpha), ("sigma", schedule.sigma)):
        for shape in ((), (1,), (6,), (2, 3), (6, 1, 1)):
            times = t[0, 1] if shape == () else t.flatten()[: torch.Size(shape).numel()]
            times = times.reshape(shape)
            each = torch.stack([f(s) for s in times.flatten()]).reshape(shape)
            require_close(f(times), each, f"{name} of times of shape {shape}", rtol=1e-12)


def _precision(schedule: Schedule) -> None:
    """Scales have the type of the time, and in float32 they are right to 4 digits."""
    for name, f in (("alpha", schedule.alpha), ("sigma", schedule.sigma)):
        require(f(_T).dtype == torch.float64, f"{name} of float64 times is {f(_T).dtype}")
        single = f(_T.float())
        require(single.dtype == torch.float32, f"{name} of float32 times is {single.dtype}")
        require_close(single, f(_T.float().double()), f"{name} in float32", rtol=1e-4)


def _log_snr(schedule: Schedule) -> None:
    """log_snr is log(alpha^2 / sigma^2), and time is its inverse, clamped to [0, 1]."""
    log_snr = schedule.log_snr(_T)
    direct = (schedule.alpha(_T) ** 2 / schedule.sigma(_T) ** 2).log()
    require_close(log_snr, direct, "log_snr", rtol=1e-9, atol=1e-9)
    back = schedule.log_snr(schedule.time(log_snr))
    require_close(back, log_snr, "log_snr(time(log_snr))", rtol=1e-6, atol=1e-6)
    beyond = torch.stack((log_snr[0] + 1, log_snr[-1] - 1))
    require_close(schedule.time(beyond), _T[[0, -1]], "time beyond the end points")


PROMISES = (_positive, _monotone, _ends, _broadcasting, _precision, _log_snr)


def check_schedule(schedule: Schedule) -> None:
    """Check what every schedule promises.

    Raises:
        AssertionError: A promise is broken; says which, and how.
    """
    keep(PROMISES, schedule)
