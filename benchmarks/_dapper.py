"""DAPPER's filters and smoothers on a given truth and observations; run by DAPPER's interpreter.

    python benchmarks/_dapper.py IN.npz OUT.json [METHOD ...]

IN.npz holds ``truth`` (K + 1, n) and ``observations`` (K, n) of the states 1 .. K. OUT.json gets,
by method and by kind ("a" analysis, "s" smoother), the root mean square error at every cycle.
"""

from __future__ import annotations

import json
import sys

import dapper
import dapper.da_methods as da
import numpy as np
from dapper import mods
from dapper.mods.Lorenz96 import dstep_dx, step
from dapper.tools.localization import nd_Id_localization

# The settings of dapper/mods/Lorenz96/sakov2008.py. That file has no iEnKS with a long lag at this
# interval: its inflation is the best of 1, 1.005, 1.01 and 1.02 at lag 20, on another trajectory.
# Lag counts cycles. The EnKS is the EnKF with a memory, without rotations, which earlier states do
# not go through.
METHODS = {
    "EnKF": (da.EnKF, {"upd_a": "Sqrt", "N": 40, "infl": 1.013, "rot": True}),
    "EnKS": (da.EnKS, {"upd_a": "Sqrt", "N": 40, "infl": 1.013, "Lag": 20}),
    "LETKF, 7 members": (da.LETKF, {"N": 7, "infl": 1.04, "rot": True, "loc_rad": 4}),
    "LETKF, 40 members": (da.LETKF, {"N": 40, "infl": 1.013, "rot": True, "loc_rad": 8}),
    **{
        f"iEnKS, lag {lag}": (
            da.iEnKS,
            {"upd_a": "Sqrt", "N": 40, "infl": infl, "rot": True, "Lag": lag, "wtol": 1e-5},
        )
        for lag, infl in ((1, 1.013), (10, 1.005), (20, 1.005), (30, 1.005))
    },
}


def model(truth: np.ndarray) -> mods.HiddenMarkovModel:
    """Sakov & Oke (2008), started from a cloud around the first true state as in DAPPER's file."""
    cycles, n = len(truth) - 1, truth.shape[1]
    observation = mods.partial_Id_Obs(n, np.arange(n))
    observation["noise"] = 1
    observation["localizer"] = nd_Id_localization((n,), (2,))
    return mods.HiddenMarkovModel(
        {"M": n, "model": step, "linear": dstep_dx, "noise": 0},
        observation,
        mods.Chronology(0.05, dko=1, Ko=cycles - 1, BurnIn=0),
        mods.GaussRV(mu=truth[0], C=0.001),
    )


def main(source: str, target: str, names: list[str]) -> None:
    with np.load(source) as data:
        truth, observations = data["truth"], data["observations"]
    if not np.allclose(step(truth[:-1], 0, 0.05), truth[1:], atol=1e-9):
        raise SystemExit("one step of DAPPER's Lorenz-96 does not lead from each state to the next")
    dapper.rc.liveplotting_enabled = False
    results: dict[str, dict[str, list[float]]] = {}
    for name in names or METHODS:
        made, settings = METHODS[name]
        method = made(**settings)
        dapper.set_seed(3000)
        method.assimilate(model(truth), truth, observations, liveplots=False)
        errors = method.stats.err.rms
        results[name] = {k: getattr(errors, k).tolist() for k in "as" if hasattr(errors, k)}
        results[name]["settings"] = {k: v for k, v in settings.items() if k != "wtol"}
        with open(target, "w") as file:
            json.dump(results, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
