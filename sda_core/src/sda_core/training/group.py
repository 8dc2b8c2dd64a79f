"""The processes that train together.

References:
    - Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", 2020,
      https://arxiv.org/abs/2006.15704
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import attrs
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

Network = Callable[[Tensor, Tensor], Tensor]

#: How long processes wait for rank 0, which may be drawing samples.
_TIMEOUT = timedelta(days=1)


@attrs.frozen
class Group:
    """The processes that train together; for a single one nothing is done.

    All call the methods of a group in the same order, each waiting for the others.

    Attributes:
        rank: The number of this process, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1
    _host: ProcessGroup | None = None

    @classmethod
    def current(cls) -> Group:
        """The group of torch.distributed that this process is in, if any."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        # On the host, so that what is broadcast waits for no GPU.
        host = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        return cls(dist.get_rank(), dist.get_world_size(), host)

    @property
    def is_main(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    def shard(self, n: int) -> slice:
        """Which rows of a batch of n are this process's; none, where there are too few."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def all_gather_rows(self, rows: Tensor, n: int) -> Tensor:
        """All n rows of a batch, from the shard of each process."""
        if self.size == 1:
            return rows
        gathered = rows.new_zeros(n, *rows.shape[1:])
        gathered[self.shard(n)] = rows
        return self.total(gathered)

    def total(self, x: Tensor) -> Tensor:
        """The sum of a tensor over the processes, in its place."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def broadcast(self, value: Any = None) -> Any:
        """The value of rank 0, of whatever can be pickled."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self._host)
        return values[0]

    def network(self, module: nn.Module, evaluate: Network) -> Network:
        """A network whose gradients are the means over the processes.

        Args:
            module: What has the weights.
            evaluate: How it is evaluated.
        """
        return evaluate if self.size == 1 else DistributedDataParallel(_Network(module, evaluate))

    def no_sync(self, network: Network) -> AbstractContextManager[None]:
        """Gradients within are summed on each rank, and exchanged with the next ones outside."""
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


class _Network(nn.Module):
    """A function as a module with the weights that it uses."""

    def __init__(self, module: nn.Module, evaluate: Network) -> None:
        super().__init__()
        self.module, self._evaluate = module, evaluate

    def forward(self, x: Tensor, t: Tensor) -> Any:
        return self._evaluate(x, t)
