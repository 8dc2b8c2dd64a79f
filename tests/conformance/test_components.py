"""Every component that is registered keeps what its kind promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sda_core.plugins import default_manager
from sda_core.system import Axis, SystemSpec
from sda_core.testing import Check, checks

MASK = [[True, False, True, True], [False, False, True, False]]
MATRIX = np.random.default_rng(0).normal(size=(3, 8)).tolist()


def speed(x: Tensor) -> Tensor:
    """A function of each state alone."""
    return torch.sqrt(1 + x[..., 0, :] ** 2 + x[..., 1, :] ** 2)


def _observations() -> dict[str, list[dict]]:
    select = {"name": "select", "variables": ["v"], "std": 0.3}
    function = {"target": f"{__name__}:speed", "std": 0.3}
    return {
        "select": [
            {"std": 0.3},
            {"std": [0.1, 0.2, 0.3, 0.4], "every": 5, "offset": 1, "standardized": True},
        ],
        "mask": [{"mask": MASK, "std": 0.3}, {"mask": MASK[0], "std": 0.3}],
        "index": [{"entries": [[0, 0, 0], [-1, 1, 3], [4, 1, 2], [4, 0, 0]], "std": 0.3}],
        "linear": [
            {"matrix": MATRIX, "std": 0.3},
            {"matrix": [[1.0] * 96, [0.5] * 96], "trajectory": True, "std": [0.3, 0.1]},
        ],
        "function": [function, function | {"statewise": False}],
        "compose": [
            {
                "parts": [{"name": "select", "every": 3, "offset": 2}, {"name": "select"}],
                "std": 0.3,
            },
            {
                "parts": [
                    {"name": "mask", "mask": MASK},
                    {"name": "linear", "matrix": [[1.0] * 4]},
                ],
                "std": 0.3,
            },
        ],
        "concatenate": [{"parts": [select, {"name": "select", "every": 4, "std": 0.1}]}],
    }


CENTRES = (np.arange(6) + 0.5) * 2 * np.pi / 6
FLOW = SystemSpec(
    variables=("u", "v"),
    axes=(Axis("grid_x", CENTRES), Axis("grid_y", CENTRES)),
    time_step=0.2,
)
COVARIANCE = (0.5 * np.eye(3) + np.outer([0.2, 0.5, -0.4], [0.2, 0.5, -0.4])).tolist()
CONDITIONS = ("tolerance", "spec", "shape")

#: Configurations (and tolerances) to check, where the defaults are not enough.
CASES: dict[tuple[str, str], list[dict]] = {
    **{("observation", name): cases for name, cases in _observations().items()},
    ("observation", "coarsen"): [{"factor": 2, "std": 0.3}],
    ("observation", "sensors"): [{"count": 2, "std": 0.3}],
    ("observation", "points"): [
        {"entries": [[0, "u", 0.5], [3, "v", 3.0], [3, "u", 2.25]], "std": [0.1, 0.2, 0.3]},
        {"entries": [[2.5, "u", 0.5], [0, "v", 1]], "std": 0.3},
    ],
    ("observation", "stations"): [{"places": [[0.5], [3.0]], "every": 5, "std": 0.3}],
    ("observation", "region"): [{"box": {"place": [1, 2]}, "std": 0.3}],
    **{
        ("observation", name): [{"std": 0.3, "spec": FLOW}]
        for name in ("vorticity", "saturation", "speed")
    },
    ("noise", "gaussian"): [{"std": 0.3}, {"std": [0.1, 0.2, 0.3]}],
    ("noise", "correlated"): [
        {"std": [0.1, 0.2, 0.3], "correlation_length": 2.0},
        {"std": 0.3, "correlation_length": 1.5, "axis": 0},
        {"covariance": COVARIANCE},
        {"covariance": (np.diag(np.arange(1.0, 9.0)) + 0.5).tolist(), "shape": (2, 4)},
    ],
    ("noise", "student-t"): [{"scale": 0.3}, {"scale": [0.1, 0.2, 0.3], "dof": 1.5}],
    ("noise", "laplace"): [{"scale": 0.3}],
    ("noise", "poisson"): [{}, {"gain": [0.1, 2.0, 5.0], "floor": 0.5}],
    ("kernel", "unet"): [{"channels": [4, 8], "blocks": [1, 1]}],
    ("system", "kolmogorov"): [{"size": 16, "coarsening": 1, "block_size": 2}],
    **{
        ("schedule", name): [{"alpha_shape": shape} for shape in ("lin", "cos", "exp")]
        for name in ("vp", "sub-vp", "sub-sub-vp")
    },
    ("schedule", "ve"): [{}, {"sigma_min": 0.01, "sigma_max": 10.0}],
    ("sampler", "predictor-corrector"): [
        {},
        # The checks' Gaussian has 6 dimensions, where corrections are known to widen it.
        {"steps": 64, "corrections": 1, "tau": 0.03, "tolerance": 0.3},
        {"steps": 64, "corrections": 1, "tau": 0.03, "largest_step": 0.03, "tolerance": 0.25},
        {"corrections": 1, "tau": 0.03, "correct_from": 0.1, "correct_to": 3.0, "tolerance": 0.3},
    ],
    ("sampler", "ddim"): [
        {},
        {"eta": 0.5, "grid": "log-snr", "steps": 128},
        {"denoise_final": False},
    ],
    ("sampler", "ddpm"): [{"steps": 192, "grid": grid} for grid in ("time", "log-snr", "rho")],
    ("sampler", "heun"): [{"grid": grid} for grid in ("time", "log-snr", "rho")],
    ("sampler", "edm"): [
        {"steps": 96},
        {"steps": 128, "s_churn": 40.0, "s_min": 0.05, "s_max": 50.0},
        {"s_churn": 0.0, "denoise_final": False},
    ],
    ("sampler", "dpm-solver++"): [{"grid": grid} for grid in ("time", "log-snr", "rho")],
    ("sampler", "adams-bashforth"): [
        {"steps": 32},
        {"order": 2, "grid": "time"},
        {"grid": "rho", "denoise_final": False},
    ],
    ("guidance", "gaussian"): [{}, {"detach": True}, {"detach": True, "slope": "prior"}],
    ("guidance", "mmps"): [{}, *({"solver": s, "iterations": 16} for s in ("cg", "gmres"))],
    ("guidance", "pigdm"): [{}, {"detach": True}],
    ("guidance", "diffpir"): [{}, {"weight": 5.0}],
    ("method", "block-smc"): [{"particles": 256}, {"particles": 4096}],
    ("method", "particle-filter"): [{"burn_in": 64}],
    # Only the comparison with the exact smoother needs many.
    ("method", "twisted-smc"): [{"particles": 64}, {"particles": 4096}],
    ("kernel", "mlp"): [{"width": 16, "depth": 2}, {"activation": "ReLU"}],
    ("kernel", "transformer"): [{"width": 16, "heads": 2, "blocks": 2}],
    ("cluster", "ray"): [{"cpus": 2}],
    ("tracker", "wandb"): [
        {"mode": "offline", "group": "g", "tags": ["a", "b"]},
        {"mode": "disabled", "upload_model": False},
    ],
    ("tracker", "tensorboard"): [{}, {"directory": "events"}],
    ("sweep", "ray-tune"): [
        {"space": {"train.learning_rate": {"log_range": [1e-4, 1e-2]}}},
        {
            "stage": "assimilate",
            "metric": "crps",
            "search": "grid",
            "space": {
                "guidance": {"name": {"choice": ["gaussian", "mmps"]}},
                "sampler": {"steps": {"integers": [16, 64], "step": 16}},
            },
        },
    ],
}


def _all() -> list:
    found = []
    for component in default_manager().components():
        for i, fields in enumerate(CASES.get((component.kind, component.name), [{}])):
            conditions = {k: v for k, v in fields.items() if k in CONDITIONS}
            fields = {k: v for k, v in fields.items() if k not in CONDITIONS}
            for check in checks(component.kind, component.name, fields, **conditions):
                name = f"{check}-{i}" if i else str(check)
                many = name.startswith(("method-twisted-smc", "method-block-smc"))
                if many and (i == 1) != ("-smoother" in name):
                    continue
                # Starting Ray for each of these takes minutes in all; tests/ray share a cluster.
                marks = [pytest.mark.slow] if name.startswith("cluster-ray") else []
                found.append(pytest.param(check, id=name, marks=marks))
    return found


@pytest.mark.parametrize("check", _all())
def test_component(check: Check) -> None:
    check()


def test_every_case_is_of_a_component_that_is_there() -> None:
    there = {(c.kind, c.name) for c in default_manager().components()}
    assert set(CASES) <= there
