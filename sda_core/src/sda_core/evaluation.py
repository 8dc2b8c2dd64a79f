"""Scores of a posterior ensemble against the truth, the model and a reference ensemble."""

from __future__ import annotations

from torch import Tensor

from sda_core.method import Problem
from sda_core.metrics import coverage, crps, log_prior, rmse, spread, wasserstein1
from sda_core.system import HasLogProb

#: What each score is, in words.
SCORES = {
    "log_prior": "E log p(x)",
    "log_prior_median": "median log p(x)",
    "log_likelihood": "E log p(y|x)",
    "wasserstein1": "W1 to the reference",
    "rmse": "RMSE of the mean",
    "spread": "spread",
    "crps": "CRPS",
    "coverage_90": "90 % coverage",
}


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
        Wasserstein-1 distance to the reference, and, where the truth is known, RMSE, spread, fair
        CRPS and the coverage of the central 90 % interval.
    """
    scores: dict[str, float] = {}
    if isinstance(problem.system, HasLogProb):
        log_p = log_prior(problem.system, ensemble)
        scores["log_prior"] = float(log_p.mean())
        scores["log_prior_median"] = float(log_p.median())
    log_likelihood = problem.observation.log_prob(problem.y, ensemble.double())
    scores["log_likelihood"] = float(log_likelihood.mean())
    if reference is not None:
        scores["wasserstein1"] = wasserstein1(ensemble, reference)
    if problem.truth is not None:
        scores["rmse"] = rmse(ensemble, problem.truth)
        scores["spread"] = spread(ensemble)
        scores["crps"] = crps(ensemble, problem.truth)
        scores["coverage_90"] = coverage(ensemble, problem.truth)
    return scores
