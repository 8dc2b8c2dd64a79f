"""Data sets of trajectories: making, reading, checking, and windows to train on."""

from sda_core.data.arrays import ArrayStore, from_arrays
from sda_core.data.base import (
    SCHEMA_VERSION,
    SPLITS,
    Problem,
    Recipe,
    StoreInfo,
    StoreProblemError,
    size_text,
    split_path,
)
from sda_core.data.generate import DataConfig, check_space, generate, preview
from sda_core.data.preview import Preview
from sda_core.data.report import FileReport, StoreReport, inspect
from sda_core.data.standardization import Standardization
from sda_core.data.store import TrajectoryStore
from sda_core.data.verify import VerifyReport, verify
from sda_core.data.windows import WindowDataset

__all__ = [
    "SCHEMA_VERSION",
    "SPLITS",
    "ArrayStore",
    "DataConfig",
    "FileReport",
    "Preview",
    "Problem",
    "Recipe",
    "Standardization",
    "StoreInfo",
    "StoreProblemError",
    "StoreReport",
    "TrajectoryStore",
    "VerifyReport",
    "WindowDataset",
    "check_space",
    "from_arrays",
    "generate",
    "inspect",
    "preview",
    "size_text",
    "split_path",
    "verify",
]
