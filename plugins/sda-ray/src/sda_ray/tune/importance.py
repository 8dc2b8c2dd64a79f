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
from optuna.trial import create_trial

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
    goodness = {
        trial.number: (trial.state == "pruned", sign * trial.value)
        for trial in study.trials
        if trial.state in ("finished", "pruned")
        if trial.value is not None and math.isfinite(trial.value)
    }
    known = study.optuna.get_trials(deepcopy=False)
    trials = [known[number] for number in goodness]
    paths = dict.fromkeys(path for trial in trials for path in trial.params)
    varied = [p for p in paths if len({repr(t.params.get(p)) for t in trials} - {"None"}) > 1]
    places = {good: place for place, good in enumerate(sorted(set(goodness.values())))}
    if len(trials) < FEWEST_TRIALS or len(places) == 1 or not varied:
        return {}
    copies = optuna.create_study()
    for trial in trials:
        params = {path: trial.params[path] for path in varied if path in trial.params}
        given = {path: trial.distributions[path] for path in params}
        copies.add_trial(create_trial(params=params, distributions=given, value=0.0))
    best = min(0.5, max(_BEST_SHARE, _FEWEST_BEST / len(trials)))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=best)

    def importances(order: np.ndarray) -> dict[str, float]:
        target = lambda trial: float(order[trial.number])  # noqa: E731
        return get_param_importances(copies, evaluator=evaluator, target=target, normalize=False)

    ranks, random = np.array([places[g] for g in goodness.values()]), np.random.default_rng(0)
    with warnings.catch_warnings():
        # That few trials have a conditional parameter is what the comparison with chance is for.
        warnings.simplefilter("ignore")
        found = importances(ranks)
        chance = [importances(random.permutation(ranks)) for _ in range(_ORDERS)]
    total = sum(found.values()) or 1.0
    return {
        path: Importance(
            share=value / total,
            # Random orders may give more than all parameters together have in the real one.
            by_chance=min(1.0, float(np.quantile([c[path] for c in chance], _CHANCE)) / total),
        )
        for path, value in found.items()
    }
