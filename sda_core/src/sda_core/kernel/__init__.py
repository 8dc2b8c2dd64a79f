"""Score kernels: the contract of networks on windows, and the time embedding they share."""

from sda_core.kernel.base import Kernel, WindowShape
from sda_core.kernel.embedding import TimeEmbedding

__all__ = ["Kernel", "TimeEmbedding", "WindowShape"]
