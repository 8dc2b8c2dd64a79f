"""Runs of Lorenz-63 that are too small to be any good, and quick to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import sda_core as sda

#: What the small runs of all tests have in common.
COMMON = [
    "data.trajectories=40",
    "data.length=48",
    "data.burn_in=8",
    "kernel.width=16",
    "kernel.blocks=1",
    "model.window=9",
    "model.stride=4",
]
#: The smallest, of all stages.
TINY = [
    *COMMON,
    "kernel.width=8",
    "model.window=5",
    "model.stride=2",
    "train.epochs=2",
    "sampler.steps=3",
    "sample.members=4",
    "assimilate.members=4",
    "assimilate.length=9",
    "evaluate.reference.particles=32",
]


def experiments(settings: Iterable[str]) -> Callable[..., sda.Experiment]:
    """A function that gives the preset with these settings, and with what is changed besides."""
    return lambda *changes: sda.load_experiment("lorenz63-quick", [*settings, *changes])


def options(settings: Iterable[str]) -> list[str]:
    """Settings as options of a command."""
    return [word for setting in settings for word in ("--set", setting)]
