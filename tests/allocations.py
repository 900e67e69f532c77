"""Which memory of tensors is still held: weak references to every storage that torch makes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Allocations(TorchDispatchMode):
    """Remembers, weakly, the storages of all tensors made while it is active.

    It sees the operations of the thread that activates it. The lanes of the cpu device have
    threads of their own; what they make is not seen.

    Args:
        known: storages that do not count here, because they were made before.
    """

    def __init__(self, known: Allocations | None = None) -> None:
        super().__init__()
        self._known = {} if known is None else known._made
        self._made: dict[StorageWeakRef, tuple[str, str, int]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # importing it takes seconds

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, Tensor):
                self.remember(one, str(func))
        return result

    def remember(self, tensor: Tensor, name: str) -> None:
        """Track a tensor, under the name of what made it."""
        storage = tensor.untyped_storage()
        ref = StorageWeakRef(storage)
        if ref not in self._known:
            self._made.setdefault(ref, (name, storage.device.type, storage.nbytes()))

    def watching(self, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`make`, whose tensors are tracked even if no operation of torch makes them."""

        def made(*args: Any) -> Tensor:
            tensor = make(*args)
            self.remember(tensor, "host_empty")
            return tensor

        return made

    def made_bytes(self) -> int:
        """Bytes of all storages that were ever made."""
        return sum(n_bytes for _, _, n_bytes in self._made.values())

    def held(self) -> list[tuple[str, str, int]]:
        """Of each storage that is not freed: what made it, kind of device, bytes if any."""
        return [found for ref, found in self._made.items() if found[-1] and not ref.expired()]

    def held_bytes(self, kind: str) -> int:
        """Bytes that are not freed on devices of a kind."""
        return sum(n_bytes for _, where, n_bytes in self.held() if where == kind)


def resident_bytes() -> int:
    """Memory of this process that the system holds for it, after freed memory is given back."""
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
