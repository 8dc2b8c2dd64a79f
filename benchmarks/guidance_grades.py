"""Grade every guidance under every sampler by a linear-Gaussian chain, whose smoother is exact.

Errors are the largest of any mean and of any covariance of the posterior, in units of its standard
deviation. They are exact (no Monte-Carlo error) where the samples are an affine function of the
noise, and marked with ~ where they are estimated from an ensemble.

Run: python benchmarks/guidance_grades.py [--steps 16 64 256] [--std 0.4]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from sda_core.config import structure
from sda_core.guidance import Guidance
from sda_core.sampler import Sampler
from sda_core.testing import ExactGuidance, Grade, gaussian_problem, grade

GUIDANCES = (
    None,  # the closed form: what is left is the sampler's own error
    {"name": "mmps"},
    {"name": "gaussian", "gamma": 0.03},
    {"name": "gaussian", "gamma": 0.3},
    {"name": "gaussian", "gamma": 1.0},
    {"name": "gaussian", "gamma": 0.3, "detach": True},
    {"name": "dps", "zeta": 0.3},
    {"name": "dps", "zeta": 1.0},
)
SAMPLERS = (
    {"name": "ddim"},
    {"name": "ddpm"},
    {"name": "predictor-corrector", "corrections": 1, "tau": 0.25},
)


def _text(table: dict | None) -> str:
    if table is None:
        return "closed form"
    fields = ", ".join(f"{k} = {v}" for k, v in table.items() if k != "name")
    return f"{table['name']} ({fields})" if fields else table["name"]


def grades(
    steps: int, std: float, length: int = 9, members: int = 1024, samplers: tuple = SAMPLERS
) -> Iterator[tuple[str, str, Grade]]:
    """Guidance, sampler and grade of each pair."""
    problem = gaussian_problem(length=length, std=std)
    for table in GUIDANCES:
        guidance = ExactGuidance() if table is None else structure(Guidance, table)
        for chosen in samplers:
            sampler = structure(Sampler, {**chosen, "steps": steps, "grid": "log-snr"})
            yield _text(table), _text(chosen), grade(guidance, sampler, problem, members)


def print_table(rows: Iterator[tuple[str, str, Grade]], steps: int) -> None:
    """Print rows as they come."""
    for guidance, sampler, result in rows:
        mark = " " if result.exact else "~"
        print(
            f"{guidance:34} {sampler:50} {steps:5d} {mark}{result.mean:8.4f} "
            f"{mark}{result.covariance:8.4f}",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--std", type=float, default=0.4, help="observation error")
    parser.add_argument("--members", type=int, default=1024)
    arguments = parser.parse_args()
    print(f"{'guidance':34} {'sampler':50} {'steps':>5} {'mean':>9} {'covar.':>9}")
    for steps in arguments.steps:
        print_table(grades(steps, arguments.std, members=arguments.members), steps)


if __name__ == "__main__":
    main()
