"""How much memory a computation needs at its peak, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(function: Callable[[], object]) -> int:
    """The most bytes, on all devices, that tensors made within a function hold at one time."""
    with _LiveBytes() as live:
        function()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors from the operation that makes them until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the operation, and count what is new in its result."""
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            address, size = storage.data_ptr(), storage.nbytes()
            if size and address not in self.known | given:
                self.known.add(address)
                self.now += size
                weakref.finalize(storage, self._free, address, size)
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.now -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
