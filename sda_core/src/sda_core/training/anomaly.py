"""Where a value that is not finite comes from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sda_core.errors import TrainingError


@contextmanager
def anomaly_hunt(network: nn.Module) -> Iterator[None]:
    """Stop at the first module or gradient that gives a value that is not finite.

    Not for a training in float16, whose gradients overflow now and then because of the scale of the
    loss, which is no fault: hunt in float32 instead.

    Args:
        network: The network that is trained, not compiled.

    Raises:
        TrainingError: Names the module with what went in and came out, or the operation whose
            gradient it was with the line of code that called it.
    """
    names = {module: name or type(module).__name__ for name, module in network.named_modules()}

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor) or bool(output.isfinite().all()):
            return
        given = "; ".join(_describe(x) for x in inputs if isinstance(x, Tensor))
        weights = "; ".join(f"{n}: {_describe(p)}" for n, p in module.named_parameters())
        raise TrainingError(
            f"module {names[module]} ({type(module).__name__}) gave {_describe(output)}. It was "
            f"given {given or 'nothing'}" + (f"; its weights are {weights}" if weights else "")
        )

    leaves = [m for m in network.modules() if not list(m.children())]
    hooks = [module.register_forward_hook(look) for module in leaves]
    try:
        with torch.autograd.detect_anomaly(check_nan=True):
            yield
    except RuntimeError as error:
        if "returned nan values" not in str(error):
            raise
        raise TrainingError(
            f"a gradient is not finite: {error} The warning before says which line computed it"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def _describe(x: Tensor) -> str:
    shape = tuple(x.shape)
    finite = x[x.isfinite()]
    bad = x.numel() - finite.numel()
    span = f"{finite.min():.3g} to {finite.max():.3g}" if len(finite) else "no finite values"
    return f"{shape} of {span}" + (f", {bad} of {x.numel()} not finite" if bad else "")
