"""What every noise promises."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sda_core.noise import Noise, NoiseModel
from sda_core.testing.promises import generator, keep, normal, require, require_close

#: Checked for observations of this shape where nothing else is given.
DEFAULT_SHAPE = (4, 3)
#: Where errors may be bounded below, as of counts: all means are above this.
_LEAST = 3.0


def _mean(noise: Noise, shape: Sequence[int], *batch: int) -> tuple[NoiseModel, Tensor]:
    """The model, and some positive means (*batch, n) in units of the errors' size."""
    model = noise.bind(shape)
    z = normal(*batch, len(model.std), seed=3).abs()
    return model, (_LEAST + z) * model.std


def _draws(model: NoiseModel, mean: Tensor, count: int, seed: int = 0) -> Tensor:
    return model.sample(mean.expand(count, len(mean)), generator(seed))


def _shape(noise: Noise, shape: Sequence[int]) -> None:
    """Results have their shapes and the type of the mean, sizes are positive."""
    model, mean = _mean(noise, shape, 5)
    n = torch.Size(shape).numel()
    require(model.std.shape == (n,), f"std is {tuple(model.std.shape)} for {n} values")
    require(bool((model.std > 0).all()), "a std is not positive")
    for dtype in (torch.float32, torch.float64):
        m = mean.to(dtype)
        y = model.sample(m, generator(0))
        found = {
            "sample": (y, m.shape),
            "log_prob": (model.log_prob(y, m), m.shape[:1]),
            "variance": (model.variance(y, m), m.shape),
            "variance with a spread": (model.variance(y, m, torch.ones_like(m)), m.shape),
            "whiten": (model.whiten(m), m.shape),
            "std_at": (model.std_at(m), m.shape),
        }
        for name, (out, wanted) in found.items():
            require(
                out.shape == wanted and out.dtype == dtype,
                f"{name} is {tuple(out.shape)}, {out.dtype} for a mean {tuple(m.shape)}, {dtype}",
            )
            require(bool(out.isfinite().all()), f"{name} in {dtype} is not finite")


def _batch(noise: Noise, shape: Sequence[int]) -> None:
    """A member does not depend on its mates, and y may be one for all or one for each."""
    model, mean = _mean(noise, shape, 3)
    y = model.sample(mean[0], generator(0))
    each = y.expand(3, -1)
    close = {"rtol": 1e-9, "atol": 1e-12}
    require_close(model.log_prob(y, mean), model.log_prob(each, mean), "one y for all", **close)
    alone = torch.stack([model.log_prob(y, m) for m in mean])
    require_close(alone, model.log_prob(y, mean), "log_prob of members alone", **close)
    one = model.variance(y[None], mean[1:2], mean[1:2])
    require_close(one[0], model.variance(y, mean, mean)[1], "v of a member alone", **close)
    require_close(model.whiten(mean[1]), model.whiten(mean)[1], "W m of a member alone", **close)


def _normalized(noise: Noise, shape: Sequence[int]) -> None:
    """The density of each entry integrates to 1, or sums to 1 over the values that are drawn."""
    model, mean = _mean(noise, shape)
    for i in range(len(mean)):
        one = model.select(torch.arange(len(mean)) == i)
        values = _draws(one, mean[i : i + 1], 1024).unique()
        if len(values) < 512:  # counts, or multiples of them
            step = values.diff().min()
            y = values.min() + step * torch.arange(-4096, 4096, dtype=torch.float64)
            weight = torch.ones_like(y)
            y, weight = y[y >= -step / 2], weight[y >= -step / 2]
        else:
            u = torch.linspace(-20, 20, 8001, dtype=torch.float64)
            y = mean[i] + one.std * torch.sinh(u)
            weight = one.std * torch.cosh(u) * (u[1] - u[0])
        total = float((one.log_prob(y[:, None], mean[i].expand(len(y), 1)).exp() * weight).sum())
        require(abs(total - 1) < 1e-3, f"that of entry {i} gives {total:.5f}")


def _sample(noise: Noise, shape: Sequence[int]) -> None:
    """Draws are those of log_prob, by the generator given: E[(y - m) d log p / dm] = 1."""
    model, mean = _mean(noise, shape)
    count = 16384
    y = _draws(model, mean, count)
    require(torch.equal(y, _draws(model, mean, count)), "one seed gives two draws")
    m = mean.expand_as(y).clone().requires_grad_()
    (score,) = torch.autograd.grad(model.log_prob(y, m).sum(), m)
    product = (y - mean) * score
    error = (product.mean(0) - 1) / (product.std(0) / count**0.5)
    require(
        bool((error.abs() < 5).all()),
        f"it is up to {float(error.abs().max()):.1f} standard errors from 1",
    )


