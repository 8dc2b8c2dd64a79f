"""The stage that scores the posterior."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sda_core.errors import DataError
from sda_core.evaluation.denoiser import Denoised, denoise, denoising_scores
from sda_core.evaluation.scores import evaluate_ensemble, plugin_scores
from sda_core.evaluation.verification import departures, observation_scores
from sda_core.experiment import Experiment, Run
from sda_core.io import xarray as xarray_io
from sda_core.io.files import write_json, write_text
from sda_core.io.progress import ProgressOption
from sda_core.method import Method
from sda_core.observation.matched import dataset
from sda_core.random import seeded_generator
from sda_core.stages.assimilation import infer, make_problem
from sda_core.stages.common import BASELINE, REFERENCE, load_model, sampling_steps, stream


def evaluate(
    experiment: Experiment, directory: str | Path, *, progress: ProgressOption = True
) -> dict[str, dict[str, float]]:
    """Score the posterior, and compare it with other methods on the same observations.

    Args:
        experiment: The experiment; it must have been assimilated.
        directory: The run directory.
        progress: What to show.

    Returns:
        Scores by name for each ensemble, and those of the denoiser on held-out windows as
        ``"model"``, also written to ``metrics.json``; figures and the report are written beside it.
        Observations from a table are written to ``observations.csv`` and
        ``observations.nc``, with what the posterior says of each.
    """
    from sda_core.evaluation.report import write_report  # matplotlib takes a while to import

    run = Run(experiment, directory, progress=progress)
    run.check_earlier("evaluate")
    run.check_whole("assimilate")
    config = experiment.evaluate
    problem = make_problem(run)
    posterior = xarray_io.result(run.directory / "posterior.nc")
    ensembles = {"posterior": xarray_io.load_array(posterior, "assimilate")}
    if problem.matched is not None and not run.is_done("assimilate"):
        # What is withheld now may have been used then.
        raise DataError(
            "the posterior is not of these observations, or not of this configuration: run "
            "`sda assimilate` again"
        )
    members = len(ensembles["posterior"])

    def ensemble_of(method: Method, seed: int, label: str) -> Tensor:
        with sampling_steps(run, label, hook=False) as on_step:
            return infer(run, method, problem, members, seed, on_step)

    def scores_of(ensemble: Tensor) -> dict[str, float]:
        scores = evaluate_ensemble(problem, ensemble, ensembles.get("reference"))
        scores |= plugin_scores(run.manager, problem, ensemble)
        if problem.matched is not None:
            scores |= observation_scores(problem.matched, ensemble)
        return scores

    (run.directory / "report.html").unlink(missing_ok=True)  # until it is written, it is not done
    with run.stage("evaluate") as results:
        if config.baseline is not None:
            seed = stream(experiment.seed, BASELINE)
            ensembles["baseline"] = ensemble_of(config.baseline, seed, "baseline")
        again = None
        if config.reference is not None:
            seeds = [seeded_generator(experiment.seed, REFERENCE, i).initial_seed() for i in (0, 1)]
            ensembles["reference"], again = (
                ensemble_of(config.reference, seed, f"reference {i} of 2")
                for i, seed in enumerate(seeds, 1)
            )
        for name, x in ensembles.items():
            if name != "posterior":
                array = xarray_io.trajectories(x, problem.system.spec).rename(name)
                xarray_io.save(array, run.directory / f"{name}.nc")
        scores = {name: scores_of(x) for name, x in ensembles.items() if name != "reference"}
        if again is not None:
            scores["reference"] = scores_of(again)
        results["scores"] = scores
        results |= run.result_numbers(
            "evaluate",
            problem=problem,
            posterior=ensembles["posterior"],
            reference=ensembles.get("reference"),
        )
        if problem.matched is not None:
            table = departures(problem.matched, ensembles["posterior"])
            xarray_io.save(dataset(table), run.directory / "observations.nc")
            write_text(run.directory / "observations.csv", table.to_csv(index=False))
        denoised = _denoised(run)
        every = scores | ({"model": denoising_scores(denoised)} if denoised else {})
        write_json(run.directory / "metrics.json", every)
    write_report(run, problem, ensembles, scores, denoised)
    run.seal("evaluate")
    return every


def _denoised(run: Run) -> list[Denoised]:
    """What the run's model makes of held-out windows; none without a model or data."""
    method = run.experiment.require("method", "evaluation")
    return denoise(run.data, load_model(run)) if method.needs_model else []
