r"""Assimilation methods: a problem in, a posterior ensemble out.

All methods solve the same :class:`Problem`, so that they are compared on the same observations.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import attrs
import torch
import xarray as xr
from torch import Tensor

from sda_core.config import component
from sda_core.data import Standardization
from sda_core.errors import AssimilationWarning, DataError, ShapeError
from sda_core.io.progress import reporting_steps
from sda_core.io.xarray import trajectories
from sda_core.method.divergence import warn_misfit, warn_out_of_range
from sda_core.observation import MatchedObservations, ObservationModel
from sda_core.system import System

if TYPE_CHECKING:
    from sda_core.cluster import Cluster
    from sda_core.denoiser import Denoiser
    from sda_core.method.ensemble import Ensemble


@attrs.frozen(kw_only=True, eq=False)
class Problem:
    r"""Infer the trajectory x_1:L of a system from an observation y.

    Attributes:
        system: The system.
        observation: p(y | x) for trajectories of length L.
        y: The observation, (\*obs), in the units of the operator.
        truth: The trajectory that y was drawn from, (L, C, \*S), if known.
        matched: The table that y comes from, if it does.

    Raises:
        ShapeError: y does not have the shape that the operator gives.
        DataError: No value of y is finite.

    Values of y that are not finite are missing: they are left out, with an ``AssimilationWarning``,
    and the observation is then flat, (n,).
    """

    system: System
    observation: ObservationModel
    y: Tensor
    truth: Tensor | None = None
    matched: MatchedObservations | None = None

    def __attrs_post_init__(self) -> None:
        if self.y.shape != self.observation.shape:
            raise ShapeError(
                f"the observation has the shape {tuple(self.y.shape)}, but the operator gives "
                f"{tuple(self.observation.shape)} for trajectories of {self.length} states"
            )
        finite = self.y.isfinite()
        if finite.all():
            return
        if not finite.any():
            raise DataError(f"none of the {self.y.numel()} observed values is finite")
        warnings.warn(
            f"{int((~finite).sum())} of {self.y.numel()} observed values are not finite: left out",
            AssimilationWarning,
            stacklevel=3,
        )
        object.__setattr__(self, "observation", self.observation.select(finite))
        object.__setattr__(self, "y", self.y[finite])

    @property
    def length(self) -> int:
        """Number L of states."""
        return self.observation.length

    @property
    def shape(self) -> tuple[int, ...]:
        r"""Shape (L, C, \*S) of a trajectory."""
        return (self.length, *self.system.spec.state_shape)

    def to_dataset(self) -> xr.Dataset:
        """The observation, its noise and, where known, the time index of each value and the truth.

        Of a table of observations: all of them, with their status.
        """
        if self.matched is not None:
            return self.matched.to_dataset()
        dims = [f"observation_{i}" for i in range(self.y.ndim)]
        data: dict[str, Any] = {
            "y": (dims, self.y.numpy()),
            "std": (dims, self.observation.std_at(self.y).numpy()),
        }
        if self.observation.times is not None:
            data["time_index"] = (dims, self.observation.times.contiguous().numpy())
        dataset = xr.Dataset(data)
        if self.truth is not None:
            dataset["truth"] = trajectories(self.truth, self.system.spec)
        return dataset


class PriorModel(Protocol):
    """A model of the prior, such as :class:`sda_core.model.TrainedModel`."""

    @property
    def standardization(self) -> Standardization:
        """The map between physical units and model space."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def trajectory_denoiser(self) -> Denoiser:
        """The denoiser of trajectories, in model space."""
        ...


@attrs.frozen(kw_only=True, eq=False)
class Execution:
    """How a method is carried out; no result depends on it.

    Attributes:
        on_step: Called with (steps done, number of steps).
        announce: Called with a line of text that says what is about to be done.
        ensemble: Where members can be written as they are finished, and how far the method has come
            can be kept; a method that uses it returns its values.
        record: Called with what is worth keeping beside the ensemble, by name, as JSON can hold it.
        cluster: Where members are drawn; None for this process.
        workers: Number of processes of the cluster that draw them.
    """

    on_step: Callable[[int, int], None] | None = None
    announce: Callable[[str], None] | None = None
    ensemble: Ensemble | None = None
    record: Callable[[Mapping[str, Any]], None] | None = None
    cluster: Cluster | None = None
    workers: int = 1


@component
class Method(ABC):
    """A complete assimilation method.

    Class attributes:
        needs_model: Whether it needs a trained model, a sampler and a guidance, which it then holds
            as ``model``, ``sampler`` and ``guidance`` (:class:`~sda_core.method.GuidedMethod`).
        needs_guidance: Whether a method that needs a model needs a guidance, too.
        spreads: Whether its members can be drawn on a cluster, each without the others.
        point_estimate: Whether it gives one trajectory, which all members repeat.
    """

    sda_kind: ClassVar[str] = "method"
    needs_model: ClassVar[bool] = False
    needs_guidance: ClassVar[bool] = True
    spreads: ClassVar[bool] = False
    point_estimate: ClassVar[bool] = False

    def assimilate(
        self, problem: Problem, members: int = 64, seed: int = 0, *, progress: bool = True
    ) -> xr.DataArray:
        """Infer the trajectory of a problem.

        Args:
            problem: The problem.
            members: Number M of members.
            seed: Source of all randomness.
            progress: Whether to show it.

        Returns:
            The posterior ensemble in physical units, with the dimensions member, time, variable and
            those of the grid.

        Raises:
            AssimilationError: The method cannot solve this problem, or failed on it.
        """
        with reporting_steps(progress, "assimilating") as on_step:
            x = self.draw(problem, members, seed, Execution(on_step=on_step))
        self.check_plausible(problem, x)
        return trajectories(x, problem.system.spec).rename("posterior")

    def check_plausible(self, problem: Problem, x: Tensor) -> None:
        r"""Warn of members that are absurd, and of observations that are missed by far.

        Args:
            problem: The problem.
            x: The posterior ensemble in physical units, (M, L, C, \*S).
        """
        model, spec = getattr(self, "model", None), problem.system.spec
        if model is not None:
            warn_out_of_range(x, model.standardization, spec.variable_names)
        elif spec.mean is not None and spec.std is not None:
            warn_out_of_range(x, Standardization.from_spec(spec), spec.variable_names)
        warn_misfit(problem.observation, problem.y, x, guided=model is not None)

    @abstractmethod
    def draw(
        self, problem: Problem, members: int, seed: int, execution: Execution = Execution()
    ) -> Tensor:
        r"""Draw an ensemble from (an approximation of) p(x_1:L | y).

        Args:
            problem: The problem.
            members: Number M of members.
            seed: Source of all randomness.
            execution: What it reports to, where members go and where they are drawn.

        Returns:
            Trajectories in physical units, (M, L, C, \*S).

        Raises:
            AssimilationError: The method cannot solve this problem, or failed on it.
        """
