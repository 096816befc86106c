"""The bytes of tensors that a computation makes, deterministic unlike the memory of a process."""

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryUse(TorchDispatchMode):
    """
    A context that counts the storages made in it, those of the backward pass and of saved tensors too.

    Attributes:
        peak: The most bytes that existed at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._sizes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {StorageWeakRef(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        outputs = func(*args, **(kwargs or {}))
        for output in tree_leaves(outputs):
            if isinstance(output, torch.Tensor):
                storage = StorageWeakRef(output.untyped_storage())
                if storage not in inputs:
                    self._sizes[storage] = output.untyped_storage().nbytes()
        self.peak = max(self.peak, self.now())
        return outputs

    def now(self) -> int:
        """Return the bytes that still exist."""
        self._sizes = {storage: size for storage, size in self._sizes.items() if not storage.expired()}
        return sum(self._sizes.values())
