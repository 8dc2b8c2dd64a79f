"""Ancestral steps, of a denoiser and of its guided version side by side."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from sda_core.denoiser import Denoiser
from sda_core.sampler.ddim import fresh_share


@attrs.frozen(kw_only=True, eq=False)
class AncestralWalk:
    r"""Steps x_s ~ N(carry x_t + gain x0, std^2) down a grid, on states kept on the CPU.

    With a share ``fresh`` of fresh noise (:func:`sda_core.sampler.ddim.fresh_share`) the mean is
    that of DDIM: carry = sigma_s sqrt(1 - fresh) / sigma_t and gain = alpha_s - alpha_t carry. DDIM
    draws with std^2 = sigma_s^2 fresh, the variance given x_t and x_0, as if x0 were x_0. The best
    Gaussian adds what x_0 scatters about x0,

        std^2 = sigma_s^2 fresh + gain^2 E (x_0 - x0)^2,

    without which few steps draw too narrow samples.

    References:
        - Bao et al., "Analytic-DPM: an Analytic Estimate of the Optimal Reverse Variance in
          Diffusion Probabilistic Models", 2022, https://arxiv.org/abs/2201.06503, theorem 1

    Attributes:
        prior: E[x_0 | x_t].
        guided: E[x_0 | x_t, y].
        times: The grid, float64.
        eta: Share of fresh noise, above 0.
        batch_size: States evaluated at once.
        device: Where they are.
    """

    prior: Denoiser
    guided: Denoiser
    times: Tensor
    eta: float
    batch_size: int
    device: torch.device

    def scales(self, i: int) -> tuple[Tensor, Tensor]:
        """alpha and sigma at time i, float64."""
        return self.prior.schedule.alpha(self.times[i]), self.prior.schedule.sigma(self.times[i])

    def coefficients(self, i: int) -> tuple[float, float, float]:
        """(carry, gain, std) of the step from time i to time i + 1, with the std of DDIM."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.scales(i), self.scales(i + 1)
        fresh = fresh_share(self.prior.schedule, self.times[i], self.times[i + 1], self.eta)
        carry = sigma_s / sigma_t * torch.sqrt(1 - fresh)
        return float(carry), float(alpha_s - alpha_t * carry), float(sigma_s * torch.sqrt(fresh))

    @torch.no_grad()
    def denoise(self, x: Tensor, i: int) -> Tensor:
        """E[x_0 | x_t] at time i."""
        t = self.times[i].to(self.device, x.dtype)
        parts = x.split(self.batch_size)
        return torch.cat([self.prior(part.to(self.device), t).cpu() for part in parts])

    @torch.no_grad()
    def guide(self, x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """E[x_0 | x_t] and E[x_0 | x_t, y] at time i.

        The first is taken from what the guidance evaluates, where it does.
        """
        t = self.times[i].to(self.device, x.dtype)
        done = []
        for part in x.to(self.device).split(self.batch_size):
            with _Listener(self.prior, part) as heard:
                x0_y = self.guided(part, t)
            x0 = self.prior(part, t) if heard.x0 is None else heard.x0
            done.append(torch.stack((x0, x0_y)).cpu())
        x0, x0_y = torch.cat(done, 1)
        return x0, x0_y


class _Listener:
    """Hears what a denoiser makes of one state, while it is entered."""

    def __init__(self, denoiser: Denoiser, x_t: Tensor) -> None:
        self.x0: Tensor | None = None
        self._x_t = x_t
        self._denoiser = denoiser

    def __enter__(self) -> _Listener:
        self._handle = self._denoiser.register_forward_hook(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _hear(self, _: object, given: tuple[Tensor, ...], x0: Tensor) -> None:
        if self.x0 is None and torch.equal(given[0], self._x_t):
            self.x0 = x0.detach()
