"""The stages of a run: simulate, train, sample, assimilate, evaluate, and all of them.

Each function is the command of the same name. A stage that has been done with the present
configuration is not done again by :func:`run`.
"""

from sda_core.stages.assimilation import assimilate, make_problem
from sda_core.stages.composition import composition
from sda_core.stages.evaluation import evaluate
from sda_core.stages.new_model import preview_training
from sda_core.stages.pipeline import run
from sda_core.stages.quick import QuickStage, quick
from sda_core.stages.sampling import sample
from sda_core.stages.seeds import Member, parse_seeds, train_seeds
from sda_core.stages.simulation import preview, simulate
from sda_core.stages.training import train

__all__ = [
    "Member",
    "QuickStage",
    "assimilate",
    "composition",
    "evaluate",
    "make_problem",
    "parse_seeds",
    "preview",
    "preview_training",
    "quick",
    "run",
    "sample",
    "simulate",
    "train",
    "train_seeds",
]
