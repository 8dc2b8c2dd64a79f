"""The stage that trains the kernel."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from sda_core.cluster import Cluster, Local, WorkerChannel, WorkerDirectory
from sda_core.config import structure, unstructure
from sda_core.data import TrajectoryStore, split_path
from sda_core.denoiser import WindowDenoiser
from sda_core.errors import ClusterError, ConfigError
from sda_core.experiment import STAGES, Experiment, Run
from sda_core.io.files import file_lock
from sda_core.io.progress import ProgressOption, announce
from sda_core.method import EnsembleSampler
from sda_core.model import TrainedModel, device
from sda_core.stages.common import SAMPLE, check_simulated, load_model, stream
from sda_core.stages.new_model import check_window, new_model
from sda_core.tracker import Value
from sda_core.training import (
    Group,
    LocalProgress,
    MainRank,
    NonzeroRank,
    ProgressReporter,
    RemoteProgress,
    Trainer,
    Uploader,
    anomaly_hunt,
    arithmetic_rules,
    check_workers,
    open_windows,
    reset_peak_memory,
    run_with_progress,
    starting_point,
)

#: What later stages have left in a run directory, which workers do not need.
_LATER = tuple(n for stage in ("sample", "assimilate", "evaluate") for n in STAGES[stage].results)


def train(
    experiment: Experiment,
    directory: str | Path,
    *,
    progress: ProgressOption = True,
    resume: bool = False,
    may_change: Collection[str] = (),
    detect_anomaly: bool = False,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    cluster: Cluster | None = None,
    hooks: Sequence[object] = (),
    reporter: ProgressReporter | None = None,
) -> TrainedModel:
    """Train the kernel of an experiment, from the newest checkpoint if there is one.

    With workers each step is that of the whole batch, which is shared among them, so that their
    number changes no result but for the order of sums. Without, this process trains, on its GPU.

    Args:
        experiment: The experiment; its data set must have been simulated.
        directory: The run directory.
        progress: What to show.
        resume: Whether there must be a checkpoint.
        may_change: Keys in which the configuration may differ from the checkpoint's, such as
            ``"train.epochs"``, or tables, such as ``"train"``.
        detect_anomaly: Whether to look for the operation that first gives a value that is not
            finite, and stop there; many times slower.
        workers: Number of processes that train together; None for this process.
        gpus_per_worker: GPUs of each, or the fraction of one that it shares; None for 1 if there
            are enough, else 0.
        cluster: Where the workers are, if not on the experiment's cluster; without one, on this
            machine.
        hooks: Objects with implementations of hooks, which see this training; pickled where there
            are workers.
        reporter: Where progress is reported and a stop is asked for, instead of this process.

    Returns:
        The trained model, also written to ``model/``.

    Raises:
        ClusterError: The cluster cannot be reached, does not have what was asked for, or lost
            workers too often; what was trained is kept.
        ConfigError: There is no data set, the model is a pretrained one, or there is not the right
            number of workers.
        DataError: The data are not finite, or do not have the statistics that the store states.
        CheckpointError: The directory holds a checkpoint of another configuration, none that is
            whole, or none at all where one must be.
        TrainingError: Too many batches were skipped, or the loss rose too often; or another
            training is running in the directory.
        StoppedError: Ctrl-C or SIGTERM; what was trained is kept.
    """
    run = Run(experiment, directory, progress=progress)
    if experiment.model.pretrained is not None:
        raise ConfigError(
            f"model.pretrained = {experiment.model.pretrained!r}: this experiment uses a trained "
            "model, and there is nothing to train. Leave it out to train one"
        )
    experiment.require("kernel", "training")
    experiment.require("schedule", "training")
    if experiment.train.sample_every is not None:
        experiment.require("sampler", "train.sample_every")
        experiment.require("sample", "train.sample_every")
    check_simulated(run)
    check_window(experiment)
    check_workers(workers, gpus_per_worker, experiment.train.batch_size, detect_anomaly)
    with file_lock(run.directory / ".training.lock", "training"):
        if workers is None:
            with run.manager.with_plugins(hooks):
                return _run_main_rank(
                    run,
                    resume,
                    may_change,
                    detect_anomaly,
                    reporter or LocalProgress(progress),
                    Group(),
                )
        table = unstructure(experiment, manager=run.manager)
        where = cluster or experiment.cluster or Local()
        options: Any = {"workers": workers, "gpus_per_worker": gpus_per_worker}
        say = partial(announce, progress)
        with where.sync_directory(run.directory.resolve(), exclude=_LATER, announce=say) as (
            folder,
            fetch,
        ):
            work = _TrainWorker(table, folder, resume, tuple(may_change), tuple(hooks))
            run_with_progress(where, work, progress, fetch, **options)
        return load_model(run)


@attrs.frozen
class _TrainWorker:
    """What each worker does: rank 0 trains and writes, the others train with it."""

    table: dict[str, Any]
    folder: WorkerDirectory
    resume: bool
    may_change: Collection[str]
    hooks: Sequence[object]

    def __call__(self, channel: WorkerChannel) -> None:
        group = Group.current()
        with self.folder.opened(is_main=group.is_main) as directory:
            run = Run(structure(Experiment, self.table), directory, progress=False)
            if not split_path(run.data, "train").is_file():
                raise ClusterError(
                    f"{run.data} is not there for worker {group.rank}: all machines of the cluster "
                    "must have the run directory, by a disk in common, or the cluster must copy it "
                    "there (of 'ray', by cluster.storage)"
                )
            if not group.is_main:
                warnings.simplefilter("ignore")  # rank 0 gives the same
                _run_nonzero_rank(run, group)
                return
            progress = RemoteProgress(channel)
            hooks = [*self.hooks, Uploader(self.folder, progress)]
            with run.manager.with_plugins(hooks), progress.forward_warnings():
                _run_main_rank(run, self.resume, self.may_change, False, progress, group)


def _run_main_rank(
    run: Run,
    resume: bool,
    may_change: Collection[str],
    detect_anomaly: bool,
    progress: ProgressReporter,
    group: Group,
) -> TrainedModel:
    """Train in this process, which is alone or rank 0 of a group."""
    experiment = run.experiment
    store = TrajectoryStore(split_path(run.data, "train"))
    depends = run.settings("simulate", "train") | {"data_id": store.info.data_id}
    start, ended = starting_point(run.checkpoints, depends, may_change, required=resume)
    settings: Any = experiment.train
    if detect_anomaly:  # an overflow of float16 is no anomaly, and hooks are not compiled
        settings = attrs.evolve(settings, compile=False, precision="float32")
    group.broadcast((start, ended))
    with arithmetic_rules(settings):  # before anything is done on a GPU
        model = new_model(run, store.spec)
        trainer = _new_trainer(run, model, settings, group)
        reset_peak_memory(trainer.device)
        main = MainRank(run, trainer, depends, progress, partial(_sample, run, model))
        if start is not None:
            trainer.load_state_dict(*start)
        with (
            run.stage("train") as results,
            anomaly_hunt(model.denoiser) if detect_anomaly else nullcontext(),
        ):
            run.write_config()  # from here on the training is resumed with these settings
            run.truncate_metrics(trainer.step)
            try:
                if ended is None:
                    main.train()
                else:
                    progress.say(f"the training has ended after epoch {trainer.epoch}: {ended}")
                trained = _trained(run, main, model, results)
                trained.save(run.model)
            finally:
                _draw(run)
    return trained


def _run_nonzero_rank(run: Run, group: Group) -> None:
    """Train as another rank of a group; nothing is written."""
    start, ended = group.broadcast()
    with arithmetic_rules(run.experiment.train):
        model = new_model(run, TrajectoryStore(split_path(run.data, "train")).spec)
        trainer = _new_trainer(run, model, run.experiment.train, group)
        if start is not None:
            trainer.load_state_dict(*start)
        if ended is None:
            NonzeroRank(trainer).train()


def _new_trainer(run: Run, model: TrainedModel, settings: Any, group: Group) -> Trainer:
    """The trainer, with data that were looked at."""
    train, valid = (
        open_windows(split_path(run.data, split), model, device(), group.size)
        for split in ("train", "valid")
    )
    assert train is not None  # since it was looked for
    return Trainer(model.denoiser, train, valid, settings, run.train_seed, group)


def _sample(run: Run, model: TrainedModel, denoiser: WindowDenoiser) -> dict[str, Value]:
    """Diagnostics of unconditional samples that a denoiser gives."""
    experiment = run.experiment
    config, sampler = experiment.sample, experiment.sampler
    assert config is not None  # since it was asked for at the start
    assert sampler is not None
    model = attrs.evolve(model, denoiser=denoiser)
    x = EnsembleSampler(
        model,
        sampler,
        (config.members, config.length, *model.spec.state_shape),
        stream(experiment.seed, SAMPLE),
        memory=getattr(experiment.method, "memory", None),
    ).sample()
    return run.diagnostics("training-samples", model=model, samples=x)


def _trained(
    run: Run, main: MainRank, model: TrainedModel, results: dict[str, Any]
) -> TrainedModel:
    """The trained model; what is recorded of the training is added to the results."""
    trainer, valid_loss = main.trainer, main.finish()
    results |= {"steps": trainer.step, "valid_loss": valid_loss, "threads": trainer.threads}
    trained = attrs.evolve(
        model,
        denoiser=trainer.best_denoiser,
        provenance={
            "system": unstructure(run.experiment.system, manager=run.manager),
            "train": unstructure(run.experiment.train, manager=run.manager),
            "data_id": main.depends["data_id"],
            "extremes": TrajectoryStore(split_path(run.data, "train")).extremes,
            "seed": run.train_seed,
            "steps": trainer.step,
            "valid_loss": valid_loss,
            "versions": run.versions(),
        },
    )
    results |= run.result_numbers("train", model=trained)
    return trained


def _draw(run: Run) -> None:
    try:
        from sda_core.figures import write_learning_curve  # matplotlib takes a while to import

        write_learning_curve(run.directory)
    except Exception as error:  # noqa: BLE001 - a picture must not cost a training
        warnings.warn(f"the learning curve cannot be drawn: {error}", stacklevel=2)
