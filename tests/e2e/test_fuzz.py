"""A few of the broken inputs of ``benchmarks/fuzz.py``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"


@pytest.mark.slow
def test_broken_inputs_end_in_messages() -> None:
    command = [sys.executable, FUZZ, "--inputs", "60", "--first", "300"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    (counts,) = [line for line in ended.stdout.splitlines() if line.startswith("all: ")]
    assert "refused by a stage" in counts
    for outcome in ("traceback", "hang", "signal", "code"):
        assert outcome not in counts, ended.stdout
