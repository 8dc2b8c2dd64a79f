"""Which parameters decide how good a trial is.

References:
    - Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary
      Subspaces", 2023, https://arxiv.org/abs/2304.10255
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from sda_ray.parameters import Parameter, parameters_of, spelled
from sda_ray.study import Study, is_finite

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

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

    The best are a tenth of the trials, or eight, or half of them if there are fewer than 16. A
    parameter that is spread in them as it is in all trials has no importance. Only the order of the
    trials plays a part, so those that were pruned count too, after all that finished; those that
    failed do not.

    Returns:
        Importances by dotted path, the largest first, of the parameters that vary; empty if fewer
        than :data:`FEWEST_TRIALS` trials have a value, or all have the same one.
    """
    sign = 1 if study.mode == "min" else -1
    trials = [t for t in study.trials if t.state in ("finished", "pruned") and is_finite(t.value)]
    goodness = [(t.state == "pruned", sign * (t.value or 0.0)) for t in trials]
    axes = {axis.path: axis for axis in parameters_of(study, trials) if not axis.is_constant}
    if len(trials) < FEWEST_TRIALS or len(set(goodness)) == 1 or not axes:
        return {}
    places = {good: place for place, good in enumerate(sorted(set(goodness)))}
    ranks = np.array([places[good] for good in goodness])
    random = np.random.default_rng(0)
    orders = [ranks, *(random.permutation(ranks) for _ in range(_ORDERS))]
    found, *chance = _importances([t.parameters for t in trials], axes, orders)
    total = sum(found.values()) or 1.0
    return {
        path: Importance(
            share=value / total,
            # Random orders may give more than all parameters together have in the real one.
            by_chance=min(
                1.0, float(np.quantile([other[path] for other in chance], _CHANCE)) / total
            ),
        )
        for path, value in found.items()
    }


def _importances(
    parameters: Sequence[dict[str, Any]], axes: dict[str, Parameter], orders: list[np.ndarray]
) -> list[dict[str, float]]:
    """Importances for each order of the trials."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would tell of the name of this study
    try:
        search = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(verbosity)
    distributions = {path: _distribution(axis) for path, axis in axes.items()}
    for given in parameters:
        varied = {path: value for path, value in given.items() if path in axes}
        search.add_trial(
            optuna.trial.create_trial(
                params={p: spelled(v) if axes[p].categories else v for p, v in varied.items()},
                distributions={path: distributions[path] for path in varied},
                value=0.0,
            )
        )
    best = min(0.5, max(_BEST_SHARE, _FEWEST_BEST / len(parameters)))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=best)
    found = []
    with warnings.catch_warnings():
        # That few trials have a conditional parameter is what the comparison with chance is for.
        warnings.simplefilter("ignore")
        for order in orders:

            def rank(trial: FrozenTrial, order: np.ndarray = order) -> float:
                return float(order[trial.number])

            found.append(
                get_param_importances(search, evaluator=evaluator, target=rank, normalize=False)
            )
    return found


def _distribution(axis: Parameter) -> BaseDistribution:
    """Optuna's words for an axis."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.categories:
        return CategoricalDistribution(axis.categories)
    if axis.integer:
        return IntDistribution(int(axis.low), int(axis.high))
    return FloatDistribution(axis.low, axis.high, log=axis.log)
