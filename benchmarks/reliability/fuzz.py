"""Loads files that a user might be sent, damaged or forged, and counts what becomes of them.

    python benchmarks/reliability/fuzz.py [--inputs 10000]

Half of the inputs are compact folders with a damaged safetensors header; the other half have forged widths, in turn in
config.json (the field of widths, and the sizes of the dense model) and in the compaction plan, which is then applied
and read as a guide. A tenth as many more are task.json and report.json. Each must be refused in one line, or be what it
was all the same (bytes that mean nothing; a plan that keeps what is dead). What else can happen, and must not: another
exception, more memory than the limit, no end, or something else without a word. A head that is not in the file is new,
as transformers has it and warns. Seeded. The counts land in benchmarks/results/fuzz.json, and the inputs that did what
they must not in --keep.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, BertConfig, BertForQuestionAnswering
from transformers.utils import logging

import bplightning
from benchmarks.reliability.fuzz_damage import HEADER, Damage, forge_document, forge_widths
from bplightning.compaction.equivalence import logit_difference
from bplightning.compaction.example_inputs import comparison_inputs
from bplightning.compaction.loading import PLAN_FILE, save_compact
from bplightning.compaction.plan import CompactionPlan
from bplightning.compaction.saved_models import load_saved
from bplightning.contracts.task_file import load_task, save_task
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.reporting.report import load_report
from bplightning.strategies.shared.guide import read_guide
from bplightning.tasks.qa import QuestionAnswering

ROOT = Path(__file__).resolve().parent
RESULT = ROOT / "results" / "fuzz.json"
ROOM, SECONDS = 2 << 30, 20
"""Bytes of address space beside what is in use at the start, and the longest a load may take."""
EXAMPLE = {"id": "1", "question": "Who lives in Dinmouth?", "context": "Sirina Senman lives in Dinmouth."}
SAME = "the same"
HARMLESS = ("refused", SAME, "a new head, as transformers warns", "a plan that keeps what is dead")


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes:
        damages: What is done to a folder, in turn.
        read: Reads it and says what it is.
    """

    damages: tuple[Damage, ...]
    read: Callable[[Path], str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="how many, of headers and widths")
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
        targets = make(good)
        turns = ["header", "widths", "header", "plan"] * (arguments.inputs // 4)
        turns += ["task", "report"] * (arguments.inputs // 20)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))
        for number, what in enumerate(track(turns, "loading")):
            shutil.rmtree(bad, ignore_errors=True)
            shutil.copytree(good, bad)
            generator.choice(targets[what].damages)(bad, generator)
            found = outcome(targets[what].read, bad)
            counts[f"{what}: {found}"] += 1
            if found not in HARMLESS and arguments.keep is not None:
                shutil.copytree(bad, arguments.keep / f"{number}-{what}")
    harmful = sum(count for name, count in counts.items() if name.partition(": ")[2] not in HARMLESS)
    result = {"inputs": len(turns), "seed": arguments.seed, "harmful": harmful, "counts": dict(sorted(counts.items()))}
    RESULT.write_text(json.dumps(result | {"date": datetime.now(UTC).date().isoformat()}, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def make(folder: Path) -> dict[str, Target]:
    """A compact model of uneven widths, one layer without heads, with what a run puts beside it; and who reads it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 48}
    masked = BertForQuestionAnswering(BertConfig(vocab_size=60, max_position_embeddings=32, **sizes)).eval()
    with torch.no_grad():
        for index, layer in enumerate(masked.bert.encoder.layer):
            layer.attention.output.dense.weight[:, : 8 * (2 + index)] = 0
            layer.output.dense.weight[:, : 10 * (1 + index)] = 0
    save_compact(bplightning.compact(masked), folder)
    task = QuestionAnswering(max_length=32, stride=4)
    task.tokenizer.save_pretrained(folder)
    save_task(task, folder)
    report = json.loads((ROOT / "results" / "demo.json").read_text())["report"]
    (folder / "report.json").write_text(json.dumps(report))
    load_report(folder / "report.json")
    expected = AutoModelForQuestionAnswering.from_pretrained(folder).state_dict()
    return {
        "header": Target(HEADER, lambda of: read_model(of, expected)),
        "widths": Target((forge_widths,), lambda of: read_model(of, expected)),
        "plan": Target((forge_document(PLAN_FILE),), lambda of: read_plan(of, masked)),
        "task": Target((forge_document("task.json"),), lambda of: read_task(of, task)),
        "report": Target((forge_document("report.json"),), read_report),
    }


def outcome(read: Callable[[Path], str], folder: Path) -> str:
    """What becomes of an input."""
    signal.alarm(SECONDS)
    try:
        return read(folder)
    except UserError as error:
        if isinstance(error.__cause__, TimeoutError):
            return "no end"
        return "too much memory" if isinstance(error.__cause__, MemoryError) else one_line(str(error))
    except TimeoutError:
        return "no end"
    except MemoryError:
        return "too much memory"
    except Exception as error:
        return f"another exception: {type(error).__name__}"
    finally:
        signal.alarm(0)


def one_line(message: str) -> str:
    if "can't allocate memory" in message:
        return "too much memory"
    return "refused" if "\n" not in message and len(message) < 1500 else "refused in many words"


def too_long(*_: Any) -> None:
    raise TimeoutError


# -- who reads them ----------------------------------------------------------------------------------------------------


def read_model(folder: Path, expected: dict[str, Tensor]) -> str:
    loaded = load_saved(AutoModelForQuestionAnswering.from_pretrained, folder, what="the model").state_dict()
    head = {name: expected[name] for name in expected if name.startswith("qa_outputs.")}
    if loaded.keys() == expected.keys() and any(not torch.equal(loaded[name], value) for name, value in head.items()):
        expected, loaded = ({name: of[name] for name in of if name not in head} for of in (expected, loaded))
        if all(torch.equal(loaded[name], value) for name, value in expected.items()):
            return "a new head, as transformers warns"
    same = loaded.keys() == expected.keys() and all(
        torch.equal(loaded[name], value) for name, value in expected.items()
    )
    return SAME if same else "another model without a word"


def read_plan(folder: Path, masked: BertForQuestionAnswering) -> str:
    read_guide(folder, PrunableLayout.of(masked))
    plan = CompactionPlan.from_json((folder / PLAN_FILE).read_text())
    small: Any = bplightning.compact(masked, plan)
    if plan == CompactionPlan.of(masked):
        return SAME
    close = logit_difference(masked, small, comparison_inputs(masked)).relative < 1e-5
    return "a plan that keeps what is dead" if close else "another model without a word"


def read_task(folder: Path, expected: QuestionAnswering) -> str:
    task = load_task(folder)
    if not isinstance(task, QuestionAnswering):
        return "another task without a word"
    task.read_inputs([EXAMPLE], ["the example"])  # where lengths are held against the model
    kinds = {name: {type(getattr(expected, name))} for name in task.saved_settings}
    kinds["max_length"] |= {type(None)}  # the default
    kinds["null_score_diff_threshold"] |= {int}
    fits = all(type(getattr(task, name)) in of for name, of in kinds.items())
    return SAME if fits else "settings of another kind without a word"


def read_report(folder: Path) -> str:
    bplightning.reporting.report.render(load_report(folder / "report.json"))
    return SAME


if __name__ == "__main__":
    main()
