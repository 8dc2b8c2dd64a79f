"""JAX and jax-cfd, imported here and nowhere else.

jax-cfd 0.2.1 is the last release, and calls a function that JAX has dropped since.

Memory: JAX by default takes three quarters of a GPU when it first computes, which leaves too little
for torch. This module tells it not to, unless ``XLA_PYTHON_CLIENT_PREALLOCATE`` is set. JAX reads
the variable when it first looks for devices: a program that computes with JAX before it imports
this module must set the variable itself.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.dlpack import from_dlpack

from sda_core.errors import PluginError

__all__ = ["MissingPackageError", "cfd", "from_jax", "jax", "jnp", "random_keys", "to_jax"]


class MissingPackageError(PluginError, ImportError):
    """JAX or jax-cfd is not installed."""


os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

try:
    import jax
    import jax.numpy as jnp

    if not hasattr(jax, "tree_map"):
        jax.tree_map = jax.tree_util.tree_map  # type: ignore[attr-defined]
    import jax_cfd.base as cfd
except ImportError as error:
    raise MissingPackageError(
        f"the Kolmogorov flow is simulated with jax-cfd, which cannot be imported ({error}). To "
        "mend: pip install jax jax-cfd==0.2.1 tree-math, and jax[cuda12] in place of jax for a "
        "GPU. Data that are made already can be used without."
    ) from error


def random_keys(n: int, generator: Generator) -> jax.Array:
    """n JAX keys drawn from a torch generator."""
    words = torch.randint(2**32, (n, 2), generator=generator, device=generator.device)
    data = jnp.asarray(words.cpu().numpy().astype(np.uint32))
    return jax.random.wrap_key_data(data, impl="threefry2x32")


def to_jax(x: Tensor) -> jax.Array:
    """A tensor as a float32 array on JAX's device, without gradients."""
    x = x.detach().to(torch.float32).contiguous()
    if jax.default_backend() == "cpu":
        x = x.cpu()
    return jax.device_put(jax.dlpack.from_dlpack(x), jax.devices()[0])


def from_jax(x: jax.Array, device: torch.device) -> Tensor:
    """A finished array as a tensor on torch's device."""
    if device.type == "cpu":
        x = jax.device_put(x, jax.devices("cpu")[0])
    return from_dlpack(x.block_until_ready()).to(device)
