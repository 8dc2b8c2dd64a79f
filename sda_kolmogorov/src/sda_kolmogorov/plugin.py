"""What this package registers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sda_core.plugins import Component, Preset, components, hookimpl, presets

if TYPE_CHECKING:
    from torch import Tensor

    from sda_core.figures import Picture
    from sda_core.method import Problem
    from sda_core.system import System
    from sda_core.tracker import Value

sda_interface = 1


@hookimpl
def sda_register_components() -> list[Component]:
    """The system, and observations of flows."""
    return components(
        "system",
        "sda_kolmogorov",
        {
            "kolmogorov": (
                "kolmogorov:KolmogorovFlow",
                "Two-dimensional turbulence driven by a sine (the SDA paper's, on jax-cfd)",
            ),
        },
    ) + components(
        "observation",
        "sda_kolmogorov",
        {
            "vorticity": ("observation.vorticity:Vorticity", "Vorticity of a two-dimensional flow"),
            "saturation": (
                "observation.saturation:Saturation",
                "Vorticity w seen as w / (1 + abs(w)), as in the SDA paper",
            ),
            "speed": ("observation.speed:Speed", "Speed of a two-dimensional flow"),
        },
    )


@hookimpl
def sda_register_presets() -> list[Preset]:
    """The experiments."""
    return presets(
        "sda_kolmogorov",
        {
            "kolmogorov-small": "Kolmogorov flow at 32 x 32, under half an hour on 2 CPU cores",
            "kolmogorov-base": "Kolmogorov flow at 64 x 64, U-Net of 9.5 M parameters, for one GPU",
            "kolmogorov-large": "Kolmogorov flow at 64 x 64, U-Net of 45 M parameters, a GPU day",
            "kolmogorov-rozet2023": "As in the SDA paper: 64 x 64, U-Net, k = 2, 4096 epochs",
        },
    )


@hookimpl
def sda_scores(problem: Problem, ensemble: Tensor) -> dict[str, float]:
    """Scores of flows, for problems of this package's system."""
    if not _is_flow(problem.system):
        return {}
    from sda_kolmogorov.scores import kolmogorov_scores

    return kolmogorov_scores(problem, ensemble)


@hookimpl
def sda_figures(problem: Problem, ensembles: Mapping[str, Tensor]) -> list[Picture]:
    """Pictures of flows, for problems of this package's system."""
    if not _is_flow(problem.system):
        return []
    from sda_kolmogorov.figures import kolmogorov_pictures

    return kolmogorov_pictures(problem, ensembles)


@hookimpl
def sda_diagnostics(run: Any, stage: str, context: Mapping[str, Any]) -> dict[str, Value]:
    """Pictures and numbers of sampled flows, while a model of this package's system is trained."""
    if stage != "training-samples" or not _is_flow(run.experiment.system):
        return {}
    from sda_kolmogorov.diagnostics import kolmogorov_diagnostics

    return kolmogorov_diagnostics(run, context["samples"])


def _is_flow(system: System) -> bool:
    from sda_kolmogorov.kolmogorov import KolmogorovFlow  # without JAX, but with torch

    return isinstance(system, KolmogorovFlow)
