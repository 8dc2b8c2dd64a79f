"""How promises are stated and kept: what the checks of all kinds share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs
import torch
from torch import Tensor


def require(condition: object, message: str) -> None:
    """Fail with a message unless a condition holds."""
    if not condition:
        raise AssertionError(message)


def require_close(
    actual: Tensor, expected: Tensor, what: str, *, rtol: float = 0.0, atol: float = 0.0
) -> None:
    """Fail unless two tensors have one shape and agree within |expected| rtol + atol."""
    require(
        actual.shape == expected.shape,
        f"{what}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}",
    )
    actual, expected = actual.detach().double(), expected.detach().double()
    error = (actual - expected).abs()
    # Written so that nan fails.
    wrong = ~(error <= atol + rtol * expected.abs())
    require(
        not bool(wrong.any()),
        f"{what}: {int(wrong.sum())} of {wrong.numel()} values differ, by up to "
        f"{float(error.max()):.3g} (allowed: {atol:g} + {rtol:g} |value|)",
    )


@attrs.frozen
class Check:
    """One promise of one component, as a callable that fails if it is broken.

    Attributes:
        subject: What is checked, in words.
        promise: Function of ``arguments`` whose docstring says what is promised, and that raises
            AssertionError where it is not kept.
        arguments: Makes the arguments; called when the check is.
    """

    subject: str
    promise: Callable[..., None]
    arguments: Callable[[], tuple[Any, ...]]

    def __str__(self) -> str:
        """A name for tests: subject and promise."""
        return f"{self.subject}{self.promise.__name__.replace('_', '-')}"

    def __call__(self) -> None:
        """Check.

        Raises:
            AssertionError: The promise is broken; says how.
        """
        promised = " ".join((self.promise.__doc__ or self.promise.__name__).split())
        try:
            self.promise(*self.arguments())
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            raise AssertionError(
                f"{self.subject} breaks the promise {promised!r}: {kind}{error}"
            ) from error


def keep(promises: Iterable[Callable[..., None]], subject: object, *conditions: Any) -> None:
    """Check all promises of one component."""
    for promise in promises:
        Check(type(subject).__name__, promise, lambda: (subject, *conditions))()


def generator(seed: int) -> torch.Generator:
    """A generator for the checks' own random numbers."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float64, the same at each call."""
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)
