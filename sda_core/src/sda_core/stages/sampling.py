"""The stage that samples the prior."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sda_core.evaluation.metrics import log_prior
from sda_core.experiment import Experiment, Run
from sda_core.io.progress import ProgressOption, announce
from sda_core.method import EnsembleSampler, Execution
from sda_core.stages.common import SAMPLE, load_model, sampling_steps, stream
from sda_core.stages.streaming import ensemble_file
from sda_core.system import HasLogProb


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
    run.check_earlier("sample")
    sampler = experiment.require("sampler", "sampling")
    config = experiment.require("sample", "sampling")
    model = load_model(run)
    shape = (config.members, config.length, *model.spec.state_shape)
    with (
        run.stage("sample") as results,
        ensemble_file(run, "sample", model.spec, shape, model) as ensemble,
        sampling_steps(run, "sampling the prior") as on_step,
    ):
        sampling = EnsembleSampler(
            model,
            sampler,
            shape,
            stream(experiment.seed, SAMPLE),
            batch_size=getattr(experiment.method, "batch_size", None),
            memory=getattr(experiment.method, "memory", None),
        )
        tell = partial(announce, run.progress)
        x = sampling.sample(Execution(announce=tell, on_step=on_step, ensemble=ensemble))
        if isinstance(experiment.system, HasLogProb):
            log_p = [log_prior(experiment.system, part) for part in x.split(64)]
            results["log_prior"] = float(torch.cat(log_p).mean())
        results |= run.result_numbers("sample", model=model, samples=x)
        ensemble.finish(x)
    return x
