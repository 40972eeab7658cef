"""What `fuzz.py` does to the files of a folder that a user might be sent."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Damage = Callable[[Path, random.Random], None]

FORGED: tuple[Any, ...] = (
    *(10**9, 2**63, 2**64, -1, 0, 1, 3, 1.5, float("inf"), True, None, "", "4", "x" * 10_000, "../../../etc/passwd"),
    *([], {}, [[]], [-1], [0, 0], [1, 0], [10**9], list(range(100_000)), {"a": 1}),
)
DTYPES = ("F64", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "X", "")
SIZES = (
    *("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size"),
    *("max_position_embeddings", "type_vocab_size"),
)
"""Sizes of the dense model in its configuration, beside the field of widths."""

# -- JSON --------------------------------------------------------------------------------------------------------------


def forge_widths(folder: Path, generator: random.Random) -> None:
    """One place in the field of widths, or a size of the dense model, gets another value, goes, or gets a neighbour."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    places = [(config, key) for key in ("compaction", *SIZES)]
    forge(generator, [*places, *containers(config["compaction"])])
    file.write_text(json.dumps(config))


def forge_document(name: str) -> Damage:
    """Another value somewhere in a file of JSON; or, at times, another byte of its text."""

    def damage(folder: Path, generator: random.Random) -> None:
        file = folder / name
        if generator.randrange(8) == 0:
            text = bytearray(file.read_bytes())
            text[generator.randrange(len(text))] = generator.randrange(256)
            file.write_bytes(text[: generator.choice((len(text), generator.randrange(len(text))))])
            return
        if generator.randrange(50) == 0:
            file.write_text("[" * 100_000)
            return
        document = json.loads(file.read_text())
        forge(generator, list(containers(document)))
        file.write_text(json.dumps(document))

    return damage


def forge(generator: random.Random, places: list[tuple[Any, Any]]) -> None:
    """One place, a container and its key, gets another value, goes, or gets a neighbour."""
    container, key = generator.choice(places)
    kind = generator.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        added = generator.choice(("unknown", "__proto__", "encoder.99.self", "encoder.0.self"))
        container[added] = generator.choice(FORGED)
    elif kind == 1:
        container.insert(generator.randrange(len(container) + 1), generator.choice((*FORGED, container[key])))
    else:
        container[key] = generator.choice(FORGED)


def containers(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each place within a value, as its container and its key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from containers(inner)


# -- headers of safetensors --------------------------------------------------------------------------------------------


def split(folder: Path) -> tuple[Path, bytes, bytes]:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return file, data[8 : 8 + length], data[8 + length :]


def flip(folder: Path, generator: random.Random) -> None:
    """One byte of the header is another one."""
    file, header, rest = split(folder)
    changed = bytearray(header)
    changed[generator.randrange(len(changed))] = generator.randrange(256)
    file.write_bytes(struct.pack("<Q", len(changed)) + bytes(changed) + rest)


def length(folder: Path, generator: random.Random) -> None:
    """The header's length is another one."""
    file, header, rest = split(folder)
    other = generator.choice(
        (0, 1, len(header) - 1, len(header) + 1, 2**31, 2**63, 2**64 - 1, generator.randrange(2**40))
    )
    file.write_bytes(struct.pack("<Q", other) + header + rest)


def cut(folder: Path, generator: random.Random) -> None:
    """The file ends early."""
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: generator.randrange(len(data))])


def entry(folder: Path, generator: random.Random) -> None:
    """A tensor has another shape, place, kind or name."""
    file, header, rest = split(folder)
    tensors = json.loads(header)
    name = generator.choice([key for key in tensors if key != "__metadata__"])
    kind = generator.randrange(6)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[generator.choice(("x", "../x", name.upper(), "bert"))] = tensors.pop(name)
    elif kind == 2:
        tensors[name]["dtype"] = generator.choice(DTYPES)
    elif kind == 3:
        tensors[name]["shape"] = generator.choice(
            ([10**9, 10**9], [-1], [2**63], [], [0], tensors[name]["shape"][::-1], "x")
        )
    elif kind == 4:
        offsets = tensors[name]["data_offsets"]
        tensors[name]["data_offsets"] = generator.choice(([0, 2**63], [-1, 4], offsets[::-1], [0, 0], [offsets[0]]))
    else:
        tensors[name] = generator.choice(FORGED)
    changed = json.dumps(tensors).encode()
    file.write_bytes(struct.pack("<Q", len(changed)) + changed + rest)


HEADER: tuple[Damage, ...] = (flip, length, cut, entry, entry)
