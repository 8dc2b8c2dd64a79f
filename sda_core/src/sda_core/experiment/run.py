"""A run: an experiment with its directory, and the record of what has been done in it."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import attrs
import torch

from sda_core.config import differences, dump_toml, structure, unstructure
from sda_core.errors import ConfigError, DataError, SDAError
from sda_core.experiment.configuration import Experiment
from sda_core.experiment.stage import STAGES, with_earlier
from sda_core.io.files import (
    append_line,
    plain,
    read_events,
    read_json,
    remove_leftovers,
    sha256,
    write_json,
    write_text,
)
from sda_core.io.progress import ProgressOption
from sda_core.model import device
from sda_core.plugins import PluginManager, default_manager
from sda_core.tracker import Histogram, TrackerSet, Value
from sda_core.training import CheckpointFolder

#: What the settings of an assimilation call the digest of its table of observations.
OBSERVED = "observed"


@attrs.define
class Run:
    """An experiment in its directory.

    Attributes:
        experiment: The experiment.
        directory: Where everything is.
        manager: Plugins; their life-cycle hooks are called.
        progress: What to show.
    """

    experiment: Experiment
    directory: Path = attrs.field(converter=Path)
    manager: PluginManager = attrs.field(factory=lambda: default_manager())
    progress: ProgressOption = True
    _sessions: TrackerSet | None = attrs.field(default=None, init=False)
    _unstructured: dict[str, Any] | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        if not self.directory.is_dir() and (self.directory.exists() or self.directory.is_symlink()):
            what = "a file" if self.directory.exists() else "a link to nothing"
            raise ConfigError(
                f"the run directory {self.directory} is {what}: give a folder (--dir), which need "
                "not exist"
            )

    @property
    def data(self) -> Path:
        """Directory of the data set."""
        return self.directory / "data"

    @property
    def model(self) -> Path:
        """Directory of the trained model."""
        return self.directory / "model"

    @property
    def checkpoints(self) -> CheckpointFolder:
        """The checkpoints of the training."""
        return CheckpointFolder(self.directory / "checkpoints", self.experiment.train.keep)

    @property
    def train_seed(self) -> int:
        """Source of the randomness of the training."""
        seed = self.experiment.train.seed
        return self.experiment.seed if seed is None else seed

    def settings(self, *stages: str) -> dict[str, Any]:
        """The part of the configuration that the results of these stages depend on themselves."""
        relevant: dict[str, Any] = {}
        for stage in (STAGES[name] for name in stages):
            for name in stage.tables:
                value = self._table.get(name)
                if isinstance(value, Mapping):
                    ignored = stage.ignored.get(name, ())
                    value = {k: v for k, v in value.items() if k not in ignored}
                relevant[name] = value
            observations = self.experiment.assimilate.observations
            if stage.name == "assimilate" and observations is not None:
                relevant[OBSERVED] = observations.digest()
        return relevant

    @property
    def _table(self) -> dict[str, Any]:
        """The experiment as a table, made once."""
        if self._unstructured is None:
            self._unstructured = unstructure(self.experiment, manager=self.manager)
        return self._unstructured

    def is_done(self, stage: str) -> bool:
        """Whether a stage has been done with the present configuration, and its result is whole."""
        if not STAGES[stage].exists_in(self.directory):
            return False
        return not self._changed(stage) and not self.damaged(stage)

    def _changed(self, stage: str, *of: str) -> list[str]:
        """What differs between the settings that a stage was done with and those asked for.

        Options that the version which did it did not have count as their defaults.

        Args:
            stage: The stage.
            of: Whose settings: its own and those of earlier stages, if none are named.

        Returns:
            Keys with both values.
        """
        made = self.provenance()["stages"].get(stage, {}).get("made_with", {})
        names = of or with_earlier(stage)
        asked = json.loads(json.dumps({name: self.settings(name) for name in names}))

        def compared(made: Mapping[str, Any]) -> list[str]:
            pairs = ((made.get(name, {}), asked[name]) for name in names)
            return [each for one, other in pairs for each in differences(one, other)]

        return compared(made) and compared(self._with_defaults(made))

    def _with_defaults(self, made: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
        """Recorded settings by stage, with the defaults of options that they do not have."""
        tables: dict[str, Any] = {}
        for settings in made.values():
            for name, value in settings.items():
                if isinstance(value, Mapping):
                    tables[name] = {**tables.get(name, {}), **value}
                elif value is not None and name != OBSERVED:
                    tables[name] = value
        try:
            experiment = structure(Experiment, tables, manager=self.manager)
            run = Run(experiment, self.directory, self.manager)
            filled = {name: run.settings(name) for name in made}
        except SDAError:  # of other components than are installed, say
            return made
        observed = {name: {k: v for k, v in s.items() if k == OBSERVED} for name, s in made.items()}
        return json.loads(json.dumps({n: filled[n] | observed[n] for n in made}))

    def damaged(self, stage: str) -> list[str]:
        """The results of a stage that are missing, or not as it wrote them, by their SHA-256."""
        recorded = self.provenance()["stages"].get(stage, {}).get("sha256", {})
        return [n for n in STAGES[stage].sealed if n in recorded and self._sha256(n) != recorded[n]]

    def check_whole(self, stage: str) -> None:
        """Refuse the results of a stage that are not as it wrote them.

        Raises:
            DataError: Some are not.
        """
        if damaged := self.damaged(stage):
            raise DataError(
                f"{', '.join(damaged)} in {self.directory} is damaged: its SHA-256 is not the one "
                f"that was recorded when `sda {stage}` wrote it. Run `sda {stage}` again, or copy "
                "it anew from where it came from"
            )

    def seal(self, stage: str) -> None:
        """Record the SHA-256 of the results of a stage that is done."""
        record = self.provenance()
        record["stages"][stage]["sha256"] = self._sealed(stage)
        write_json(self.directory / "provenance.json", record)

    def _sealed(self, stage: str) -> dict[str, str]:
        found = {name: self._sha256(name) for name in STAGES[stage].sealed}
        return {name: value for name, value in found.items() if value is not None}

    def _sha256(self, name: str) -> str | None:
        path = self.directory / name
        return sha256(path) if path.exists() else None

    def check_earlier(self, stage: str) -> None:
        """Refuse results of earlier stages that were made with another configuration.

        Raises:
            ConfigError: A result that the stage would use does not follow from the configuration;
                says what differs.
        """
        recorded = self.provenance()["stages"]
        for name in STAGES[stage].after:
            earlier = STAGES[name]
            if not earlier.needed(self.experiment):
                continue
            self.check_earlier(name)
            if name not in recorded.get(name, {}).get("made_with", {}):
                continue  # of an early version, which did not record them
            if not earlier.exists_in(self.directory):
                continue
            if changed := self._changed(name, name):
                raise ConfigError(
                    f"{stage} would use the result of `sda {name}` in {self.directory}, which was "
                    f"made with another configuration. It differs in {', '.join(changed)}. Use "
                    f"that configuration, or do `sda {name}` with this one in another directory"
                )

    def provenance(self) -> dict[str, Any]:
        """What has been done here, by what.

        Raises:
            DataError: The file cannot be read.
        """
        path = self.directory / "provenance.json"
        if not path.exists():
            return {"stages": {}}
        try:
            record = read_json(path)
            _check_stages(record.get("stages"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} cannot be read ({error}): delete it, and finished stages will be checked "
                "and done again where needed"
            ) from error
        return record

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Do a stage, call the hooks, and record that it is done and with what configuration.

        Yields:
            A dictionary for the stage's results, recorded with it.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.directory)
        if not (self.directory / "config.toml").is_file():
            self.write_config()  # so that a killed run can be resumed
        self.manager.call("sda_run_started", run=self, stage=name)
        self._sessions = TrackerSet(self.experiment.trackers, self, name)
        results: dict[str, Any] = {}
        started = time.perf_counter()
        try:
            yield results
            results["seconds"] = round(time.perf_counter() - started, 3)
            if name == "train":
                self._sessions.save_model(self.model)
        except BaseException as error:
            self._sessions.close(None, error)
            raise
        self._sessions.close(results)
        self.write_config()  # not before: a stage that is refused must change nothing
        record = self.provenance() | self._environment()
        record["stages"][name] = {
            "made_with": {earlier: self.settings(earlier) for earlier in with_earlier(name)},
            **results,
            "sha256": self._sealed(name),
        }
        write_json(self.directory / "provenance.json", record)
        self.log({"event": name, **results})
        self.manager.call("sda_run_finished", run=self, summary={"stage": name, **results})

    def write_config(self) -> None:
        """Write the configuration to ``config.toml``."""
        dump_toml(self._table, self.directory / "config.toml")

    def diagnostics(self, stage: str, **context: Any) -> dict[str, Value]:
        """What plugins add, by name; see the hook ``sda_diagnostics``."""
        given = self.manager.call(
            "sda_diagnostics", _values, run=self, stage=stage, context=context
        )
        return {name: value for values in given for name, value in values.items()}

    def result_numbers(self, stage: str, **context: Any) -> dict[str, float]:
        """The numbers that plugins add to a stage's results, by name."""
        values = self.diagnostics(stage, **context)
        return {name: v for name, v in values.items() if isinstance(v, int | float)}

    def log(self, event: Mapping[str, Any]) -> None:
        """Append an event to ``metrics.jsonl``."""
        append_line(self.directory / "metrics.jsonl", json.dumps(plain(event)))

    def log_values(self, event: str, epoch: int, step: int, values: Mapping[str, Value]) -> None:
        """Report numbers, histograms and pictures of the training.

        They go to ``metrics.jsonl`` (pictures to ``figures/training``, and their path there); and,
        as ``"<event>/<name>"``, to the hook ``sda_metrics_logged`` and to the trackers.
        """
        plain = {name: self._plain(name, value, step) for name, value in values.items()}
        self.log({"event": event, "epoch": epoch, "step": step, **plain})
        named = {f"{event}/{name}": value for name, value in values.items()}
        self.manager.call("sda_metrics_logged", run=self, step=step, values=named)
        if self._sessions is not None:
            self._sessions.log(named, step)

    def _plain(self, name: str, value: Value, step: int) -> Any:
        if isinstance(value, Histogram):
            return attrs.asdict(value)
        if isinstance(value, int | float):
            return value
        folder = self.directory / "figures" / "training" / name.replace("/", "-")
        path = attrs.evolve(value, name=f"step-{step:08d}").save(folder)
        return str(path.relative_to(self.directory))

    def truncate_metrics(self, step: int) -> None:
        """Drop what ``metrics.jsonl`` says of training steps after one, so that none is repeated.

        A line that was cut short, by a kill, is dropped too.
        """
        path = self.directory / "metrics.jsonl"
        events = read_events(path)
        kept = [line for line, event in events if event is not None and _step(event) <= step]
        if len(kept) < len(events):
            write_text(path, b"".join(kept).decode())

    def versions(self) -> dict[str, str]:
        """Versions of the distributions that registered components, or compute the system."""
        found = {c.distribution: c.version for c in self.manager.components()}
        for name in self.experiment.system.computed_by:
            with suppress(PackageNotFoundError):
                found[name] = version(name)
        return found

    def _environment(self) -> dict[str, Any]:
        return {
            "seed": self.experiment.seed,
            "device": device().type,
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "versions": self.versions(),
        }


def _values(given: Mapping[str, Any]) -> dict[str, Value]:
    """Diagnostics as they can be recorded."""
    for name, value in given.items():
        # A picture, which takes a while to import, is what can be saved.
        if not isinstance(value, int | float | Histogram) and not hasattr(value, "save"):
            raise TypeError(f"{name!r} is {value!r}, no number, histogram or picture")
    return {str(name): value for name, value in given.items()}


def _check_stages(stages: Any) -> None:
    """Check that the record of stages is one that was written here.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(stages, dict) or not all(isinstance(s, dict) for s in stages.values()):
        raise ValueError("its 'stages' are no table of tables")
    for name, stage in stages.items():
        for key in ("made_with", "sha256"):
            if not isinstance(stage.get(key, {}), dict):
                raise ValueError(f"its stages.{name}.{key} is no table")
        if not all(isinstance(s, dict) for s in stage.get("made_with", {}).values()):
            raise ValueError(f"its stages.{name}.made_with are no tables")


def _step(event: Mapping[str, Any]) -> float:
    step = event.get("step", 0)
    return step if isinstance(step, int | float) else math.inf
