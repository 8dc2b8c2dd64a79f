r"""Assimilation of observations as they arrive.

References:
    - Rozet & Louppe, "Score-based Data Assimilation", 2023, https://arxiv.org/abs/2306.10574
    - Cohn, Sivakumaran & Todling, "A Fixed-Lag Kalman Smoother for Retrospective Data
      Assimilation", 1994, https://doi.org/10.1175/1520-0493(1994)122<2838:AFLKSF>2.0.CO;2
    - Meng et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential
      Equations", 2022, https://arxiv.org/abs/2108.01073 (noise a guess, and denoise it)
"""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sda_core.config import structure, unstructure
from sda_core.errors import AssimilationError, AssimilationWarning, CheckpointError, DataError
from sda_core.io.files import replace_file
from sda_core.method.base import PriorModel
from sda_core.method.conditional import ConditionalSampler, Constraint
from sda_core.method.forecasting import extend, piece_length
from sda_core.observation import Observation, ObservationModel
from sda_core.random import seeded_generator
from sda_core.system import SystemSpec

if TYPE_CHECKING:
    from sda_core.guidance.base import Guidance
    from sda_core.sampler.base import Sampler

SCHEMA = 1
_FORECAST, _POSTERIOR = 0, 1


@attrs.frozen(kw_only=True, eq=False)
class WindowPosterior:
    r"""What an update gives.

    Attributes:
        ensemble: Trajectories over the window, (M, L, C, \*S), physical units.
        first: Number of the window's first state; the first state of the first batch is number 0.
        latency: Seconds that the update took.
        evaluations: Evaluations of the prior's denoiser per member, forecast included.
        log: What was done, one line each.
    """

    ensemble: Tensor
    first: int
    latency: float
    evaluations: float
    log: tuple[str, ...]

    @property
    def newest(self) -> Tensor:
        r"""The ensemble at the newest time, (M, C, \*S): the filter's."""
        return self.ensemble[:, -1]


@attrs.frozen(kw_only=True, eq=False)
class _Batch:
    observation: Observation
    model: ObservationModel
    y: Tensor
    first: int


