r"""A trained model: the denoiser of windows with all that is needed to use it.

A model on disk is a directory with ``model.safetensors`` (weights) and ``model.json`` (kernel,
schedule, composition, system spec, standardization, provenance, and the SHA-256 of all that and of
the weights' file). Loading it executes no code but that of the installed components named in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sda_core.config import at_least, component, option, structure, unstructure
from sda_core.data import Standardization
from sda_core.denoiser import (
    FoldName,
    ForecastDenoiser,
    MarkovBlanketDenoiser,
    ParameterizationName,
    PatternName,
    WindowDenoiser,
)
from sda_core.errors import CheckpointError, ConfigError, SDAError, TrainingError
from sda_core.io.files import plain, read_json, replace_file, write_json
from sda_core.kernel import Kernel, WindowShape
from sda_core.plugins import default_manager
from sda_core.plugins.names import cause_text, did_you_mean
from sda_core.schedule import Schedule
from sda_core.system import Axis, SystemSpec, Variable

MODEL_SCHEMA = 3


def device() -> torch.device:
    """The device that is used: the first GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@component
class ModelConfig:
    """How a kernel becomes a denoiser of trajectories.

    Good values: a window as wide as the network can take, with a stride of half of it.
    """

    window: int = option(
        default=5, check=at_least(1), help="width W of the windows that the kernel sees"
    )
    stride: int = option(
        default=1, check=at_least(1), help="distance between windows when they are composed"
    )
    fold: FoldName = option(default="center", help="how windows become a trajectory")
    parameterization: ParameterizationName = option(
        default="eps", help="what the kernel's output means"
    )
    levels: tuple[PatternName, ...] = option(
        default=("joint",),
        help="which states of a window are known while the others are noised, in equal shares of "
        "the training: joint (none), forecast (the first `past`), infill (these and the last); "
        "with more than joint the model can forecast, as block-smc needs",
    )
    past: int = option(
        default=1, check=at_least(1), help="number of states that a forecast is given"
    )
    context: tuple[str, ...] = option(
        default=(), help="names of the system's static fields that the kernel is given"
    )
    chunk_size: int | None = option(
        default=None,
        check=at_least(1),
        help="windows evaluated at once; as many as the memory holds if not set",
    )
    pretrained: str | None = option(
        default=None,
        help='a trained model that is used instead of training one: a folder, or "package:folder" '
        "for one that comes with a package",
    )

    def __attrs_post_init__(self) -> None:
        if self.stride > self.window:
            raise ConfigError(
                f"stride = {self.stride} is larger than window = {self.window}: some states would "
                "be in no window. Use a stride of at most the window"
            )
        if self.forecasts and self.past + ("infill" in self.levels) >= self.window:
            raise ConfigError(
                f"past = {self.past} leaves nothing unknown of window = {self.window}: use a wider "
                "window, or fewer states before it"
            )
        if self.forecasts and self.parameterization != "edm":
            raise ConfigError(
                f"parameterization = {self.parameterization!r}: with levels = {self.levels} it is "
                "edm"
            )

    @property
    def forecasts(self) -> bool:
        """Whether the model forecasts, given known states."""
        return self.levels != ("joint",)


