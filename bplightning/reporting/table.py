"""The table dense | masked | compact, drawn from the JSON of a report."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from bplightning.measuring.records import Interval, ParameterCount
from bplightning.reporting.schema import (
    HeadLayer,
    Heads,
    Parameters,
    Report,
    UnitLayer,
    Units,
    Vocabulary,
)
from bplightning.reporting.table_format import BYTES, COUNTS, FLOPS, UNSETTLED, times_faster, unit_of

NOT_MEASURED = "\N{EN DASH}"

CELL = 16
"""Most characters in a cell of the table: four columns with the labels fit 80."""

UNKNOWN = "no dense model was evaluated, so what pruning cost is not known: --baseline train, or a folder, compares"


def render(report: Report) -> Table:
    """Draw the table dense | masked | compact; an en dash stands for a value that was not measured.

    Args:
        report: A report, as `load_report` reads it.

    Returns:
        A table for a `rich.console.Console`; 80 columns are enough, however many layers there are.
    """
    warned = [warning["message"] for warning in report["warnings"]]
    table = Table(
        title=Text(f"{report['task']}, {report['strategy']}, {report['model']}"),
        caption=Text.assemble(*((f"Warning. {line}\n", "bold red") for line in warned), "\n".join(notes(report))),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("", overflow="fold", max_width=24)
    for model in ("dense", "masked", "compact"):
        table.add_column(model, justify="right", overflow="fold", max_width=16)
    for row in rows(report):
        table.add_row(*(Text(cell) for cell in row))
    return table


def rows(report: Report) -> Iterator[tuple[str, str, str, str]]:
    """Label, dense, masked, compact.

    Args:
        report: A report, as `load_report` reads it.
    """
    metrics, parameters = report["metrics"], report["parameters"]
    columns = [metrics["dense"], metrics["masked"], metrics["compact"]]
    for metric in dict.fromkeys(name for column in columns for name in column or {}):
        dense, masked, compact = (_cell(None if column is None else column.get(metric), "{:.2f}") for column in columns)
        yield metric, dense, masked, compact
    yield from _parameter_row("encoder linear", parameters, lambda count: count["encoder_linear"])
    yield from _parameter_row("all parameters", parameters, lambda count: count["all"])
    tokens = report["vocabulary"]
    if tokens["kept"] != tokens["total"]:
        yield "vocabulary (tokens)", str(tokens["total"]), str(tokens["total"]), str(tokens["kept"])
    width = report["stream"]
    if width is not None and width["kept"] != width["total"]:
        yield "width (dimensions)", str(width["total"]), str(width["kept"]), str(width["kept"])
    yield from _kept_rows("heads", query_heads(report["heads"]))
    if query_heads(report["heads"]) != report["heads"]:
        yield from _kept_rows("key/value heads", report["heads"])
    yield from _kept_rows("FFN units", report["units"])
    weights = "on disk" if report["dtype"] == "float32" else f"on disk, {report['dtype']}"
    for label, sizes, units in (
        (weights, report["bytes_on_disk"], BYTES),
        (f"FLOPs {report['flops']['shape']}", report["flops"], FLOPS),
    ):
        unit, divisor = unit_of(sizes["compact"] if sizes["dense"] is None else sizes["dense"], units)
        dense, compact = (_cell(sizes[model], "{:.2f}", divisor) for model in ("dense", "compact"))
        yield f"{label} ({unit})", dense, "", compact
    latency, speedup = report["latency_ms"], report["speedup"] or {}
    for shape, compact_ms in latency["compact"].items():
        dense_ms = None if latency["dense"] is None else latency["dense"].get(shape)
        yield f"latency {shape} (ms)", _cell(dense_ms, "{:.2f}"), "", _cell(compact_ms, "{:.2f}")
    for shape in latency["compact"]:
        ratio = speedup.get(shape)
        yield f"speed-up {shape}", NOT_MEASURED if ratio is None else "1.00x", "", _faster(report, shape)


def query_heads(heads: Heads) -> Heads:
    """The counts of query heads. Several share a key/value head where queries are grouped; else they are the same.

    Args:
        heads: As a report has them, counted by what can be removed: a key/value head with its query heads.
    """
    layers = [
        HeadLayer(
            name=layer["name"],
            kept=layer["kept"] * layer["queries"],
            total=layer["total"] * layer["queries"],
            queries=layer["queries"],
            indices=layer["indices"],
        )
        for layer in heads["by_layer"]
    ]
    kept, total = (sum(layer[key] for layer in layers) for key in ("kept", "total"))
    return Heads(kept=kept, total=total, by_layer=layers)


def heads_kept(heads: Heads) -> str:
    """How many heads are kept, in words; with the key/value heads where queries are grouped.

    Args:
        heads: As a report has them.
    """
    queries = query_heads(heads)
    text = f"{queries['kept']:,} of {queries['total']:,} heads"
    if queries == heads:
        return text
    return f"{text} ({heads['kept']:,} of {heads['total']:,} key/value heads)"


def _parameter_row(
    label: str, parameters: Parameters, pick: Callable[[ParameterCount], int]
) -> Iterator[tuple[str, str, str, str]]:
    """Counts with their share of the dense count; for the masked model those that are not zero."""
    full = pick(parameters["dense"])
    unit, divisor = unit_of(full, COUNTS)

    def cell(count: ParameterCount) -> str:
        number = f"{pick(count) / divisor:.2f}" if unit else f"{pick(count)}"
        return f"{number} ({100 * pick(count) / full:5.1f} %)"

    name = f"{label} ({unit})" if unit else label
    yield name, cell(parameters["dense"]), cell(parameters["masked"]), cell(parameters["compact"])


def _kept_rows(label: str, kept: Heads | Units) -> Iterator[tuple[str, str, str, str]]:
    """The total, then one row per kind of sub-layer (self or cross, encoder or decoder) with what its layers keep."""
    yield label, str(kept["total"]), str(kept["kept"]), str(kept["kept"])
    kinds: dict[str, list[HeadLayer | UnitLayer]] = {}
    for layer in kept["by_layer"]:
        kinds.setdefault(re.sub(r"\.\d+\b", "", layer["name"]).replace(".", " "), []).append(layer)
    for kind, layers in kinds.items():
        name = "by layer" if len(kinds) == 1 else kind
        yield f"  {name}", _by_layer([layer["total"] for layer in layers]), "", _by_layer([of["kept"] for of in layers])


def _by_layer(counts: Sequence[int]) -> str:
    """A number for each layer, or their range where there are too many for a cell.

    >>> _by_layer([12, 12]), _by_layer([3, 0, 12]), _by_layer([0, 12, 3, 0, 50, 60, 70, 8])
    ('12 each', '3 0 12', '0–70, 2 at 0')
    """
    if len(set(counts)) == 1 < len(counts):
        return f"{counts[0]} each"
    each = " ".join(map(str, counts))
    if len(each) <= CELL:
        return each
    none = counts.count(0)
    return f"{min(counts)}\N{EN DASH}{max(counts)}{f', {none} at 0' if none else ''}"


def notes(report: Report) -> list[str]:
    """The notes below the table, line by line.

    Args:
        report: A report, as `load_report` reads it.
    """
    density, equivalence, machine = report["density"], report["equivalence"], report["machine"]
    stored, dense = report["parameters"]["compact"], report["parameters"]["dense"]
    kept = (
        f"encoder linear weights: {100 * density['encoder_linear']:.1f} % kept, "
        f"{100 * stored['encoder_linear'] / dense['encoder_linear']:.1f} % stored; all parameters: "
        f"{100 * density['all_parameters']:.1f} % kept, {100 * stored['all'] / dense['all']:.1f} % stored "
        f"(kept: not zero after pruning{', before the refill' if fills_zeros(report) else ''})"
    )
    by_role = dict(density["by_role"])
    dimensions = by_role.pop("stream", None)  # of the residual stream, which has no weights
    roles = ", ".join(f"{role} {100 * fraction:.1f} %" for role, fraction in by_role.items())
    if dimensions is not None:
        roles += f"; {100 * dimensions:.1f} % of the dimensions of the residual stream"
    compact, reloaded = (_cell(equivalence[name], "{:.1e}") for name in ("masked_compact", "compact_reloaded"))
    measured = ", ".join(_settings(report["evaluation"] or {}))
    return [
        kept,
        *([] if report["metrics"]["dense"] else [UNKNOWN]),
        *([f"kept by role: {roles}"] if roles else []),
        *([f"skipped with their norms: {', '.join(report['skipped'])}"] if report["skipped"] else []),
        *_stages(report),
        *_lost_tokens(report["vocabulary"]),
        *([f"evaluated with {measured}"] if measured else []),
        f"largest logit difference: masked to compact {compact}, compact to reloaded {reloaded}",
        f"latency: median; speed-up: median of paired ratios; device: {machine['device']}, "
        f"processor: {machine['cpu']}, CPU threads: {machine['threads']}",
        *([UNSETTLED_NOTE] if any(unsettled(of) for of in _intervals(report)) else []),
    ]


UNSETTLED_NOTE = (
    f"{UNSETTLED} not settled: too few times, or too different ones; `bplightning benchmark` measures the run's models "
    "longer"
)


def unsettled(intervals: Mapping[str, Interval]) -> list[str]:
    """The shapes whose ratio of times is not settled.

    Args:
        intervals: ``speedup_interval`` of a report, or of a model in it.
    """
    return [shape for shape, interval in intervals.items() if not interval["settled"]]


def _intervals(report: Report) -> Iterator[Mapping[str, Interval]]:
    yield report["speedup_interval"]
    if report["quantized"] is not None:
        yield report["quantized"]["speedup_interval"]
        for other in (report["quantized"]["static"] or {"compared": []})["compared"]:
            yield other["speedup_interval"]
    for variant in report["family"]:
        yield variant["speedup_interval"]


def _faster(report: Report, shape: str) -> str:
    ratio = (report["speedup"] or {}).get(shape)
    return NOT_MEASURED if ratio is None else times_faster(ratio, report["speedup_interval"].get(shape))


def ratios(speedup: Mapping[str, float] | None, intervals: Mapping[str, Interval]) -> str:
    """All speed-ups of a model in one line.

    Args:
        speedup: Shape to ratio; `None` where none was measured.
        intervals: Their intervals.

    >>> ratios({"1x128": 2.0, "8x128": 1.5}, {"8x128": {"low": None, "high": None, "settled": False}})
    '1x128 2.00x, 8x128 1.50x?'
    """
    return ", ".join(f"{shape} {times_faster(ratio, intervals.get(shape))}" for shape, ratio in (speedup or {}).items())


def _lost_tokens(vocabulary: Vocabulary) -> Iterator[str]:
    """How well a smaller vocabulary fits the validation set."""
    if (lost := vocabulary.get("lost")) is not None:
        yield f"smaller vocabulary: {100 * lost:.1f} % of the validation set's tokens are not in it"


def quantity(value: float, *, bytes: bool = True) -> str:
    """A number of bytes, or of something else, with a unit.

    >>> quantity(1_596_520), quantity(246_016, bytes=False), quantity(512, bytes=False)
    ('1.60 MB', '246.02 k', '512')
    """
    unit, divisor = unit_of(value, BYTES if bytes else COUNTS)
    return f"{value / divisor:.2f} {unit}" if unit else f"{value:g}"


def left_of_linear(report: Report) -> tuple[float, bool]:
    """The percentage of the layers' linear weights that is left, and whether the compact model is smaller for it.

    Args:
        report: A report, as `load_report` reads it.

    Returns:
        The percentage of the dense model's weights that the compact one stores, and true; where it stores all of them,
        the percentage that is not zero after pruning, and false.
    """
    dense, compact = (report["parameters"][model]["encoder_linear"] for model in ("dense", "compact"))
    if compact < dense:
        return 100 * compact / dense, True
    return 100 * report["density"]["encoder_linear"], False


def fills_zeros(report: Report) -> bool:
    """Whether a refill trained the zeros of the compact model, so that all its stored weights count.

    Args:
        report: A report, as `load_report` reads it.
    """
    return report["refill"] is not None and not report["refill"]["hold_masks"]


def is_faster(speedup: float) -> bool:
    """Whether a speed-up is above 1 when written with two decimals.

    >>> is_faster(1.01), is_faster(1.004), is_faster(0.98)
    (True, False, False)
    """
    return round(speedup, 2) > 1


def _stages(report: Report) -> Iterator[str]:
    """The stages other than pruning."""
    teacher, refill, snap = report["distillation"], report["refill"], report["snap"]
    if teacher is not None:
        yield f"teacher: {teacher['teacher']}"
    if report["simplification"] is not None:
        yield f"simplified: {', '.join(name for name, value in report['simplification'].items() if value is True)}"
    if snap is not None:
        kind, values = snap["kind"].replace("_", " "), (snap["target"], snap["before"], snap["after"])
        target, before, after = (f"{value:.4g}" for value in values)
        yield (
            f"target: {kind} {target}; training ended at {before}, and a last correction, which switched "
            f"{snap['changed']:,} mask entries, at {after}"
        )
        counted = report["flops"]
        # Heads removed before a refill, and restored units, come after the correction.
        if "flops" in snap["kind"] and counted["dense"] and counted["compact"]:
            ratio = counted["dense"] / counted["compact"]
            yield f"{kind} of the compact model: {1 / ratio if snap['kind'] == 'flops' else ratio:.4g}"
        if (shape := snap["shape"]) is not None:
            measured = _cell((report["speedup"] or {}).get(shape), "{:.4g}")
            yield f"estimated from the latency table at {shape}; measured: {measured}"
    if (aligned := report["alignment"]) is not None:
        multiple, measured = aligned["multiple_of"], " (the fastest measured)" if aligned["auto"] else ""
        widths = "unchanged" if multiple == 1 else f"multiples of {multiple}"
        added = f"{aligned['units_added']} units restored, {aligned['parameters_added']:,} parameters"
        yield f"feed-forward widths: {widths}{measured}; {added}"
        if aligned["units_added"]:
            (speedup,) = (of["speedup"] for of in aligned["candidates"] if of["multiple_of"] == multiple)
            gains = ", ".join(f"{shape} {ratio:.3f}x" for shape, ratio in speedup.items())
            without = [f"{100 * aligned['density_before']:.1f} % of encoder linear weights"]
            without += [f"{name} {_cell(value, '{:.2f}')}" for name, value in (aligned["metrics_before"] or {}).items()]
            yield f"without restored units: {', '.join(without)}; speed-up from them: {gains}"
    if (small := report["quantized"]) is not None:
        scores = ", ".join(f"{name} {_cell(value, '{:.2f}')}" for name, value in small["metrics"].items())
        times = ratios(small["speedup"], small["speedup_interval"])
        times = f"; speed-up over the dense model in torch, with the gain of the backend: {times}" if times else ""
        yield f"in {small['kind']} ({small['backend']}): {scores}, {quantity(small['bytes_on_disk'])}{times}"
        if (static := small["static"]) is not None:
            yield (
                f"{len(static['float_layers'])} of its {static['layers']} layers stay in float; it loses "
                f"{static['loss']:.2f} of {static['max_loss']:g} allowed, ranges from {static['calibration_examples']} "
                "training examples"
            )
            for other in static["compared"]:
                scores = ", ".join(f"{name} {_cell(value, '{:.2f}')}" for name, value in other["metrics"].items())
                times = ratios(other["speedup"], other["speedup_interval"])
                said = ", ".join(filter(None, (scores, quantity(other["bytes_on_disk"]), times)))
                yield f"next to it, {other['kind']} in {small['backend']}: {said}"
    if (uneven := report["portable"]) is not None:
        said = ", ".join(f"{name} {before} to {now}" for name, (before, now) in uneven["config"].items())
        times = "".join(f", {shape} {ratio:.2f}x" for shape, ratio in uneven["speedup"].items())
        yield (
            f"portable, padded with zeros: {said or 'config.json as it was'}; with uneven widths it would be "
            f"{quantity(uneven['parameters'], bytes=False)} parameters, {uneven['flops'] / 1e9:.2f} GFLOP{times}"
        )
    for variant in report["family"]:
        scores = ", ".join(f"{name} {_cell(value, '{:.2f}')}" for name, value in variant["metrics"].items())
        times = ratios(variant["speedup"], variant["speedup_interval"])
        told = ", ".join(filter(None, (scores, quantity(variant["bytes_on_disk"]), times)))
        yield f"also saved {variant['folder']}: {told}"
    if refill is not None:
        held = ", zeros stay zero" if refill["hold_masks"] else ""
        yield f"the compact model was refilled, epochs {refill['max_epochs']}{held}"
        if refill["heads"] == "any":
            change = _cell(refill["logit_difference"], "{:.1e}")
            yield f"before it, the paper's rule removed {refill['heads_removed']} heads and changed logits by {change}"


def _settings(settings: Mapping[str, Any]) -> Iterator[str]:
    """Each setting by name; nested ones are listed without their group."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _settings(value)
        elif value not in (None, ""):
            yield f"{name} {value!r}"


def _cell(value: float | None, form: str, divisor: float = 1) -> str:
    return NOT_MEASURED if value is None else form.format(value / divisor)