@attrs.define(kw_only=True, eq=False)
class OnlineAssimilator:
    r"""Holds an ensemble over a sliding window, and moves it on batch by batch.

    An update moves the window of L states on by ``step`` and samples

        p(x_1:L | x_1:C of the member, observations in the window).

    The members' own oldest C states, samples given all observations so far, carry what observations
    before the window said. By the Markov property the result is exact but for three things:

    - the oldest states are not drawn again in the light of the newest batch (a fixed-lag smoother
      with a lag of L - C - step to L - C states): choose the window so long that a batch says
      little about the state before it. A system without noise of its own forgets nothing, and
      needs ``background_std`` as large as the ensemble's spread;
    - they are held within ``background_std``, which lets members wander by about that much;
    - a warm start takes the last posterior, extended by a forecast and noised to ``start_level``,
      for a sample of the new posterior noised to it: right where this noise is larger than what the
      new observations change.

    Without observations the posterior is the last one with a forecast. Members never see each
    other: each depends on (seed, its number, the batches) alone.

    Attributes:
        model: The model of the prior.
        spec: What the states are.
        sampler: The sampler.
        guidance: The guidance, for observations and held states alike.
        members: Number M of members.
        length: Number L of states in the window; best condition plus a multiple of step.
        step: How many states an update moves the window on by.
        condition: Number C of oldest states that are held.
        background_std: Error that they are held with, in standardized units; None to hold none,
            which forgets what left the window.
        start_level: sigma / alpha of a warm start; None to start each update from noise.
        forecast_sampler: The sampler of forecasts that a warm start begins with; None for
            ``sampler``. It may be coarse, since its result is noised to ``start_level``.
        forecast_std: Error that known states are held with in a forecast, in standardized units.
        seed: Source of all randomness.
        batch_size: Members at once; None for all.

    Raises:
        AssimilationError: The window does not hold the held states and a batch.
    """

    model: PriorModel
    spec: SystemSpec
    sampler: Sampler
    guidance: Guidance
    members: int
    length: int
    step: int
    condition: int = 1
    background_std: float | None = 0.03
    start_level: float | None = None
    forecast_sampler: Sampler | None = None
    forecast_std: float = 0.03
    seed: int = 0
    batch_size: int | None = None
    updates: int = attrs.field(default=0, init=False)
    _ensemble: Tensor | None = attrs.field(default=None, init=False)
    _batches: list[_Batch] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        if min(self.step, self.condition) < 1 or self.condition + self.step > self.length:
            raise AssimilationError(
                f"length = {self.length} must be at least condition + step = {self.condition} + "
                f"{self.step}, each of them at least 1: the window holds known states and a batch"
            )

    @property
    def first(self) -> int:
        """Number of the window's first state; negative at first, where the window reaches back."""
        return self.updates * self.step - self.length

    def update(
        self,
        observation: Observation | None = None,
        y: Tensor | None = None,
        *,
        at: int | None = None,
    ) -> WindowPosterior:
        r"""Move the window on, with the observations of the new states.

        If it raises, nothing has changed: the update can be tried again, or made with None.

        Args:
            observation: The observation of the ``step`` new states, or with ``at`` of the states
                from there to the newest; None if there is none.
            y: What was observed, (\*obs). Values that are not finite count as missing.
            at: Number of the state that the observation begins at, for one that comes late.

        Returns:
            The ensemble over the window, with latency and what was done.

        Raises:
            DataError: y is missing or has another shape, or the observation lies outside of the
                window.
            AssimilationError: Members diverge, however often they are drawn.
        """
        started = time.perf_counter()
        end = (self.updates + 1) * self.step
        log = [f"update {self.updates}: states {end - self.step} to {end - 1}"]
        new = None if observation is None else self._batch(observation, y, at, end, log)
        batches = [b for b in (*self._batches, new) if b and b.first >= self._oldest(end)]
        x, evaluations = self._posterior(new, batches, end, log)
        self._ensemble, self._batches, self.updates = x, batches, self.updates + 1
        latency = time.perf_counter() - started
        return WindowPosterior(
            ensemble=x,
            first=end - self.length,
            latency=latency,
            evaluations=evaluations,
            log=tuple(log),
        )

    def _oldest(self, end: int) -> int:
        """Number of the first state that is not held in a window that ends there."""
        return end - self.length + (0 if self.background_std is None else self.condition)

    def _batch(
        self, observation: Observation, y: Tensor | None, at: int | None, end: int, log: list[str]
    ) -> _Batch | None:
        first = end - self.step if at is None else at
        if not self._oldest(end) <= first < end:
            raise DataError(
                f"an observation of states {first} and later lies outside of the window, which "
                f"takes those from {self._oldest(end)} to {end - 1}: leave it out, or use a longer "
                "window"
            )
        model = observation.bind(self.spec, end - first)
        if y is None or y.shape != model.shape:
            raise DataError(
                f"y has the shape {None if y is None else tuple(y.shape)}, but this observation of "
                f"{end - first} states gives {tuple(model.shape)}"
            )
        y, finite = y.detach().cpu().double(), y.isfinite().cpu()
        if not finite.all():
            text = f"{int((~finite).sum())} of {y.numel()} observed values are not finite: left out"
            warnings.warn(text, AssimilationWarning, stacklevel=3)
            log.append(text)
            if not finite.any():
                return None
            # y keeps its missing values, so that a saved batch can be made again.
            model = model.select(finite)
        return _Batch(observation=observation, model=model, y=y, first=first)

    def _posterior(
        self, new: _Batch | None, batches: list[_Batch], end: int, log: list[str]
    ) -> tuple[Tensor, float]:
        scaling, before, evaluations = self.model.standardization, self._ensemble, 0.0
        sampling = ConditionalSampler(
            model=self.model,
            sampler=self.sampler,
            guidance=self.guidance,
            batch_size=self.batch_size,
        )
        shape = (self.members, self.length, *self.spec.state_shape)
        guess = None
        if before is not None and (new is None or self.start_level is not None):
            # What is not noised and gone on from has to be as good as the posterior.
            coarse = (self.forecast_sampler or self.sampler) if new else self.sampler
            ahead, evaluations = extend(
                attrs.evolve(sampling, sampler=coarse),
                before,
                self.step,
                self._stream(_FORECAST),
                self.condition,
                piece_length(self.model, self.length),
                self.forecast_std,
            )
            guess = torch.cat([before[:, self.step :], ahead], dim=1)
            log.append(f"forecast of {self.step} states")
            if new is None:
                log.append("no observations: the posterior is the last one with the forecast")
                return guess, evaluations
        constraints = [self._constraint(batch, end) for batch in batches]
        if before is not None and self.background_std is not None:
            held = scaling.to_model(before[:, self.step : self.step + self.condition])
            constraints.insert(0, Constraint.held(held, self.background_std))
        x, spent = sampling.draw(
            shape,
            self._stream(_POSTERIOR),
            constraints,
            None if guess is None else scaling.to_model(guess),
            self.start_level or 0.0,
        )
        count = sum(len(batch.model.noise.std) for batch in batches)
        how = (
            "noise"
            if guess is None
            else f"the last posterior at sigma / alpha = {self.start_level:g}"
        )
        log.append(f"{count} observed values in {len(batches)} batches; started from {how}")
        return scaling.to_physical(x), evaluations + spent

    def _constraint(self, batch: _Batch, end: int) -> Constraint:
        begin = batch.first - (end - self.length)
        there = slice(begin, begin + batch.model.length)

        def operator(x: Tensor) -> Tensor:
            states = self.model.standardization.to_physical(x[:, there])
            return batch.model.operator(states).flatten(1)

        y = batch.y[batch.y.isfinite()]
        return Constraint(operator=operator, y=y, noise=batch.model.noise)

    def _stream(self, stage: int) -> int:
        return seeded_generator(self.seed, self.updates, stage).initial_seed()

    @property
    def _settings(self) -> dict[str, Any]:
        names = ("members", "length", "step", "condition", "seed")
        return {name: getattr(self, name) for name in names}

    def save(self, path: Path) -> None:
        """Write the state to one safetensors file, with a description as JSON in its header.

        Model, sampler and guidance are not in it.

        Raises:
            ConfigError: An observation in the window holds a function, which no file can.
        """
        description = {
            "schema": SCHEMA,
            "settings": self._settings,
            "updates": self.updates,
            "batches": [
                {
                    "observation": unstructure(b.observation),
                    "first": b.first,
                    "length": b.model.length,
                }
                for b in self._batches
            ],
        }
        tensors = {f"y.{i}": b.y.contiguous() for i, b in enumerate(self._batches)}
        if self._ensemble is not None:
            tensors["ensemble"] = self._ensemble.contiguous()
        with replace_file(path) as temporary:
            temporary.write_bytes(save(tensors, {"description": json.dumps(description)}))

    def load(self, path: Path) -> None:
        """Go on from a saved state, on a CPU bit for bit as if nothing had happened.

        Raises:
            CheckpointError: There is no such file, it is damaged, or it was written with other
                settings.
        """
        try:
            with safe_open(path, "pt") as file:
                description = json.loads((file.metadata() or {})["description"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}): begin with a new assimilator"
            ) from error
        saved = {"schema": description.get("schema"), **description.get("settings", {})}
        for name, now in {"schema": SCHEMA, **self._settings}.items():
            if saved.get(name) != now:
                raise CheckpointError(
                    f"{path} was written with {name} = {saved.get(name)}, and this assimilator has "
                    f"{now}: use the same, or begin with a new one"
                )
        batches = []
        for i, entry in enumerate(description["batches"]):
            observation: Observation = structure(Observation, entry["observation"])
            y, model = tensors[f"y.{i}"], observation.bind(self.spec, entry["length"])
            if not y.isfinite().all():
                model = model.select(y.isfinite())
            batches.append(_Batch(observation=observation, model=model, y=y, first=entry["first"]))
        self.updates, self._batches = description["updates"], batches
        self._ensemble = tensors.get("ensemble")