@attrs.frozen(kw_only=True, eq=False)
class TrainedModel:
    """A denoiser of windows with its configuration and standardization.

    Attributes:
        config: How it is composed.
        kernel: Configuration of the network.
        denoiser: The denoiser of windows.
        spec: What the states are, with mean and std.
        provenance: Where it comes from, free-form; ``"extremes"`` are those of the training data.
    """

    config: ModelConfig
    kernel: Kernel
    denoiser: WindowDenoiser
    spec: SystemSpec
    provenance: dict[str, Any] = attrs.field(factory=dict)

    @classmethod
    def create(
        cls,
        kernel: Kernel,
        schedule: Schedule,
        config: ModelConfig,
        spec: SystemSpec,
        fields: Mapping[str, Tensor] | None = None,
    ) -> TrainedModel:
        r"""A model with random weights from torch's current seed.

        Args:
            kernel: Configuration of the network.
            schedule: The noise schedule.
            config: How windows are made and composed.
            spec: What the states are, with mean and std.
            fields: Static fields that ``config.context`` may name, each (\*S).

        Raises:
            ConfigError: The context asked for does not exist, or the kernel takes none.
        """
        context = _context(kernel, config.context, fields or {})
        shape = WindowShape(
            window=config.window,
            variables=len(spec.variables),
            grid=spec.grid_shape,
            context=len(config.context),
        )
        denoiser: WindowDenoiser
        if config.forecasts:
            denoiser = ForecastDenoiser(
                kernel.build(attrs.evolve(shape, variables=4 * shape.variables)),
                kernel.build(attrs.evolve(shape, variables=2 * shape.variables)),
                schedule,
                config.window,
                shape.variables,
                config.levels,
                config.past,
                context,
            )
        else:
            network = kernel.build(shape)
            denoiser = WindowDenoiser(
                network, schedule, config.window, config.parameterization, context
            )
        return cls(config=config, kernel=kernel, denoiser=denoiser, spec=spec)

    @property
    def standardization(self) -> Standardization:
        """The map between physical units and model space."""
        scaling = Standardization.from_spec(self.spec)
        return attrs.evolve(scaling, extremes=self.provenance.get("extremes"))

    @property
    def schedule(self) -> Schedule:
        """The noise schedule."""
        return self.denoiser.schedule

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.denoiser.parameters()).device

    def __reduce__(self) -> tuple[Callable[..., TrainedModel], tuple[Any, ...]]:
        # Weights travel on the CPU: where they are going there may be no GPU, or another one.
        weights = {k: v.cpu() for k, v in self.denoiser.state_dict().items()}
        return _received, (
            self.config,
            self.kernel,
            self.schedule,
            self.spec,
            weights,
            self.provenance,
        )

    def trajectory_denoiser(self) -> MarkovBlanketDenoiser:
        """The denoiser of trajectories, composed as the configuration says; weights frozen."""
        self.denoiser.eval().requires_grad_(False)
        c = self.config
        return MarkovBlanketDenoiser(self.denoiser, c.window, c.stride, c.fold, c.chunk_size)

    def save(self, directory: str | Path) -> None:
        """Write the model; the description comes last, so that half a model is none.

        Raises:
            TrainingError: It has values that are not finite.
        """
        state = {k: v.contiguous() for k, v in self.denoiser.state_dict().items()}
        if bad := [name for name, v in state.items() if not bool(v.isfinite().all())]:
            raise TrainingError(
                f"the model is not saved, since {len(bad)} of its {len(state)} tensors have values "
                f"that are not finite, such as {bad[0]}: lower train.learning_rate, set "
                "train.clip_norm, or look for the cause with --detect-anomaly"
            )
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        with replace_file(directory / "model.safetensors") as temporary:
            temporary.write_bytes(save(state))  # its own writer raises no OSError
        description: dict[str, Any] = {
            "schema": MODEL_SCHEMA,
            "kernel": unstructure(self.kernel),
            "schedule": unstructure(self.schedule),
            "model": unstructure(self.config),
            "spec": spec_to_json(self.spec),
            "provenance": plain(self.provenance),
        }
        description["checksum"] = _checksum(description, directory)
        write_json(directory / "model.json", description)

    @classmethod
    def load(cls, directory: str | Path, *, config: ModelConfig | None = None) -> TrainedModel:
        """Read a model.

        Args:
            directory: Where it was saved, or ``"package:folder"`` for a model that comes with an
                installed package.
            config: Composition to use instead of the saved one; window, parameterization and
                context must be the same.

        Raises:
            CheckpointError: There is no model, it is damaged, or it was trained with another
                window, parameterization, context or schema.
            ConfigError: The package is not installed.
        """
        directory = model_folder(directory)
        path = directory / "model.json"
        if not path.is_file():
            raise CheckpointError(f"there is no model in {directory} (no {path.name}): train first")
        try:
            description = read_json(path)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}): train again") from error
        schema = description.get("schema")
        if schema not in (2, MODEL_SCHEMA):
            raise CheckpointError(
                f"{path} has schema {schema}, and this version of sda-core reads 2 and "
                f"{MODEL_SCHEMA}: use the version that wrote it, or train again"
            )
        checksum = description.pop("checksum", None)
        if schema > 2 and checksum != _checksum(description, directory):  # 2 had none
            raise CheckpointError(
                f"the model in {directory} is damaged: model.json and model.safetensors are not as "
                "they were written (their checksum differs). Write it again from the training's "
                "checkpoint with `sda train`, or copy it anew from where it came from"
            )
        try:
            return cls._of(description, directory, config)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, SDAError):
                raise
            raise CheckpointError(
                f"{path} does not describe a model ({cause_text(error)}): train again"
            ) from error

    @classmethod
    def _of(
        cls, description: Mapping[str, Any], directory: Path, config: ModelConfig | None
    ) -> TrainedModel:
        """The model that a description is of, with the weights in a directory."""
        saved: ModelConfig = structure(ModelConfig, description["model"], path="model")
        config = config or saved
        for key in ("window", "parameterization", "levels", "past", "context"):
            asked, trained = getattr(config, key), getattr(saved, key)
            if asked != trained:
                raise CheckpointError(
                    f"model.{key} = {asked!r}, but the model in {directory} was trained with "
                    f"{trained!r}: set it to that, or train again"
                )
        spec = spec_from_json(description["spec"])
        # Placeholders: the fields themselves come with the weights.
        fields = {name: torch.zeros(spec.grid_shape) for name in config.context}
        model = cls.create(
            structure(Kernel, description["kernel"], path="kernel"),
            structure(Schedule, description["schedule"], path="schedule"),
            config,
            spec,
            fields,
        )
        load_weights(model.denoiser, directory / "model.safetensors")
        provenance = description["provenance"]
        if (extremes := provenance.get("extremes")) is not None:  # two numbers of each variable
            np.asarray(extremes, float).reshape(2, len(spec.variables))
        return attrs.evolve(model, provenance=provenance)


