"""Which parameters decide how good a trial is, and what chance alone would say.

References:
    - Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary
      Subspaces", 2023, https://arxiv.org/abs/2304.10255
"""

from __future__ import annotations

import math
import warnings

import attrs
import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, create_trial

from sda_ray.tune.study import Study

#: Of fewer trials nothing can be told.
FEWEST_TRIALS = 10
#: The best trials, whose parameters are compared with those of all: their share, and how many of
#: them there are at least, but never more than half.
_BEST_SHARE, _FEWEST_BEST = 0.1, 8
#: Random orders of the trials, and the share of them that is under what counts as chance.
_ORDERS, _CHANCE = 60, 0.95


@attrs.frozen(kw_only=True)
class Importance:
    """How much a parameter decides.

    Attributes:
        share: Its importance, as a share of that of all parameters.
        by_chance: What 19 of 20 random orders of the same trials give at most. A share under it
            tells nothing.
    """

    share: float
    by_chance: float


def importance(study: Study) -> dict[str, Importance]:
    """How much each parameter decides whether a trial is among the best.

    The best are a tenth of the trials, or eight, or half of them if there are fewer than 16. Only
    the order of the trials plays a part, so those that were pruned count too, after all that
    finished; those that failed do not.

    Returns:
        Importances by dotted path, the largest first, of the parameters that vary; empty if fewer
        than :data:`FEWEST_TRIALS` trials have a value, or all have the same one.
    """
    sign = 1 if study.mode == "min" else -1
    trials = [t for t in study.trials if t.state in ("finished", "pruned")]
    trials = [t for t in trials if t.value is not None and math.isfinite(t.value)]
    goodness = [(t.state == "pruned", sign * (t.value or 0.0)) for t in trials]
    frozen = study.optuna.get_trials(deepcopy=False)
    copies = [frozen[trial.number] for trial in trials]
    tried: dict[str, set[str]] = {}
    for trial in copies:
        for path, value in trial.params.items():
            tried.setdefault(path, set()).add(repr(value))
    varied = {path for path, values in tried.items() if len(values) > 1}
    if len(trials) < FEWEST_TRIALS or len(set(goodness)) == 1 or not varied:
        return {}
    places = {good: place for place, good in enumerate(sorted(set(goodness)))}
    ranks = np.array([places[good] for good in goodness])
    random = np.random.default_rng(0)
    orders = [ranks, *(random.permutation(ranks) for _ in range(_ORDERS))]
    found, *chance = _importances(copies, varied, orders)
    total = sum(found.values()) or 1.0
    return {
        path: Importance(
            share=value / total,
            # Random orders may give more than all parameters together have in the real one.
            by_chance=min(1.0, float(np.quantile([c[path] for c in chance], _CHANCE)) / total),
        )
        for path, value in found.items()
    }


def _importances(
    trials: list[FrozenTrial], varied: set[str], orders: list[np.ndarray]
) -> list[dict[str, float]]:
    """Importances for each order of the trials."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would print the name of this study
    try:
        search = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(verbosity)
    for trial in trials:
        kept = {path: value for path, value in trial.params.items() if path in varied}
        given = {path: trial.distributions[path] for path in kept}
        search.add_trial(create_trial(params=kept, distributions=given, value=0.0))
    best = min(0.5, max(_BEST_SHARE, _FEWEST_BEST / len(trials)))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=best)
    found = []
    with warnings.catch_warnings():
        # That few trials have a conditional parameter is what the comparison with chance is for.
        warnings.simplefilter("ignore")
        for order in orders:
            found.append(
                get_param_importances(
                    search,
                    evaluator=evaluator,
                    target=lambda trial, order=order: float(order[trial.number]),  # type: ignore[misc]
                    normalize=False,
                )
            )
    return found
