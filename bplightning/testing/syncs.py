"""A guard in which an operation that makes the host wait for the device fails."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

_SYNCS = {"aten._local_scalar_dense", "aten.is_nonzero", "aten.nonzero", "aten.equal", "aten.masked_select"}


class NoHostSync(TorchDispatchMode):
    """Fails on ``.item()``, ``bool(tensor)``, data-dependent shapes, and on copies from an accelerator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert str(func._overloadpacket) not in _SYNCS, f"{func} makes the host wait for the device"
        return func(*args, **(kwargs or {}))
