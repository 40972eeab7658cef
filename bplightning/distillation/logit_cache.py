"""A cache of a teacher's logits, so that it need not compute an example again in later epochs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

KEY_BYTES = 16
"""Bytes of an example's key: among a billion examples, two have the same with a probability of 1e-21."""


class LogitCache:
    """Logits of examples, keyed by their inputs.

    If logits have no entry for each token, padding does not count, so an example matches in batches of any length; else
    only in batches of the same length.

    Args:
        megabytes: Main memory for logits, millions of bytes; examples beyond that are computed each time.
        classes: Number of classes: logits of shape ``(B, classes)`` or ``(B, classes, 2)`` have no entry for each
            token.
    """

    def __init__(self, megabytes: float, classes: int) -> None:
        self._room = int(1e6 * megabytes)
        self._classes = classes
        self._rows: dict[bytes, Tensor] = {}
        self._by_example: bool | None = None

    def __len__(self) -> int:
        """Number of cached examples."""
        return len(self._rows)

    def logits(self, inputs: dict[str, Tensor], compute: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        """The logits of a batch, computing only the rows that are not cached.

        Args:
            inputs: The model's keyword arguments, each ``(B, ...)``.
            compute: Computes logits ``(B, ...)`` from such arguments.
        """
        if self._by_example is None:
            logits = compute(inputs)
            self._by_example = tuple(logits.shape[1:]) in ((self._classes,), (self._classes, 2))
            self._keep(self._keys(inputs), logits)
            return logits
        keys = self._keys(inputs)
        missing = [row for row, key in enumerate(keys) if key not in self._rows]
        if len(missing) == len(keys):
            logits = compute(inputs)
            self._keep(keys, logits)
            return logits
        device = next(iter(inputs.values())).device
        rows = {key: self._rows[key].to(device) for key in keys if key in self._rows}
        if missing:
            of_rows = torch.tensor(missing, device=device)
            computed = compute({name: value[of_rows] for name, value in inputs.items()})
            self._keep([keys[row] for row in missing], computed)
            rows |= {keys[row]: logits for row, logits in zip(missing, computed, strict=True)}
        return torch.stack([rows[key] for key in keys])

    def _keep(self, keys: list[bytes], logits: Tensor) -> None:
        for key, row in zip(keys, logits.cpu(), strict=True):
            size = row.numel() * row.element_size() + KEY_BYTES
            if key not in self._rows and size <= self._room:
                self._rows[key] = row.clone()  # its own memory, not a view that holds the whole batch
                self._room -= size

    def _keys(self, inputs: dict[str, Tensor]) -> list[bytes]:
        on_host = {name: inputs[name].cpu() for name in sorted(inputs)}
        mask = on_host.get("attention_mask") if self._by_example else None
        keys = []
        for row in range(len(next(iter(on_host.values())))):
            digest = hashlib.blake2b(digest_size=KEY_BYTES)
            for name, value in on_host.items():
                part = value[row]
                if mask is not None and value.shape == mask.shape:
                    part = part[mask[row] != 0]
                digest.update(f"{name}{tuple(part.shape)}".encode())
                digest.update(part.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
            keys.append(digest.digest())
        return keys
