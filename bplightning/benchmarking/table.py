"""The tables of a benchmark, drawn from its JSON, with the ratios first."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from bplightning.benchmarking.schema import Benchmark, BenchmarkedModel, Row
from bplightning.measuring.records import Speedup
from bplightning.reporting.table_format import UNSETTLED, times_faster, titled_table

NOT_MEASURED = "\N{EN DASH}"


def render(benchmark: Benchmark) -> Group:
    """Draw a benchmark.

    Args:
        benchmark: What `bplightning.benchmarking.benchmark.benchmark` returned.

    Returns:
        Renderable for a `rich.console.Console`, at most 100 columns wide; for usual shapes 80 are enough.
    """
    parts: list[RenderableType] = [Text()]
    for name, model in benchmark["models"].items():
        parts.append(Text.assemble((f"{name}: ", "bold"), _size(model), (f"\n  {model['path']}", "dim")))
    ratios = list(_ratios(benchmark))
    if ratios:
        columns = ["shape", "<speed-up", "<95 % within", "<ideal", "<of ideal"]
        if _several(benchmark):
            columns[1:1] = ["model"]
            columns.append(f"<over {benchmark['reference']}\neager")
        parts.append(titled_table("Speed-up", columns, ratios, _ratio_caption(benchmark)))
    columns = ["shape", "model", "<median ms", "<p90 ms", "<rows/s", "<tokens/s"]
    parts.append(titled_table("Latency and throughput", columns, _times(benchmark), _caption(benchmark)))
    return Group(*parts)


def label(row: Row) -> str:
    """The shape of a row, and its kind of work.

    Args:
        row: A row of a benchmark.
    """
    return (
        row["shape"]
        + {
            "forward": "",
            "first_token": ", first token",
            "generation": f", {row['new_tokens']} tokens",
            "decoding": ", each further",
        }[row["work"]]
    )


def variant(benchmark: Benchmark, row: Row) -> str:
    """The model of a row, with the backend where there are several.

    Args:
        benchmark: The whole.
        row: One of its rows.
    """
    return f"{row['model']} {row['backend']}" if _several(benchmark) else row["model"]


def _several(benchmark: Benchmark) -> bool:
    return len(benchmark["settings"]["backends"]) > 1


def _ratios(benchmark: Benchmark) -> Iterator[list[str]]:
    for row in benchmark["rows"]:
        same, eager = row["speedup"], row["speedup_over_eager"]
        if same is None and eager is None:
            continue
        ideal, efficiency = row["ideal_speedup"], row["efficiency"]
        cells = [
            label(row),
            _times_faster(same),
            _interval(same),
            NOT_MEASURED if ideal is None else f"{ideal:.2f}x",
            NOT_MEASURED if efficiency is None else f"{100 * efficiency:.0f} %",
        ]
        if _several(benchmark):
            cells[1:1] = [variant(benchmark, row)]
            cells.append(_times_faster(eager))
        yield cells


def _ratio_caption(benchmark: Benchmark) -> str:
    settings, several = benchmark["settings"], _several(benchmark)
    lines = [
        "speed-up: median of paired ratios, dense time / compact time" + (", in the same backend" if several else "")
    ]
    if several:
        lines.append("the last column: the gains of the backend and of pruning together")
    lines.append("ideal: ratio of FLOPs; of ideal: efficiency, speed-up / ideal")
    within = f"within {100 * settings['tolerance']:g} %"
    if benchmark["settled"]:
        lines.append(f"repeated until every ratio was known {within} (half of its 95 % confidence interval)")
    else:
        lines.append(
            f"{UNSETTLED} not known {within} after {settings['seconds']:g} s: give more --seconds or an idle machine"
        )
    return "\n".join(lines)


def _times(benchmark: Benchmark) -> Iterator[list[str]]:
    for row in benchmark["rows"]:
        latency = row["latency_ms"]
        yield [
            label(row),
            variant(benchmark, row),
            _figures(latency["median"]),
            _figures(latency["p90"]),
            _figures(row["rows_per_second"]),
            _figures(row["tokens_per_second"]),
        ]


def _caption(benchmark: Benchmark) -> str:
    settings, machine, versions = benchmark["settings"], benchmark["machine"], benchmark["versions"]
    lines = list(settings["changed"])
    if any(row["work"] == "generation" for row in benchmark["rows"]):
        lines.append(
            "greedy generation with key/value cache; tokens/s: tokens read for the first token, else tokens written"
        )
    packages = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "transformers", "onnxruntime") if name in versions
    )
    lines.append(
        f"{settings['dtype']} on {machine['device']}, CPU threads: {machine['threads']}, {machine['cpu']}; {packages}"
    )
    return "\n".join(lines)


def _size(model: BenchmarkedModel) -> str:
    every, linear = model["parameters"]["all"], model["parameters"]["encoder_linear"]
    size = "" if model["bytes_on_disk"] is None else f", {model['bytes_on_disk'] / 1e6:.1f} MB"
    return f"{every / 1e6:.2f} M parameters, {linear / 1e6:.2f} M encoder linear{size}"


def _times_faster(speedup: Speedup | None) -> str:
    if speedup is None:
        return NOT_MEASURED
    return times_faster(speedup["ratio"], speedup)


def _interval(speedup: Speedup | None) -> str:
    if speedup is None or speedup["low"] is None or speedup["high"] is None:
        return NOT_MEASURED
    return f"{speedup['low']:.2f} to {speedup['high']:.2f}"


def _figures(value: float) -> str:
    """Three significant figures, or all those of a whole number.

    >>> _figures(0.01234), _figures(3.14159), _figures(12345.6)
    ('0.0123', '3.14', '12,346')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"
