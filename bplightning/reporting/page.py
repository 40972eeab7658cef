"""The report as a page: one self-contained file, ``report.html``, drawn from the files of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from bplightning.io.files import writable, write_whole
from bplightning.io.run_folder import REPORT_FILE
from bplightning.measuring.records import Interval
from bplightning.reporting.charts import Pair, paired_bars
from bplightning.reporting.page_curves import curves_of
from bplightning.reporting.page_details import by_class, confusion, intervals, samples
from bplightning.reporting.page_map import layer_map
from bplightning.reporting.rendering import Figure, rendered
from bplightning.reporting.report import load_report
from bplightning.reporting.run_options import read_options
from bplightning.reporting.run_warnings import collapsed
from bplightning.reporting.schema import Report
from bplightning.reporting.table import heads_kept, is_faster, left_of_linear, notes, quantity, rows, unsettled
from bplightning.reporting.table_format import UNSETTLED, times_faster

PAGE_FILE = "report.html"


def report_run(run: Path, output: Path | None = None, *, overwrite: bool = False) -> Path:
    """Draw the page of a run.

    Args:
        run: The run's folder, with ``report.json``, and with ``metrics.csv`` and ``scores.jsonl`` where it has them.
        output: The page's file; by default ``report.html`` in the run's folder, which is replaced.
        overwrite: Whether to replace an `output` that exists.

    Returns:
        The file.

    Raises:
        UserError: There is no report, it cannot be read, or `output` exists or cannot be written.
    """
    report = load_report(run / REPORT_FILE)
    file = run / PAGE_FILE if output is None else writable(output, overwrite)
    write_whole(file, draw(report, run))
    return file


def write_drawn(file: Path, draw_it: Callable[[], str], *, again: str) -> None:
    """Write a file that is drawn from a report; a failure is only a warning, so that the run still ends.

    Args:
        file: The file.
        draw_it: Returns its text.
        again: How to draw it again, for the warning.
    """
    try:
        write_whole(file, draw_it())
    except Exception as error:  # any error: the run took hours, and the file can be drawn again
        rank_zero_warn(
            f"{str(file)!r} could not be drawn ({type(error).__name__}: {error}). All other files are complete; {again}"
        )


def draw(report: Report, run: Path) -> str:
    """The page.

    Args:
        report: The report.
        run: Folder with the run's curves; missing files are left out.
    """
    values = {
        "title": f"{short_name(report['model'])} on {report['task']}, pruned by {report['strategy']}",
        "date": report["date"][:10],
        "warnings": [warning["message"] for warning in report["warnings"]],
        "tiles": sorted(_tiles(report), key=lambda tile: collapsed(report) and tile.name != "Score"),
        "left": _left(report),
        "map": layer_map(report),
        "curves": curves_of(run, report),
        "latency": _latency(report),
        "sizes": _sizes(report),
        # Indented rows are those by layer, which the map shows.
        "classes": by_class(report),
        "confusion": confusion(report),
        "samples": samples(report),
        "configuration": read_options(run),
        "numbers": [[cell.replace("( ", "(") for cell in row] for row in rows(report) if row[0].strip() == row[0]],
        "command": report["command"],
        "made": _made(report),
        "notes": [*notes(report), *intervals(report)],
        "versions": report["versions"],
    }
    return rendered("report.html.j2", values)


class Tile(NamedTuple):
    """A number in large type, with what it is and what it was."""

    name: str
    number: str
    words: str
    more: str


def short_name(model: str) -> str:
    """The name of a model: its name on the hub, or the last part of its folder; one that was never saved has none.

    >>> short_name("google/bert_uncased"), short_name("/models/mine/"), short_name("")
    ('google/bert_uncased', 'mine', 'model')
    """
    path = Path(model)
    local = path.is_absolute() or len(path.parts) > 2 or model.startswith(".")
    return (path.name if local else model) or "model"


def _tiles(report: Report) -> Iterator[Tile]:
    """Speed, size and score, each with the dense model's."""
    latency, speedup, parameters = report["latency_ms"], report["speedup"], report["parameters"]
    intervals = report["speedup_interval"]
    shapes = list(latency["compact"])
    if speedup:
        at = list(speedup)[-1] if "8x128" not in speedup else "8x128"
        faster = {shape: times_faster(ratio, intervals.get(shape)) for shape, ratio in speedup.items()}
        others = ", ".join(f"{ratio} at {shape}" for shape, ratio in faster.items() if shape != at)
        words = f"faster than the dense model at {at}" if is_faster(speedup[at]) else f"the dense model's speed at {at}"
        words += ", but the model has collapsed: see the warning" if collapsed(report) else ""
        between = _between(intervals.get(at))
        note = UNSETTLED_WORDS if unsettled(intervals) else ""
        yield Tile("Speed", faster[at], f"{words}{between}", ". ".join(filter(None, (others, note))))
    elif shapes:
        yield Tile("Speed", f"{latency['compact'][shapes[-1]]:.2f} ms", f"at {shapes[-1]}", "no dense model was timed")
    dense, compact = parameters["dense"]["encoder_linear"], parameters["compact"]["encoder_linear"]
    on_disk = report["bytes_on_disk"]
    disk = f"{quantity(on_disk['compact'])} on disk" if on_disk["compact"] is not None else ""
    was = f", was {quantity(on_disk['dense'])}" if on_disk["dense"] is not None else ""
    share, smaller = left_of_linear(report)
    words = f"of the linear weights, {quantity(compact, bytes=False)} of {quantity(dense, bytes=False)}"
    if not smaller:
        words = f"of the linear weights not zero after pruning; all {quantity(compact, bytes=False)} are stored"
    kept = f"{100 * report['density']['encoder_linear']:.1f} % kept, {100 * compact / dense:.1f} % stored"
    yield Tile("Size", f"{share:.1f} %", words, ". ".join(filter(None, (kept, disk + was))))
    metrics, monitor = report["metrics"], report["monitor"]
    names = list(metrics["compact"] or {})
    if names:
        first = monitor["metric"] if monitor is not None and monitor["metric"] in names else names[0]
        told = [_change(report, name) for name in sorted(names, key=lambda name: name != first)]
        value = (metrics["compact"] or {})[first]
        ends = report["score_interval"].get("compact", {}).get(first)
        between = "" if ends is None else f", 95 %: {ends[0]:.2f} to {ends[1]:.2f}"
        others = "; ".join(f"{name} {words}" for name, _, words in told[1:3])
        yield Tile("Score", "none" if value is None else f"{value:.2f}", f"{first}{told[0][1]}{between}", others)


