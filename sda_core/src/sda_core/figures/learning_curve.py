"""The loss over a training."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from sda_core.figures.base import POSTERIOR, REFERENCE, STYLE


def learning_curve(log: Path) -> Figure | None:
    """Training and validation loss over epochs, from ``metrics.jsonl``; None without training."""
    epochs: dict[int, dict[str, float]] = {}
    for line in log.read_text().splitlines():
        event = json.loads(line)
        if event.get("event") == "epoch":
            epochs[event["epoch"]] = event
    if not epochs:
        return None
    x = sorted(epochs)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 3.0))
        axis = figure.subplots()
        axis.plot(x, [epochs[e]["loss"] for e in x], color=POSTERIOR, alpha=0.6, label="training")
        valid = [epochs[e]["valid_loss"] for e in x]
        axis.plot(x, valid, color=REFERENCE, label="validation")
        axis.set_xlabel("epoch")
        axis.set_ylabel("denoising loss")
        axis.legend(fontsize=8)
        figure.tight_layout()
    return figure
