"""Experiments: one TOML file that says everything, as typed configuration."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from sda_core.cluster import Cluster
from sda_core.config import (
    apply_overrides,
    at_least,
    component,
    load_toml,
    non_negative,
    option,
    positive,
    structure,
)
from sda_core.data import DataConfig
from sda_core.errors import ConfigError, UnknownComponentError
from sda_core.guidance import Guidance
from sda_core.kernel import Kernel
from sda_core.method import Method
from sda_core.model import ModelConfig
from sda_core.observation import Observation, ObservationTable
from sda_core.plugins import PluginManager, default_manager, nearest
from sda_core.sampler import Sampler
from sda_core.schedule import Schedule
from sda_core.sweep import Sweep
from sda_core.system import System
from sda_core.tracker import Tracker
from sda_core.training import TrainConfig


@component
class SampleConfig:
    """Unconditional samples of the prior."""

    members: int = option(default=64, check=at_least(1), help="number of trajectories")
    length: int = option(default=65, check=at_least(1), help="states in each")


@component
class AssimilateConfig:
    """What is inferred, from which observations.

    Without ``observations``, a trajectory of the test split is observed as the table
    ``[observation]`` says. With them, none is, no data are needed, and ``trajectory`` and ``start``
    mean nothing.
    """

    members: int = option(default=128, check=at_least(2), help="members of the posterior ensemble")
    length: int = option(default=65, check=at_least(1), help="number L of states inferred")
    trajectory: int = option(
        default=0, check=non_negative, help="number of the trajectory in the test split"
    )
    start: int = option(default=0, check=non_negative, help="index of its first state used")
    format: Literal["netcdf", "zarr"] = option(
        default="netcdf",
        help="what the posterior is written as: posterior.nc, or posterior.zarr (needs zarr)",
    )
    checkpoint_minutes: float = option(
        default=5.0,
        check=positive,
        units="min",
        help="how often a batch of members in progress is kept, to be resumed after a kill; "
        "for [sample], too",
    )
    observations: ObservationTable | None = option(
        default=None, help='a table of observations, such as { file = "obs.csv" }'
    )


@component
class EvaluateConfig:
    """What the posterior is compared with."""

    baseline: Method | None = option(
        default=None, help="a simple method to do better than, e.g. interpolation"
    )
    reference: Method | None = option(
        default=None, help="a method whose ensemble counts as the truth, e.g. particle-filter"
    )


@component
class Experiment:
    """Everything about a run; the fields are the tables of an experiment file.

    Tables that a stage does not need may be left out: ``system`` and ``data`` are enough to
    simulate.
    """

    title: str = option(default="", help="what the experiment is, in one line")
    seed: int = option(default=0, check=non_negative, help="source of all randomness")
    system: System = option(help="the dynamical system")
    data: DataConfig = option(default=DataConfig(), help="how much data is simulated")
    kernel: Kernel | None = option(default=None, help="the network on windows")
    schedule: Schedule | None = option(default=None, help="the noise schedule")
    model: ModelConfig = option(default=ModelConfig(), help="window, parameterization, composition")
    train: TrainConfig = option(default=TrainConfig(), help="settings of the training")
    observation: Observation | None = option(default=None, help="operator and noise")
    sampler: Sampler | None = option(default=None, help="the sampler")
    guidance: Guidance | None = option(default=None, help="the guidance")
    method: Method | None = option(default=None, help="the assimilation method")
    sample: SampleConfig | None = option(default=None, help="unconditional samples, if wanted")
    assimilate: AssimilateConfig = option(default=AssimilateConfig(), help="what is inferred")
    evaluate: EvaluateConfig = option(default=EvaluateConfig(), help="what it is compared with")
    trackers: tuple[Tracker, ...] = option(default=(), help="where numbers and pictures are sent")
    cluster: Cluster | None = option(default=None, help="where work is spread to, if anywhere")
    sweep: Sweep | None = option(default=None, help="what is varied and searched, by `sda sweep`")

    def require(self, table: str, stage: str) -> Any:
        """A table that a stage cannot do without.

        Raises:
            ConfigError: The experiment does not have it.
        """
        value = getattr(self, table)
        if value is None:
            raise ConfigError(
                f"the experiment has no [{table}] table, which {stage} needs: add one, with its "
                f"`name` from `sda list {table}`"
            )
        return value


def load_experiment(
    source: str | Path, overrides: Iterable[str] = (), *, manager: PluginManager | None = None
) -> Experiment:
    """Read an experiment.

    Args:
        source: A TOML file, a run directory (its ``config.toml``), the name of a preset, or the
            name of a system, which stands for an experiment with that system and nothing else.
        overrides: Single values to change, as ``"train.learning_rate=2e-4"``.
        manager: Where names are looked up; None for what is installed.

    Raises:
        ConfigError: There is no such experiment, or something in it is wrong.
    """
    manager = manager or default_manager()
    data = apply_overrides(_read(str(source), manager), overrides)
    return structure(Experiment, data, manager=manager)


def _read(source: str, manager: PluginManager) -> dict[str, Any]:
    path = Path(source)
    try:
        path.exists()
    except OSError as error:  # too long
        raise ConfigError(f"{source[:100]!r} can be no path ({error})") from error
    if path.is_dir() and (path / "config.toml").is_file():
        return load_toml(path / "config.toml")
    if path.suffix == ".toml" or path.is_file():
        return load_toml(path)
    presets = [p.name for p in manager.presets()]
    if source in presets:
        return manager.preset(source).load()
    try:
        manager.get("system", source)
    except UnknownComponentError:
        systems = [c.name for c in manager.components("system")]
        match = nearest(source, [*presets, *systems])
        hint = f" (did you mean {match!r}?)" if match else ""
        raise ConfigError(
            f"there is no experiment {source!r}{hint}. Give a TOML file, a run directory, a preset "
            f"({', '.join(presets) or 'none installed'}) or a system "
            f"({', '.join(systems) or 'none installed'})"
        ) from None
    return {"system": {"name": source}}
