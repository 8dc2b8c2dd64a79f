"""The random numbers of a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor

from sda_core.random import seeded_generator

#: Streams of random numbers, so that none depends on how many another has used.
_DATA, _LOSS, _VALID, _KERNEL = 1, 2, 3, 4


class RandomState:
    """Where the random numbers of a training come from.

    Args:
        seed: Source of all randomness.
        device: Where times and noise are drawn.
        rank: The process of a group; its kernel draws random numbers of its own.

    Attributes:
        draws: Source of the times and the noise of an epoch.
    """

    def __init__(self, seed: int, device: torch.device, rank: int) -> None:
        self._seed, self._device, self._rank = seed, device, rank
        self._kernel_states: list[Tensor] = []
        self.draws = self._generator(_LOSS, 0)

    def begin_epoch(self, epoch: int) -> None:
        """Seed what an epoch draws."""
        self.draws = self._generator(_LOSS, epoch)
        # For kernels that draw random numbers of their own, such as dropout.
        self._seed_kernel(_KERNEL, epoch)

    def begin_batch(self, epoch: int, batch: int) -> None:
        """Seed what the kernel draws, on a rank whose state is not saved."""
        if self._rank:
            self._seed_kernel(_KERNEL, epoch, batch, self._rank)

    def order(self, epoch: int) -> Generator:
        """Source of the windows of an epoch, the same on every device."""
        return seeded_generator(self._seed, _DATA, epoch)

    def validation_order(self, number: int) -> Generator:
        """Source of the windows of a pass over the validation data, likewise."""
        return seeded_generator(self._seed, _VALID, 0, number)

    def validation_draws(self) -> Generator:
        """Source of the times and the noise of a validation."""
        return self._generator(_VALID, 1)

    @contextmanager
    def kernel(self, *, keep: bool = True) -> Iterator[None]:
        """Torch's own random state is the training's within, and untouched outside."""
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
            if self._kernel_states:
                torch.set_rng_state(self._kernel_states[0])
                if self._device.type == "cuda":
                    torch.cuda.set_rng_state(self._kernel_states[1], self._device)
            yield
            if keep:
                self._kernel_states = [torch.get_rng_state()]
                if self._device.type == "cuda":
                    self._kernel_states.append(torch.cuda.get_rng_state(self._device))

    def state_dict(self) -> dict[str, Tensor]:
        """What the rest of an epoch draws depends on."""
        kernel = {f"kernel.{i}": state for i, state in enumerate(self._kernel_states)}
        return {"draws": self.draws.get_state(), **kernel}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Resume from a state that :meth:`state_dict` gave on a device of the same type."""
        self.draws.set_state(tensors["draws"])
        self._kernel_states = [v for k, v in tensors.items() if k.startswith("kernel.")]

    def resume_elsewhere(self, epoch: int, batch: int) -> None:
        """Seed the rest of an epoch that was begun on a device of another type."""
        self.draws = self._generator(_LOSS, epoch, batch)
        self._seed_kernel(_KERNEL, epoch, batch)

    def _generator(self, *key: int) -> Generator:
        """A generator on the device."""
        seed = seeded_generator(self._seed, *key).initial_seed()
        return Generator(self._device).manual_seed(seed)

    def _seed_kernel(self, *key: int) -> None:
        """Seed torch's own generators for the training."""
        seed = seeded_generator(self._seed, *key).initial_seed()
        with self.kernel():
            torch.default_generator.manual_seed(seed)
            if self._device.type == "cuda":  # this one, and no other GPU's
                with torch.cuda.device(self._device):
                    torch.cuda.manual_seed(seed)