def _variance(noise: Noise, shape: Sequence[int]) -> None:
    """v is positive, also at y = m, and gives the score: d log p / dm = W^T (W (y - m) / v)."""
    model, mean = _mean(noise, shape, 6)
    y = model.sample(mean, generator(1))
    y[0] = mean[0]
    v = model.variance(y, mean)
    require(bool((v > 0).all() and v.isfinite().all()), "v is not finite and positive")
    m = mean[1:].clone().requires_grad_()
    (score,) = torch.autograd.grad(model.log_prob(y[1:], m).sum(), m)
    m = mean[1:].clone().requires_grad_()
    r = model.whiten(y[1:] - m)
    (gaussian,) = torch.autograd.grad(-0.5 * (r**2 / v[1:]).sum(), m)
    scale = float(score.abs().max())
    require_close(gaussian, score, "the score", rtol=1e-6, atol=1e-9 * scale)


def _whitening(noise: Noise, shape: Sequence[int]) -> None:
    """W is linear, and what it leaves of errors is not correlated."""
    model, mean = _mean(noise, shape)
    a, b = normal(2, len(mean), seed=4)
    require_close(
        model.whiten(2 * a - b),
        2 * model.whiten(a) - model.whiten(b),
        "linearity",
        rtol=1e-9,
        atol=1e-9,
    )
    count = 16384
    # Scores are bounded where errors have no variance.
    r = model.whiten(_draws(model, mean, count) - mean)
    r = r / model.variance(mean + r, mean.expand_as(r)).sqrt()
    correlation = r.T.corrcoef() - torch.eye(len(mean), dtype=r.dtype)
    require(
        float(correlation.abs().max()) < 6 / count**0.5,
        f"a correlation of {float(correlation.abs().max()):.3f} is left",
    )


def _marginal(noise: Noise, shape: Sequence[int]) -> None:
    """The noise of some entries is the marginal: the rest, integrated out, changes nothing."""
    model, mean = _mean(noise, shape)
    some = torch.arange(len(mean)) % 3 != 1
    if not some.any():
        return
    chosen = model.select(some)
    require_close(chosen.std, model.std[some], "its std", rtol=1e-12)
    count = 4096
    y = _draws(model, mean, count)[:, some]
    m = mean[some].expand_as(y).clone().requires_grad_()
    (score,) = torch.autograd.grad(chosen.log_prob(y, m).sum(), m)
    product = torch.einsum("bi,bj->bij", y - mean[some], score)
    wanted = torch.eye(len(m[0]), dtype=y.dtype)
    error = (product.mean(0) - wanted) / (product.std(0) / count**0.5)
    require(
        bool((error.abs() < 5.5).all()),
        f"E[(y - m) score^T] is {float(error.abs().max()):.1f} standard errors from the identity",
    )


def _correlates(noise: Noise, shape: Sequence[int]) -> None:
    """Entries that are said not to be correlated have densities that multiply."""
    model, mean = _mean(noise, shape)
    n = len(mean)
    for labels in (torch.arange(n), torch.arange(n) // max(1, shape[-1])):
        if model.correlates(labels):
            continue
        y = model.sample(mean, generator(2))
        parts = [labels == label for label in labels.unique()]
        terms = [model.select(p).log_prob(y[p], mean[p]) for p in parts]
        require_close(
            torch.stack(terms).sum(0), model.log_prob(y, mean), "the sum", rtol=1e-9, atol=1e-9
        )
    require(not model.correlates(torch.zeros(n)), "entries with one label count as different")


PROMISES = (
    _shape,
    _batch,
    _normalized,
    _sample,
    _variance,
    _whitening,
    _marginal,
    _correlates,
)


def check_noise(noise: Noise, shape: Sequence[int] = DEFAULT_SHAPE) -> None:
    r"""Check what every noise promises.

    Args:
        noise: The noise.
        shape: Shape (\*obs) of observations that it fits.

    Raises:
        AssertionError: A promise is broken; says which, and how.
    """
    keep(PROMISES, noise, shape)
