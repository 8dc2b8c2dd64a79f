"""Embedding of the diffusion time."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Sequential):
    r"""Embeds t in [0, 1] by (cos(pi i t), sin(pi i t)), i = 1..16, and a two-layer perceptron.

    As in the original SDA code (Rozet & Louppe, 2023, https://arxiv.org/abs/2306.10574).

    Args:
        features: Number of embedding features.
    """

    freqs: Tensor

    def __init__(self, features: int) -> None:
        super().__init__(nn.Linear(32, 256), nn.SiLU(), nn.Linear(256, features))
        self.register_buffer("freqs", torch.pi * torch.arange(1, 17), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """(B...) -> (B..., features)."""
        phase = self.freqs * t.unsqueeze(-1)
        return super().forward(torch.cat((phase.cos(), phase.sin()), dim=-1))
