"""Progress on a terminal and in a log."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from sda_core.io import progress
from sda_core.io.progress import duration_text, reporting, reporting_each

NOTE = (
    "epoch 12/4096  batch 3/26  loss 0.0234  lr 1.0e-03  grad 0.52  1,234 windows/s  1.20 GiB  "
    "and a last part"
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock to set, which lines are timed by."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_log_has_a_line_every_ten_seconds(clock, capsys):
    with reporting(True, "training", 1000) as report:
        for second in range(100):
            clock.now = 100.0 + second
            report(10 * second + 10, NOTE)
        report(1000, NOTE)  # and only one at the end
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[0] == f"training: 2 %, about 49 s left  {NOTE}"
    assert lines[1] == f"training: 12 %, about 81 s left  {NOTE}"
    assert lines[-1] == f"training: done in 99 s  {NOTE}"
    assert all(line.isprintable() for line in lines)


def test_time_left_counts_what_was_done_here(clock, capsys):
    with reporting(True, "training", 100, done=50) as report:
        clock.now += 60
        report(50)  # it only begins now
        clock.now += 20
        report(60)
        clock.now += 20
        report(40)  # rolled back
    assert capsys.readouterr().err.splitlines() == [
        "training: 50 %",
        "training: 60 %, about 80 s left",
        "training: 40 %",
    ]


def test_several_side_by_side(clock, capsys):
    with reporting_each(True, {"seed 0": 0, "seed [1]": 2}, 4) as reports:
        clock.now += 10
        reports["seed 0"](1)
        reports["seed [1]"](4)
    assert capsys.readouterr().err.splitlines() == [
        "seed 0: 25 %, about 30 s left",
        "seed [1]: done in 10 s",
    ]


def test_a_function_is_told_the_sums():
    told = []
    with reporting_each(lambda *now: told.append(now), {"a": 0, "b": 2}, 4) as reports:
        reports["a"](1, "note")
        reports["b"](4)
    with reporting(lambda *now: told.append(now), "alone", 5) as report:
        report(3)
    assert told == [(3, 8), (5, 8), (3, 5)]


@pytest.mark.parametrize("silent", [False, None])
def test_silence(silent, clock, capsys):
    with reporting(silent, "training", 4) as report:
        clock.now += 10
        report(4)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_terminal_shows_the_note_below_the_bar(columns):
    code = (
        "from sda_core.io.progress import reporting\n"
        "with reporting(True, 'training', 4) as report:\n"
        f"    report(4, {NOTE!r})\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "LINES": "24", "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", code], stderr=theirs, env=environment, check=True)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    last_frame = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).rsplit("training", 1)[1]
    bar, *note = last_frame.rstrip().splitlines()
    assert "100%" in bar
    assert len("training" + bar) <= columns
    assert all(len(line) <= columns for line in note)
    assert "  ".join(line.strip() for line in note) == NOTE
    parts = NOTE.split("  ")
    assert all(part in parts for line in note for part in line.strip().split("  "))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (99, "99 s"), (100, "2 min"), (7200, "2 h"), (86400 * 3, "3 days")],
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text
