"""Small systems for the tests of data sets; as a script it makes a data set of one of them."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import attrs
import numpy as np
import torch
from torch import Generator, Tensor

from sda_core.data import DataConfig, generate
from sda_core.system import Axis, ODESystem, SDESystem, System, SystemSpec


@attrs.frozen(kw_only=True)
class Walk(SDESystem):
    """Relaxation with noise, on a grid of 4 points; ``pause`` slows each block down."""

    block_size = 4
    substeps = 2
    pause: float = 0.0

    @property
    def spec(self) -> SystemSpec:
        axis = Axis("place", np.linspace(0.0, 1.5, 4), "m")
        return SystemSpec(
            variables=("u [m/s]", "T [K]"), axes=(axis,), time_step=0.5, time_units="s"
        )

    def prior(self, shape, generator: Generator) -> Tensor:
        time.sleep(self.pause)
        return torch.randn(*shape, 2, 4, generator=generator)

    def drift(self, x: Tensor) -> Tensor:
        return torch.tensor([[3.0], [280.0]]) - x.sin() - x

    def diffusion(self, x: Tensor) -> float:
        return 0.5


@attrs.frozen(kw_only=True)
class Swing(ODESystem):
    """A deterministic system without a grid, with its own standardization."""

    block_size = 8
    std: tuple[float, float] | None = (0.5, 2.0)

    @property
    def spec(self) -> SystemSpec:
        mean = None if self.std is None else (0.0, 1.0)
        return SystemSpec(variables=("q", "p"), time_step=0.1, mean=mean, std=self.std)

    def prior(self, shape, generator: Generator) -> Tensor:
        return torch.randn(*shape, 2, generator=generator)

    def rhs(self, x: Tensor) -> Tensor:
        return torch.stack((x[..., 1], -x[..., 0].sin()), -1)


@attrs.frozen(kw_only=True)
class Wave(System):
    """A field carried along a ring, whole trajectories at once.

    Members whose field exceeds ``limit`` anywhere are lost, as in a simulation that blows up. Being
    carried along changes no maximum, so that whether one is lost depends on its prior alone.
    """

    block_size: int = 4
    limit: float = torch.inf
    pause: float = 0.0

    @property
    def spec(self) -> SystemSpec:
        axes = (Axis("grid_x", np.arange(3.0)), Axis("grid_y", np.arange(5.0)))
        return SystemSpec(variables=("u", "v"), axes=axes, time_step=1.0)

    def prior(self, shape, generator: Generator) -> Tensor:
        return torch.randn(*shape, 2, 3, 5, generator=generator)

    def transition(self, x: Tensor, generator: Generator) -> Tensor:
        lost = x.amax((-3, -2, -1), keepdim=True) > self.limit
        return torch.where(lost, torch.nan, x.roll(1, -1))

    def trajectory(self, x: Tensor, length: int, burn_in: int, generator: Generator) -> Tensor:
        time.sleep(self.pause)
        lost = x.amax((-3, -2, -1), keepdim=True) > self.limit
        steps = range(burn_in + 1, burn_in + length + 1)
        return torch.stack([torch.where(lost, torch.nan, x.roll(i, -1)) for i in steps], 1)


def make(
    system: System,
    path: Path,
    trajectories: int = 20,
    seed: int = 1,
    length: int = 12,
    workers: int = 1,
    **options,
) -> Path:
    """Make a data set with defaults for the tests."""
    config = DataConfig(trajectories=trajectories, length=length, burn_in=3, workers=workers)
    # Slowing it down does not make it another data set.
    system_config = {"name": type(system).__name__.lower()}
    return generate(system, path, config, seed, system_config=system_config, **options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--limit", type=float)
    parser.add_argument("--stop-in-merge", action="store_true")
    arguments = parser.parse_args()
    if arguments.stop_in_merge:
        # Stops where train.h5 has its name and the others do not.
        import os

        replace = os.replace

        def replace_then_wait(source, target):
            replace(source, target)
            if str(target).endswith("train.h5"):
                time.sleep(60)

        os.replace = replace_then_wait
    system = Walk(pause=arguments.pause)
    if arguments.limit is not None:
        system = Wave(pause=arguments.pause, limit=arguments.limit)
    make(system, arguments.path, workers=arguments.workers)
