"""Scores of a posterior ensemble against the truth, the model and a reference ensemble."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import xarray as xr
from torch import Tensor

from sda_core.evaluation.metrics import coverage, crps, log_prior, rmse, spread, wasserstein1
from sda_core.io.xarray import as_tensor
from sda_core.method import Problem
from sda_core.plugins import PluginManager
from sda_core.system import HasLogProb

#: What each score is, in words.
SCORES = {
    "log_prior": "E log p(x)",
    "log_prior_median": "median log p(x)",
    "log_likelihood": "E log p(y|x)",
    "residual_std": "residual std / observation std",
    "wasserstein1": "W1 to the reference",
    "rmse": "RMSE of the mean",
    "spread": "spread",
    "spread_skill": "spread / RMSE",
    "crps": "CRPS",
    "coverage_90": "90 % coverage",
}


class Scores(dict[str, float]):
    """Scores by name, printed one a line with what each is."""

    def __str__(self) -> str:
        rows = [(SCORES.get(name, name), f"{value:.4g}") for name, value in self.items()]
        width = max((len(label) for label, _ in rows), default=0)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def score(
    problem: Problem,
    posterior: xr.DataArray | Tensor,
    reference: xr.DataArray | Tensor | None = None,
) -> Scores:
    """Score a posterior ensemble; what each score is, see :func:`evaluate_ensemble`.

    Args:
        problem: The problem it solves.
        posterior: The ensemble, as :meth:`sda_core.method.Method.assimilate` gives it.
        reference: An independent ensemble of the same size that counts as exact, if there is one.
    """
    x = as_tensor(posterior)
    return Scores(
        evaluate_ensemble(problem, x, None if reference is None else as_tensor(reference))
    )


def evaluate_ensemble(
    problem: Problem, ensemble: Tensor, reference: Tensor | None = None
) -> dict[str, float]:
    r"""Score an ensemble.

    Args:
        problem: The problem it solves.
        ensemble: (M, L, C, \*S), physical units.
        reference: An independent ensemble of the same size that counts as exact, if there is one.

    Returns:
        Scores by the names of :data:`SCORES`, as far as they are defined: log-prior (mean and
        median over members, of x_2:L given x_1) for systems with ``log_prob``, mean log-likelihood,
        the residual A(x) - y (root mean square over members and entries, each in units of its
        observation std: 1 for the truth on average), Wasserstein-1 distance to the reference, and,
        where the truth is known, RMSE, spread, their ratio, fair CRPS and the coverage of the
        central 90 % interval. An ensemble of equal members is a point estimate, and has no spread
        and no coverage.
    """
    scores: dict[str, float] = {}
    if isinstance(problem.system, HasLogProb):
        # In parts: the ensemble may lie on the disk, and be more than the memory holds.
        log_p = torch.cat([log_prior(problem.system, part) for part in ensemble.split(64)])
        scores["log_prior"] = float(log_p.mean())
        scores["log_prior_median"] = float(log_p.median())
    observation, y = problem.observation, problem.y
    # Member by member: operators may need much more memory than what they give.
    residual = [observation.misfit(y, x.double()).mean() for x in ensemble]
    log_likelihood = [observation.log_prob(y, x.double()) for x in ensemble]
    scores["log_likelihood"] = float(torch.stack(log_likelihood).mean())
    scores["residual_std"] = float(torch.stack(residual).mean().sqrt())
    if reference is not None:
        scores["wasserstein1"] = wasserstein1(ensemble, reference)
    if problem.truth is not None:
        scores["rmse"] = error = rmse(ensemble, problem.truth)
        scores["crps"] = crps(ensemble, problem.truth)
        if any(bool((member != ensemble[0]).any()) for member in ensemble):
            scores["spread"] = width = spread(ensemble)
            if error > 0:
                scores["spread_skill"] = width / error
            scores["coverage_90"] = coverage(ensemble, problem.truth)
    return scores


def plugin_scores(manager: PluginManager, problem: Problem, ensemble: Tensor) -> dict[str, float]:
    """The scores of an ensemble that plugins add, by name; see the hook ``sda_scores``."""

    def numbers(given: Mapping[str, float]) -> dict[str, float]:
        return {str(k): v if isinstance(v, int) else float(v) for k, v in given.items()}

    given = manager.call("sda_scores", numbers, problem=problem, ensemble=ensemble)
    return {name: value for values in given for name, value in values.items()}