def _received(
    config: ModelConfig,
    kernel: Kernel,
    schedule: Schedule,
    spec: SystemSpec,
    weights: dict[str, Tensor],
    provenance: dict[str, Any],
) -> TrainedModel:
    """A model that another process sent, on the device in use here."""
    fields = {name: torch.zeros(spec.grid_shape) for name in config.context}
    model = TrainedModel.create(kernel, schedule, config, spec, fields)
    model.denoiser.load_state_dict(weights)
    model.denoiser.to(device())
    return attrs.evolve(model, provenance=provenance)


def model_folder(source: str | Path) -> Path:
    """The folder of a model.

    Args:
        source: The folder, a run directory, the name of a model that comes with a plugin (in the
            folder ``models`` of its package), or ``"package:folder"``.

    Raises:
        ConfigError: The package is not installed.
    """
    path = Path(source)
    if (path / "model" / "model.json").is_file():
        return path / "model"
    package, colon, folder = str(source).partition(":")
    if not colon and not path.exists() and str(source) in (named := shipped_models()):
        return named[str(source)]
    if isinstance(source, Path) or not colon or path.exists():
        return path
    try:
        return Path(str(files(package))) / folder
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"the model {source!r} is in the package {package!r}, which cannot be imported "
            f"({error}): install it, or give the folder of a model"
        ) from error


def shipped_models() -> dict[str, Path]:
    """The models that come with installed plugins, by name."""
    packages = sorted({c.source.partition(".")[0] for c in default_manager().components()})
    folders = (Path(str(files(package))) / "models" for package in packages)
    return {path.name: path for folder in folders if folder.is_dir() for path in folder.iterdir()}


def load_model(source: str | Path, *, config: ModelConfig | None = None) -> TrainedModel:
    """Read a trained model, on the GPU if there is one.

    Args:
        source: A run directory, the directory of a model, or the name of one that comes with a
            plugin.
        config: Composition to use instead of the saved one.

    Raises:
        CheckpointError: There is no such model, or it is damaged; see :meth:`TrainedModel.load`.
    """
    folder = model_folder(source)
    if not (folder / "model.json").is_file():
        raise CheckpointError(
            f"there is no model {str(source)!r}: {did_you_mean(str(source), shipped_models())}give "
            f"a run directory, the directory of a model, or one of {sorted(shipped_models())}"
        )
    model = TrainedModel.load(folder, config=config)
    model.denoiser.to(device())
    return model


def _checksum(description: Mapping[str, Any], directory: Path) -> str:
    """SHA-256 of the weights' file in a directory, and of a description without its checksum.

    Raises:
        CheckpointError: There are no weights.
    """
    try:
        with (directory / "model.safetensors").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise CheckpointError(f"the model in {directory} has no weights ({error})") from error
    digest.update(json.dumps(description, sort_keys=True).encode())
    return digest.hexdigest()


def _context(kernel: Kernel, names: tuple[str, ...], fields: Mapping[str, Tensor]) -> Tensor | None:
    """The named fields as one tensor, (K, grid)."""
    if not names:
        return None
    if not kernel.takes_context:
        raise ConfigError(
            f"model.context = {list(names)}, but {type(kernel).__name__} takes no context: leave "
            "model.context out, or choose a kernel that does, such as 'unet'"
        )
    missing = [name for name in names if name not in fields]
    if missing:
        raise ConfigError(
            f"model.context names {missing}, but the system's static fields are "
            f"{sorted(fields) or 'none'}"
        )
    return torch.stack([fields[name].float() for name in names])


def load_weights(network: nn.Module, path: Path) -> None:
    """Read a network's weights.

    Raises:
        CheckpointError: The file is missing, damaged or of another network.
    """
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): train again") from error
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} holds the weights of another network than its model.json describes: {error}"
        ) from error


def spec_to_json(spec: SystemSpec) -> dict[str, Any]:
    """A spec as plain data."""
    return {
        "variables": [attrs.asdict(v) for v in spec.variables],
        "axes": [
            {"name": a.name, "values": a.values.tolist(), "units": a.units, "period": a.period}
            for a in spec.axes
        ],
        "time_step": spec.time_step,
        "time_units": spec.time_units,
        "mean": spec.mean,
        "std": spec.std,
    }


def spec_from_json(data: dict[str, Any]) -> SystemSpec:
    """The spec that :func:`spec_to_json` wrote."""
    return SystemSpec(
        variables=[Variable(**v) for v in data["variables"]],
        axes=[Axis(**a) for a in data["axes"]],
        time_step=data["time_step"],
        time_units=data["time_units"],
        mean=data["mean"],
        std=data["std"],
    )
