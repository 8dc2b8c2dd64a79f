"""A kernel that is one matrix per window, scaled by the diffusion time."""

import torch
from torch import Tensor, nn

from sda_core import component, option
from sda_core.config import at_least
from sda_core.kernel import Kernel, TimeEmbedding, WindowShape


@component
class LinearKernel(Kernel):
    """A linear map of the flattened window: enough for Gaussian data, and for nothing else."""

    embedding: int = option(default=32, check=at_least(1), help="features of the time embedding")

    def build(self, window: WindowShape) -> nn.Module:
        """Make the network."""
        return ScaledLinear(window.numel, self.embedding)


class ScaledLinear(nn.Module):
    """x -> s(t) W x."""

    def __init__(self, features: int, embedding: int) -> None:
        super().__init__()
        self.matrix = nn.Linear(features, features, bias=False)
        self.scale = nn.Sequential(TimeEmbedding(embedding), nn.Linear(embedding, features))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        r"""(B, W, C, \*S), (B,) -> (B, W, C, \*S)."""
        out = self.scale(t) * self.matrix(x.flatten(1))
        return torch.as_tensor(out.reshape(x.shape))
