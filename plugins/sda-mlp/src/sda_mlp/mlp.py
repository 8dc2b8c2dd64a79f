r"""Residual multi-layer perceptron on flattened windows.

References:
    - Rozet & Louppe, "Score-based Data Assimilation", 2023, https://arxiv.org/abs/2306.10574,
      appendix D ("local" score network for Lorenz-63).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sda_core.config import at_least, between, component, one_of, option
from sda_core.kernel import Kernel, TimeEmbedding, WindowShape

ACTIVATIONS = {"ReLU": nn.ReLU, "ELU": nn.ELU, "GELU": nn.GELU, "SELU": nn.SELU, "SiLU": nn.SiLU}


@component
class MLP(Kernel):
    """Residual MLP: ``depth`` blocks of ``width`` features, then one of the output's size.

    Good values: the defaults are the paper's for Lorenz-63 with a window of 5, 0.7 M parameters.
    It sees a window as one flat vector, so it suits small states and narrow windows.
    """

    width: int = option(default=256, check=at_least(1), help="features of the hidden blocks")
    depth: int = option(default=5, check=between(1, 1000), help="number of hidden blocks")
    embedding: int = option(default=32, check=at_least(1), help="features of the time embedding")
    activation: str = option(default="SiLU", check=one_of(*ACTIVATIONS), help="activation function")

    def build(self, window: WindowShape) -> nn.Module:
        """Make the network."""
        return ResidualMLP(
            features=window.numel,
            embedding=self.embedding,
            hidden=(self.width,) * self.depth,
            activation=ACTIVATIONS[self.activation],
        )


class ResidualBlock(nn.Module):
    """x + linear(activation(linear(norm(x)))), the norm without learned parameters."""

    def __init__(self, features: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.residue = nn.Sequential(
            nn.LayerNorm(features, elementwise_affine=False),
            nn.Linear(features, features),
            activation(),
            nn.Linear(features, features),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, features) -> (B, features)."""
        return x + self.residue(x)


class ResidualMLP(nn.Module):
    """The network: window and time embedding side by side, through residual blocks.

    Args:
        features: Number of values in a window.
        embedding: Features of the time embedding.
        hidden: Features of each hidden block.
        activation: Activation function.
    """

    def __init__(
        self, features: int, embedding: int, hidden: tuple[int, ...], activation: type[nn.Module]
    ) -> None:
        super().__init__()
        self.embedding = TimeEmbedding(embedding)
        layers: list[nn.Module] = []
        before = features + embedding
        for after in (*hidden, features):
            if after != before:
                layers.append(nn.Linear(before, after))
            layers.append(ResidualBlock(after, activation))
            before = after
        self.network = nn.Sequential(*layers)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        r"""(B, W, C, \*S), (B,) -> (B, W, C, \*S)."""
        features = torch.cat((x.flatten(1), self.embedding(t)), dim=-1)
        return self.network(features).reshape(x.shape)
