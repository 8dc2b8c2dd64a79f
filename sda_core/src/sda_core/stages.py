"""The stages of a run: simulate, train, sample, assimilate, evaluate, and all of them.

Each function is the command of the same name. A stage that has been done with the present
configuration is not done again by :func:`run`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import attrs
import torch
from torch import Tensor

from sda_core import labelled
from sda_core.config import unstructure
from sda_core.data import TrajectoryStore, WindowDataset, generate, split_path
from sda_core.data.generate import preview as preview_data
from sda_core.data.preview import Preview
from sda_core.errors import ConfigError, StoppedError
from sda_core.evaluation import evaluate_ensemble
from sda_core.experiment import AssimilateConfig, Experiment
from sda_core.files import write_text
from sda_core.interrupt import stop_request
from sda_core.method import Method, Problem, Toolbox, sample_members
from sda_core.metrics import log_prior
from sda_core.model import TrainedModel
from sda_core.progress import ProgressOption, announce, reporting
from sda_core.random import seeded_generator
from sda_core.rundir import Run, device
from sda_core.system import HasContext, HasLogProb
from sda_core.training import Trainer, load_checkpoint, save_checkpoint

OnStep = Callable[[int, int], None]

#: Parts that progress is counted in.
_WHOLE = 10_000

#: Streams of random numbers under the experiment's seed.
_WEIGHTS, _OBSERVATION, _SAMPLE, _POSTERIOR, _REFERENCE, _BASELINE = 11, 12, 13, 14, 15, 16


def _stream(seed: int, stream: int) -> int:
    """A seed for one purpose."""
    return seeded_generator(seed, stream).initial_seed()


def simulate(
    experiment: Experiment, directory: str | Path, *, progress: ProgressOption = True
) -> Path:
    """Simulate the data set of an experiment.

    Args:
        experiment: The experiment.
        directory: The run directory.
        progress: What to show.

    Returns:
        The directory of the data set, with ``train.h5``, ``valid.h5`` and ``test.h5``.

    Raises:
        DataError: The directory holds a data set made with another configuration.
        SimulationError: States are not finite, however often they are drawn.
    """
    run = Run(experiment, directory, progress=progress)
    with run.stage("simulate"):
        generate(
            experiment.system,
            run.data,
            experiment.data,
            experiment.seed,
            system_config=unstructure(experiment.system, manager=run.manager),
            versions=run.versions(),
            progress=progress,
        )
    return run.data


def preview(experiment: Experiment, directory: str | Path) -> Preview:
    """Say how much data :func:`simulate` would make, and about how long it would take.

    Args:
        experiment: The experiment.
        directory: The run directory, in which nothing is written.

    Returns:
        Size and time of what is missing.

    Raises:
        DataError: The directory holds a data set made with another configuration.
    """
    run = Run(experiment, directory)
    return preview_data(
        experiment.system,
        run.data,
        experiment.data,
        experiment.seed,
        system_config=unstructure(experiment.system, manager=run.manager),
        versions=run.versions(),
    )


def train(
    experiment: Experiment, directory: str | Path, *, progress: ProgressOption = True
) -> TrainedModel:
    """Train the kernel of an experiment, from the last checkpoint if there is one.

    Args:
        experiment: The experiment; its data set must have been simulated.
        directory: The run directory.
        progress: What to show.

    Returns:
        The trained model, also written to ``model/``.

    Raises:
        DataError: There is no data set.
        CheckpointError: The directory holds a checkpoint of another configuration.
        StoppedError: Ctrl-C or SIGTERM; what was trained is kept.
    """
    run = Run(experiment, directory, progress=progress)
    kernel = experiment.require("kernel", "training")
    schedule = experiment.require("schedule", "training")
    _check_simulated(run)
    store = TrajectoryStore(split_path(run.data, "train"))
    window, settings = experiment.model.window, experiment.train
    with torch.random.fork_rng():
        torch.manual_seed(_stream(experiment.seed, _WEIGHTS))
        system = experiment.system
        fields = system.context() if isinstance(system, HasContext) else {}
        model = TrainedModel.create(kernel, schedule, experiment.model, store.spec, fields)
    model.denoiser.to(device())
    windows = WindowDataset(store, window, device=device())
    valid, path = None, split_path(run.data, "valid")
    if path.is_file():
        valid = WindowDataset(TrajectoryStore(path), window, device=device())
    trainer = Trainer(model.denoiser, windows, valid, settings, experiment.seed)
    depends = run.settings("simulate", "train")
    if run.checkpoint.is_file():
        trainer.load_state_dict(*load_checkpoint(run.checkpoint, depends))

    def checkpoint() -> None:
        save_checkpoint(run.checkpoint, *trainer.state_dict(), depends)
        run.manager.hook.sda_checkpoint_written(run=run, path=run.checkpoint)

    with (
        run.stage("train") as results,
        reporting(progress, "training", settings.epochs, trainer.epoch) as report,
        stop_request() as stopping,
    ):
        valid_loss = None
        for metrics in trainer.epochs():
            if metrics.valid_loss is not None:
                valid_loss = metrics.valid_loss
                run.log({"event": "epoch", **attrs.asdict(metrics)})
            run.manager.hook.sda_epoch_ended(run=run, metrics=attrs.asdict(metrics))
            note = (
                f"step {metrics.step} of {trainer.num_steps}, loss {metrics.loss:.4f}, "
                f"{metrics.steps_per_second:.1f} steps/s"
            )
            report(metrics.epoch, note)
            last = metrics.epoch == settings.epochs
            if last or stopping() or metrics.epoch % settings.checkpoint_every == 0:
                checkpoint()
            if stopping() and not last:
                raise StoppedError(
                    f"training stopped after epoch {metrics.epoch} of {settings.epochs}; the same "
                    "command goes on from there"
                )
        if valid_loss is None and valid is not None:
            valid_loss = trainer.validate()
        results |= {"steps": trainer.step, "valid_loss": valid_loss}
        trained = attrs.evolve(
            model,
            denoiser=trainer.best_denoiser,
            provenance={
                "system": unstructure(experiment.system, manager=run.manager),
                "train": unstructure(settings, manager=run.manager),
                "data_id": store.info.recipe.data_id,
                "seed": experiment.seed,
                "valid_loss": valid_loss,
                "versions": run.versions(),
            },
        )
        results |= run.diagnostics("train", model=trained)
        trained.save(run.model)
    return trained


def sample(
    experiment: Experiment, directory: str | Path, *, progress: ProgressOption = True
) -> Tensor:
    r"""Sample trajectories from the learned prior, without observations.

    Args:
        experiment: The experiment; its kernel must have been trained.
        directory: The run directory.
        progress: What to show.

    Returns:
        Trajectories (M, L, C, \*S) in physical units, also written to ``samples.nc``.
    """
    run = Run(experiment, directory, progress=progress)
    sampler = experiment.require("sampler", "sampling")
    config = experiment.require("sample", "sampling")
    model = _load_model(run)
    shape = (config.members, config.length, *model.spec.state_shape)
    with (
        run.stage("sample") as results,
        _steps(run, "sampling the prior") as on_step,
    ):
        x = sample_members(
            model,
            sampler,
            shape,
            _stream(experiment.seed, _SAMPLE),
            batch_size=getattr(experiment.method, "batch_size", None),
            memory=getattr(experiment.method, "memory", None),
            announce=partial(announce, run.progress),
            on_step=on_step,
        )
        if isinstance(experiment.system, HasLogProb):
            results["log_prior"] = float(log_prior(experiment.system, x).mean())
        results |= run.diagnostics("sample", model=model, samples=x)
        labelled.save(
            labelled.trajectories(x, model.spec).rename("samples"), run.directory / "samples.nc"
        )
    return x


def make_problem(run: Run) -> Problem:
    """Observe a held-out trajectory.

    Raises:
        DataError: There is no test split.
        ConfigError: The trajectory asked for does not exist or is too short.
    """
    experiment, config = run.experiment, run.experiment.assimilate
    observation = experiment.require("observation", "assimilation")
    _check_simulated(run)
    store = TrajectoryStore(split_path(run.data, "test"))
    _check_trajectory(config, store)
    truth = store.read(config.trajectory, slice(config.start, config.start + config.length))
    model = observation.bind(store.spec, config.length)
    generator = seeded_generator(experiment.seed, _OBSERVATION, config.trajectory, config.start)
    return Problem(
        system=experiment.system,
        observation=model,
        y=model.sample(truth, generator),
        truth=truth,
    )


def assimilate(
    experiment: Experiment, directory: str | Path, *, progress: ProgressOption = True
) -> Tensor:
    r"""Observe a held-out trajectory and infer it.

    Args:
        experiment: The experiment; its kernel must have been trained if its method needs one.
        directory: The run directory.
        progress: What to show.

    Returns:
        Posterior ensemble (M, L, C, \*S) in physical units, also written to ``posterior.nc``; the
        observations and the truth are written to ``observations.nc``.
    """
    run = Run(experiment, directory, progress=progress)
    method = experiment.require("method", "assimilation")
    problem = make_problem(run)
    with run.stage("assimilate") as results:
        labelled.save(labelled.observations(problem), run.directory / "observations.nc")
        seed = _stream(experiment.seed, _POSTERIOR)
        with _steps(run, "assimilating") as on_step:
            x = _assimilate(run, method, problem, experiment.assimilate.members, seed, on_step)
        labelled.save(
            labelled.trajectories(x, problem.system.spec).rename("posterior"),
            run.directory / "posterior.nc",
        )
        results["members"] = len(x)
        results |= run.diagnostics("assimilate", problem=problem, posterior=x)
    return x


def evaluate(
    experiment: Experiment, directory: str | Path, *, progress: ProgressOption = True
) -> dict[str, dict[str, float]]:
    """Score the posterior, and compare it with other methods on the same observations.

    Args:
        experiment: The experiment; it must have been assimilated.
        directory: The run directory.
        progress: What to show.

    Returns:
        Scores by name for each ensemble, also written to ``metrics.json``; figures and the report
        are written beside it.
    """
    from sda_core.report import write_report  # matplotlib takes a while to import

    run = Run(experiment, directory, progress=progress)
    config = experiment.evaluate
    problem = make_problem(run)
    ensembles = {"posterior": labelled.load_array(run.directory / "posterior.nc", "assimilate")}
    members = len(ensembles["posterior"])

    def ensemble_of(method: Method, seed: int, label: str) -> Tensor:
        with _steps(run, label, hook=False) as on_step:
            return _assimilate(run, method, problem, members, seed, on_step)

    def scores_of(ensemble: Tensor) -> dict[str, float]:
        scores = evaluate_ensemble(problem, ensemble, ensembles.get("reference"))
        for more in run.manager.hook.sda_scores(problem=problem, ensemble=ensemble):
            scores |= more
        return scores

    (run.directory / "report.html").unlink(missing_ok=True)  # until it is written, it is not done
    with run.stage("evaluate") as results:
        if config.baseline is not None:
            seed = _stream(experiment.seed, _BASELINE)
            ensembles["baseline"] = ensemble_of(config.baseline, seed, "baseline")
        again = None
        if config.reference is not None:
            seeds = [
                seeded_generator(experiment.seed, _REFERENCE, i).initial_seed() for i in (0, 1)
            ]
            ensembles["reference"], again = (
                ensemble_of(config.reference, seed, f"reference {i} of 2")
                for i, seed in enumerate(seeds, 1)
            )
        for name, x in ensembles.items():
            if name != "posterior":
                array = labelled.trajectories(x, problem.system.spec).rename(name)
                labelled.save(array, run.directory / f"{name}.nc")
        scores = {name: scores_of(x) for name, x in ensembles.items() if name != "reference"}
        if again is not None:
            scores["reference"] = scores_of(again)
        results["scores"] = scores
        results |= run.diagnostics(
            "evaluate",
            problem=problem,
            posterior=ensembles["posterior"],
            reference=ensembles.get("reference"),
        )
        write_text(run.directory / "metrics.json", json.dumps(scores, indent=2) + "\n")
    write_report(run, problem, ensembles, scores)
    return scores


def run(
    experiment: Experiment, directory: str | Path, *, progress: ProgressOption = True
) -> dict[str, dict[str, float]]:
    """Do all stages that have not been done with the present configuration.

    Args:
        experiment: The experiment.
        directory: The run directory.
        progress: What to show.

    Returns:
        The scores, as of :func:`evaluate`.
    """
    record = Run(experiment, directory, progress=progress)
    wanted = {
        "simulate": (simulate, True),
        "train": (train, experiment.require("method", "a run").needs_model),
        "sample": (sample, experiment.sample is not None),
        "assimilate": (assimilate, True),
        "evaluate": (evaluate, True),
    }
    for name, (function, needed) in wanted.items():
        if needed and not record.is_done(name):
            function(experiment, directory, progress=progress)
    scores: dict[str, dict[str, float]] = json.loads(
        (record.directory / "metrics.json").read_text()
    )
    return scores


def _assimilate(
    run: Run, method: Method, problem: Problem, members: int, seed: int, report: OnStep
) -> Tensor:
    experiment = run.experiment
    tools = Toolbox(
        model=_load_model(run) if method.needs_model else None,
        sampler=experiment.sampler,
        guidance=experiment.guidance,
        on_step=report,
        announce=partial(announce, run.progress),
    )
    return method.assimilate(problem, members, seed, tools)


@contextmanager
def _steps(run: Run, label: str, *, hook: bool = True) -> Iterator[OnStep]:
    """Report the steps of a sampler or method and, if wanted, call the hook for each."""
    with reporting(run.progress, label, _WHOLE) as report:

        def on_step(step: int, num_steps: int) -> None:
            report(round(_WHOLE * step / num_steps))
            if hook:
                run.manager.hook.sda_sampling_step(run=run, step=step, num_steps=num_steps)

        yield on_step


def _load_model(run: Run) -> TrainedModel:
    model = TrainedModel.load(run.model, config=run.experiment.model)
    model.denoiser.to(device())
    return model


def _check_simulated(run: Run) -> None:
    if not split_path(run.data, "train").is_file():
        raise ConfigError(f"there are no data in {run.data}: run `sda simulate` first")


def _check_trajectory(config: AssimilateConfig, store: TrajectoryStore) -> None:
    count, length = store.shape[:2]
    if config.trajectory >= count:
        raise ConfigError(
            f"assimilate.trajectory = {config.trajectory}, but the test split has {count} "
            f"trajectories: choose 0 to {count - 1}"
        )
    if config.start + config.length > length:
        raise ConfigError(
            f"assimilate.start + assimilate.length = {config.start + config.length}, but "
            f"trajectories in the test split have {length} states: choose less, or simulate longer "
            "ones (data.length)"
        )
