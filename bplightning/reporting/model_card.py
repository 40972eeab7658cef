"""The model card of a compact folder: a ``README.md`` in the Hub's format, drawn from the report."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.modelcard import TASK_MAPPING

from bplightning.io.private import without_paths
from bplightning.reporting.base_card import CARD_FILE as CARD_FILE
from bplightning.reporting.base_card import Base, base_of
from bplightning.reporting.schema import Report
from bplightning.reporting.table import fills_zeros, is_faster, left_of_linear, notes, rows, unsettled
from bplightning.reporting.table_format import UNSETTLED, times_faster


def model_card(report: Report, *, architecture: str, reader: str) -> str:
    """The card of a compact model.

    Args:
        report: Its report.
        architecture: Class of the model, from which its pipeline on the Hub follows.
        reader: Class whose `from_pretrained` reads it, such as ``AutoModelForQuestionAnswering``.
    """
    base = base_of(report["model"])
    name = _name(base, architecture)
    data = ModelCardData(
        base_model=base.name,
        license=base.license,
        datasets=(report["data"] or {}).get("dataset"),
        library_name="transformers",
        metrics=list(report["metrics"]["compact"] or {}) or None,
        model_name=f"{name}-{report['strategy']}",
        pipeline_tag=_pipeline(architecture),
        tags=["bplightning", "block-pruning", report["strategy"]],
        eval_results=list(_results(report, _pipeline(architecture))) or None,
    )
    return str(ModelCard(without_paths(f"---\n{data.to_yaml()}\n---\n\n{_text(report, name, reader)}")))


def _results(report: Report, pipeline: str | None) -> Iterator[EvalResult]:
    """The metrics of the compact model in the form of the Hub's ``model-index``."""
    data: dict[str, Any] = report["data"] or {}
    name = str(data.get("validation") or report["task"])
    for metric, value in (report["metrics"]["compact"] or {}).items():
        if value is not None:
            yield EvalResult(
                task_type=pipeline or report["task"],
                dataset_type=str(data.get("dataset") or name),
                dataset_name=name,
                dataset_config=data.get("dataset_config"),
                metric_type=metric,
                metric_value=round(value, 4),
            )


def _pipeline(architecture: str) -> str | None:
    """The Hub's name for the pipeline of a model class, if transformers has one."""
    mapping: dict[str, Any] = TASK_MAPPING
    return next((tag for tag, names in mapping.items() if architecture in names.values()), None)


def _name(base: Base, architecture: str) -> str:
    """What the model is called: by its base on the Hub, else by its architecture; a folder's name says nothing.

    >>> _name(Base("google/bert_uncased"), "BertForQuestionAnswering"), _name(Base(), "BertForQuestionAnswering")
    ('bert_uncased', 'Bert')
    """
    return architecture.partition("For")[0] if base.name is None else base.name.rpartition("/")[2]


TEXT = """# {model} for {task}, pruned by {strategy}

{warnings}{what}

Made by bplightning ([arXiv 2109.04838](https://arxiv.org/abs/2109.04838)).

## Load it

```python
{imports}from transformers import {reader}

model = {reader}.from_pretrained("FOLDER_OR_NAME")
```

{needs}

## Results

| | dense | this model |
|---|---|---|
{table}

{notes}

## How it was made

    {command}

{date}, seed {seed}, {versions}.
"""


IMPORT = "import bplightning  # lets from_pretrained read the widths of its layers\n"

WITH_IMPORT = """If `config.json` has a field `compaction`, the import is required.
`compaction_plan.json` lists the heads, feed-forward units and dimensions of the residual stream that were kept."""

WITHOUT = "It is an ordinary checkpoint: every layer is padded with zeros to widths that `config.json` can say."


def _text(report: Report, name: str, reader: str) -> str:
    portable = report["portable"] is not None
    table = [(label, dense, compact) for label, dense, _, compact in rows(report) if label.strip() == label]
    return TEXT.format(
        model=_plain(name),
        task=_plain(report["task"].replace("-", " ") if report["task"] != "qa" else "question answering"),
        strategy=_plain(report["strategy"]),
        warnings="".join(f"> **Warning.** {_plain(each['message'])}\n\n" for each in report["warnings"]),
        what=_what(report, name),
        reader=reader,
        imports="" if portable else IMPORT,
        needs=WITHOUT if portable else WITH_IMPORT,
        table="\n".join(f"| {' | '.join(map(_plain, row))} |" for row in table),
        notes="\n".join(f"- {_plain(line)}" for line in notes(report)),
        command=" ".join(report["command"].split()),
        date=report["date"][:10],
        seed="not fixed" if report["seed"] is None else report["seed"],
        versions=", ".join(f"{_plain(package)} {_plain(version)}" for package, version in report["versions"].items()),
    )


def _what(report: Report, name: str) -> str:
    """How the model differs from the dense one; it is called smaller or faster only where it is."""
    model, task = _plain(name), _plain(report["task"])
    share, smaller = left_of_linear(report)
    if not smaller:
        before = ", before a refill that could fill the others" if fills_zeros(report) else ""
        return (
            f"{model} for {task}: the shapes of its layers are unchanged, and {share:.1f} % of their linear weights "
            f"are not zero{before}{_speed(report)}."
        )
    return (
        f"A smaller {model} for {task}: {share:.1f} % of the linear weights of its layers are left{_speed(report)}. "
        f"{_structure(report)}"
    )


def _structure(report: Report) -> str:
    """The kind of a smaller model: ordinary, unless it skips sub-layers."""
    skipped = report["skipped"]
    if not skipped:
        return "It is an ordinary dense model with smaller matrices."
    names = ", ".join(map(_plain, skipped))
    return (
        f"It is a dense model with smaller matrices that skips {len(skipped)} sub-layer{'s' * (len(skipped) > 1)} with "
        f"the norm after it, which ordinary models of its architecture do not: {names}."
    )


def _speed(report: Report) -> str:
    """The end of a sentence: that the model is faster, where it is, and its speed in numbers."""
    speedup = report["speedup"] or {}
    intervals = report["speedup_interval"]
    told = ", ".join(f"{times_faster(ratio, intervals.get(shape))} at {shape}" for shape, ratio in speedup.items())
    if not told:
        return ""
    if unsettled(intervals):
        return f"; its speed is about {told} that of the dense model ({UNSETTLED}: not settled)"
    if all(map(is_faster, speedup.values())):
        return f", and it is faster ({told})"
    return f"; its speed is {told} that of the dense model"


def _plain(text: str) -> str:
    """Escape a text for Markdown, on one line and for one cell of a table."""
    return re.sub(r"([\\`*_{}\[\]|#<>])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
