"""Loads compact folders whose files were damaged or forged, and counts what becomes of them.

    python benchmarks/fuzz.py [--inputs 10000]

Half of the inputs have a damaged safetensors header, half a forged field of widths in config.json. Each must be refused
in one line, or be the same model all the same (bytes that mean nothing). What else can happen, and must not: another
exception, more memory than the limit, no end, or another model without a word. A head that is not in the file is new,
as transformers has it and warns. Seeded. The counts land in
benchmarks/results/fuzz.json, and the inputs that did what they must not in --keep.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import signal
import struct
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, BertConfig, BertForQuestionAnswering
from transformers.utils import logging

import bplightning
from bplightning.errors import UserError
from bplightning.loading import load_saved, save_compact

RESULT = Path(__file__).resolve().parent / "results" / "fuzz.json"
ROOM, SECONDS = 2 << 30, 20
"""Bytes of address space beside what is in use at the start, and the longest a load may take."""
FORGED: tuple[Any, ...] = (
    *(10**9, 2**63, 2**64, -1, 0, 1, 3, 1.5, float("inf"), True, None, "", "4", "x" * 10_000, "../../../etc/passwd"),
    *([], {}, [[]], [-1], [0, 0], [1, 0], [10**9], list(range(100_000)), {"a": 1}),
)
HARMLESS = ("refused", "the same model", "a new head, as transformers warns")
DTYPES = ("F64", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "X", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that did what they must not")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    generator, counts = random.Random(arguments.seed), Counter[str]()
    signal.signal(signal.SIGALRM, too_long)
    with tempfile.TemporaryDirectory() as scratch:
        good, bad = Path(scratch) / "good", Path(scratch) / "bad"
        make(good)
        expected = AutoModelForQuestionAnswering.from_pretrained(good).state_dict()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))
        for number in track(range(arguments.inputs), "loading"):
            shutil.rmtree(bad, ignore_errors=True)
            shutil.copytree(good, bad)
            what = "header" if number % 2 else "widths"
            damage = HEADER[number // 2 % len(HEADER)] if number % 2 else forge
            damage(bad, generator)
            found = outcome(bad, expected)
            counts[f"{what}: {found}"] += 1
            if found not in HARMLESS and arguments.keep is not None:
                shutil.copytree(bad, arguments.keep / str(number))
    result = {"inputs": arguments.inputs, "seed": arguments.seed, "counts": dict(sorted(counts.items()))}
    RESULT.write_text(json.dumps(result | {"date": datetime.now(UTC).date().isoformat()}, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def make(folder: Path) -> None:
    """A compact model of uneven widths, one layer without heads."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 48}
    model = BertForQuestionAnswering(BertConfig(vocab_size=60, max_position_embeddings=32, **sizes)).eval()
    with torch.no_grad():
        for index, layer in enumerate(model.bert.encoder.layer):
            layer.attention.output.dense.weight[:, : 8 * (2 + index)] = 0
            layer.output.dense.weight[:, : 10 * (1 + index)] = 0
    save_compact(bplightning.compact(model), folder)


def outcome(folder: Path, expected: dict[str, Tensor]) -> str:
    """What becomes of a load."""
    signal.alarm(SECONDS)
    try:
        loaded = load_saved(AutoModelForQuestionAnswering.from_pretrained, folder, what="the model").state_dict()
    except UserError as error:
        return "refused" if "\n" not in str(error) else "refused in several lines"
    except TimeoutError:
        return "no end"
    except MemoryError:
        return "too much memory"
    except Exception as error:
        return f"another exception: {type(error).__name__}"
    finally:
        signal.alarm(0)
    head = {name: expected[name] for name in expected if name.startswith("qa_outputs.")}
    if loaded.keys() == expected.keys() and any(not torch.equal(loaded[name], value) for name, value in head.items()):
        expected, loaded = ({name: of[name] for name in of if name not in head} for of in (expected, loaded))
        if all(torch.equal(loaded[name], value) for name, value in expected.items()):
            return "a new head, as transformers warns"
    same = loaded.keys() == expected.keys() and all(
        torch.equal(loaded[name], value) for name, value in expected.items()
    )
    return "the same model" if same else "another model without a word"


def too_long(*_: Any) -> None:
    raise TimeoutError


# -- what is done to a folder ------------------------------------------------------------------------------------------


def forge(folder: Path, generator: random.Random) -> None:
    """One place in the field of widths gets another value, goes, or gets a neighbour."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    places = list(containers(config["compaction"], [config]))
    container, key = generator.choice(places)
    kind = generator.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[generator.choice(("unknown", "__proto__", "encoder.99.self", "encoder.0.self"))] = generator.choice(
            FORGED
        )
    elif kind == 1:
        container.insert(generator.randrange(len(container) + 1), generator.choice((*FORGED, container[key])))
    else:
        container[key] = generator.choice(FORGED)
    file.write_text(json.dumps(config))


def containers(value: Any, parents: list[Any]) -> Any:
    """Each place within a value, as its container and its key."""
    for container in parents:
        if isinstance(container, dict) and "compaction" in container:
            yield container, "compaction"
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from containers(inner, [])


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


HEADER: tuple[Callable[[Path, random.Random], None], ...] = (flip, length, cut, entry, entry)

if __name__ == "__main__":
    main()
