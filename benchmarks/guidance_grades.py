"""Grade every guidance under every sampler by a linear-Gaussian chain, whose smoother is exact.

Errors are the largest of any mean and of any covariance of the posterior, in units of its standard
deviation. They are exact (no Monte-Carlo error) where the samples are an affine function of the
noise, and marked with ~ where they are estimated from an ensemble. Every sampler takes as many
steps as it can with the given number of evaluations of the denoiser. Prints Markdown tables, with
mean / covariance in each cell.

Run: python benchmarks/guidance_grades.py [--evaluations 16 64 256] [--std 0.4] [--grid log-snr]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sda_core.config import structure
from sda_core.denoiser import Denoiser
from sda_core.guidance import Guidance
from sda_core.plugins import default_manager
from sda_core.random import MemberNoise
from sda_core.sampler import Sampler
from sda_core.schedule import VP
from sda_core.testing import ExactGuidance, Grade, gaussian_problem, grade

GUIDANCES = (
    None,  # the closed form: what is left is the sampler's own error
    {"name": "mmps"},
    {"name": "mmps", "solver": "cg", "iterations": 1},
    {"name": "mmps", "solver": "cg", "iterations": 3},
    {"name": "mmps", "solver": "cg", "iterations": 8},
    {"name": "mmps", "solver": "gmres", "iterations": 3},
    {"name": "tmpd"},
    {"name": "pigdm"},
    {"name": "pigdm", "detach": True},
    {"name": "diffpir"},
    {"name": "diffpir", "weight": 5.0},
    {"name": "gaussian", "gamma": 0.03},
    {"name": "gaussian", "gamma": 0.3},
    {"name": "gaussian", "gamma": 1.0},
    {"name": "gaussian", "gamma": 0.3, "detach": True},
    {"name": "gaussian", "gamma": 0.3, "detach": True, "slope": "prior"},
    {"name": "dps", "zeta": 0.3},
    {"name": "dps", "zeta": 1.0},
)
OPTIONS = {"predictor-corrector": {"corrections": 1, "tau": 0.25}}


def samplers() -> tuple[dict, ...]:
    """Every registered sampler, as configuration."""
    names = sorted(c.name for c in default_manager().components() if c.kind == "sampler")
    return tuple({"name": name, **OPTIONS.get(name, {})} for name in names)


def label(table: dict | None) -> str:
    """A configuration in one line."""
    if table is None:
        return "closed form"
    fields = ", ".join(f"{k} = {v}" for k, v in table.items() if k != "name")
    return f"{table['name']} ({fields})" if fields else table["name"]


class _Counting(Denoiser):
    calls = 0

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return 0.5 * x_t


def affordable(table: dict, evaluations: int, grid: str) -> Sampler:
    """The sampler with the most steps that take no more evaluations than this."""
    for steps in range(evaluations, 1, -1):
        sampler = structure(Sampler, {**table, "steps": steps, "grid": grid})
        denoiser = _Counting(VP())
        sampler.sample(denoiser, (1, 1, 1), MemberNoise(0, [0], dtype=torch.float64))
        if denoiser.calls <= evaluations:
            return sampler
    raise ValueError(f"{label(table)} takes more than {evaluations} evaluations")


def grades(
    chosen: Sequence[Sampler],
    std: float = 0.4,
    length: int = 9,
    members: int = 1024,
    guidances: Sequence[dict | None] = GUIDANCES,
) -> Iterator[tuple[str, list[Grade]]]:
    """Each guidance and its grade under each of the samplers."""
    problem = gaussian_problem(length=length, std=std)
    for table in guidances:
        guidance = ExactGuidance() if table is None else structure(Guidance, table)
        yield label(table), [grade(guidance, sampler, problem, members) for sampler in chosen]


def print_table(columns: Sequence[str], rows: Iterator[tuple[str, list[Grade]]]) -> None:
    """Print rows as they come."""
    print("| guidance | " + " | ".join(columns) + " |")
    print("| --- " * (len(columns) + 1) + "|")
    for guidance, results in rows:
        cells = (f"{'' if r.exact else '~ '}{r.mean:.3f} / {r.covariance:.3f}" for r in results)
        print(f"| {guidance} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--std", type=float, default=0.4, help="observation error")
    parser.add_argument("--grid", default="log-snr", help="grid of noise levels")
    parser.add_argument("--members", type=int, default=1024)
    parser.add_argument("--only", nargs="+", help="samplers, by name")
    arguments = parser.parse_args()
    tables = [t for t in samplers() if arguments.only is None or t["name"] in arguments.only]
    for evaluations in arguments.evaluations:
        print(f"\n{evaluations} evaluations, grid {arguments.grid}\n")
        chosen = [affordable(t, evaluations, arguments.grid) for t in tables]
        columns = [f"{label(t)}, {s.steps} steps" for t, s in zip(tables, chosen, strict=True)]
        print_table(columns, grades(chosen, arguments.std, members=arguments.members))


if __name__ == "__main__":
    main()