UNSETTLED_WORDS = f"{UNSETTLED} not settled: measure longer with bplightning benchmark"


def _between(interval: Interval | None) -> str:
    """The confidence interval of a speed-up in words, where it has one."""
    if interval is None or interval["low"] is None or interval["high"] is None:
        return ""
    return f" (95 %: {interval['low']:.2f} to {interval['high']:.2f})"


def _change(report: Report, name: str) -> tuple[str, str, str]:
    """A metric, its dense value in words, and both values in words."""
    dense, compact = ((report["metrics"][model] or {}).get(name) for model in ("dense", "compact"))
    now = "none" if compact is None else f"{compact:.2f}"
    was = " (dense not known)" if dense is None else f" (dense {dense:.2f})"
    return name, was, f"{now}{was}"


def _left(report: Report) -> str:
    """Heads, units, the width where it changed, and skipped sub-layers."""
    units = report["units"]
    by_role = report["density"]["by_role"]
    text = f"{heads_kept(report['heads'])} and {units['kept']:,} of {units['total']:,} feed-forward units."
    width = report["stream"]
    narrower = width is not None and width["kept"] != width["total"]
    if narrower:
        assert width is not None
        text += f" {width['kept']:,} of {width['total']:,} dimensions of the residual stream, in every layer."
    if report["skipped"]:
        text += f" Skipped, each with its norm: {', '.join(report['skipped'])}."
    if report["patterns"] and "attention" in by_role:
        text += (
            " Each band of a layer's four attention weights is a head: rows of query, key and value, columns of the "
            "output."
        )
        if narrower:
            text += " Across each band run the dimensions that stay."
    return text


def _latency(report: Report) -> Figure:
    latency, speedup = report["latency_ms"], report["speedup"] or {}
    dense = latency["dense"] or {}
    pairs = [
        Pair(
            shape,
            times_faster(speedup[shape], report["speedup_interval"].get(shape)) if shape in speedup else "",
            dense.get(shape),
            time,
            (f"{dense[shape]:.2f} ms" if shape in dense else "", f"{time:.2f} ms"),
        )
        for shape, time in latency["compact"].items()
    ]
    return _bars(
        "latency",
        "Latency",
        f"Median time of a batch (rows x tokens) on {report['machine']['device']}; shorter is better.",
        pairs,
    )


def _sizes(report: Report) -> Figure:
    parameters, disk, flops = report["parameters"], report["bytes_on_disk"], report["flops"]
    full, small = parameters["dense"], parameters["compact"]
    values: list[tuple[str, float | None, float | None, bool]] = [
        ("encoder linear weights", full["encoder_linear"], small["encoder_linear"], False),
        ("all parameters", full["all"], small["all"], False),
        ("weights on disk", disk["dense"], disk["compact"], True),
        (f"FLOPs at {flops['shape']}", flops["dense"], flops["compact"], False),
    ]
    pairs = [
        Pair(
            label,
            f"{100 * compact / dense:.1f} %" if dense else "",
            dense,
            compact,
            ("" if dense is None else quantity(dense, bytes=size), quantity(compact, bytes=size)),
        )
        for label, dense, compact, size in values
        if compact is not None
    ]
    return _bars("sizes", "Size and work", "The stored model, and one forward pass.", pairs)


def _bars(name: str, caption: str, note: str, pairs: list[Pair]) -> Figure:
    words = "; ".join(
        f"{pair.label}: " + (f"dense {pair.texts[0]}, " if pair.dense is not None else "") + f"compact {pair.texts[1]}"
        for pair in pairs
    )
    cells = [(pair.label, pair.texts[0] or "–", pair.texts[1], pair.note or "–") for pair in pairs]
    return Figure(
        caption,
        paired_bars(name, caption, words, pairs),
        note=f"{note} Grey: dense; colour: compact.",
        heads=("", "dense", "compact", ""),
        rows=cells,
    )


def _made(report: Report) -> dict[str, str]:
    machine, seed = report["machine"], report["seed"]
    threads = f"{machine['threads']} CPU threads"
    return {
        "model": report["model"],
        "task and data": ", ".join(filter(None, (report["task"], _data(report)))),
        "strategy": report["strategy"],
        "seed": "not fixed" if seed is None else str(seed),
        "machine": f"{machine['cpu']}, {threads}; {machine['device']}, {machine['platform']}",
        "processes": str(report["world_size"]),
    }


def _data(report: Report) -> str:
    data = report["data"] or {}
    return " ".join(str(data[key]) for key in ("validation", "dataset_config") if data.get(key))
