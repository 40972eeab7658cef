"""`latency-table`: from the command line's words to a file and what stands in it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bplightning.benchmarking.benchmark import cpu_threads, device_named
from bplightning.benchmarking.models import dense_candidate
from bplightning.cli.benchmark import quiet
from bplightning.compaction.loading import DTYPES
from bplightning.errors import UserError
from bplightning.io.files import writable
from bplightning.io.progress_bar import watching
from bplightning.measuring.latency_measuring import measured_table
from bplightning.measuring.latency_table import LatencyTable


def run_latency_table(
    model: str,
    out: str,
    *,
    shape: tuple[int, int],
    device: str,
    dtype: str,
    threads: int | None,
    seconds: float,
    overwrite: bool,
) -> LatencyTable:
    """Run the verb; the arguments are those of `bplightning.cli.verbs.latency_table`.

    Args:
        model: The dense model.
        out: JSON file.
        shape: Rows and tokens.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: What the model computes in.
        threads: CPU threads.
        seconds: Time spent, in seconds.
        overwrite: Whether a file that is there already is replaced.

    Raises:
        UserError: A number is out of its range, there is no such model, or the file is there already.
    """
    for name, value in (("batch_size", shape[0]), ("length", shape[1]), ("threads", 1 if threads is None else threads)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be 1 or more.")
    if not 0 < seconds < float("inf"):
        raise UserError(f"seconds is {seconds:g}; it must be more than 0.")
    place, file = device_named(device), writable(Path(out), overwrite)
    with quiet(), watching() as watch, cpu_threads(threads):
        dense = dense_candidate(_dense_of(model)).load(dtype=DTYPES[dtype], device=place)
        table = measured_table(dense, shape, device=place, dtype=dtype, seconds=seconds, watch=watch)
    table.save(file)
    console = Console(highlight=False)
    for line in described(table):
        console.print(line, soft_wrap=True, markup=False)
    console.print(f"The table: {file}", soft_wrap=True, markup=False)
    return table


def described(table: LatencyTable) -> list[str]:
    """What a table says, in a few lines.

    Args:
        table: The table.
    """
    lines = [
        f"{table.shape}: {table.dense_ms:.3g} ms, {table.largest_speedup:.3g} times as fast without heads and units"
    ]
    for role, times in table.roles.items():
        of = times.shape
        half = times.of_count(of.size // 2)
        lines.append(
            f"{role}: a layer {times.ms[-1]:.3g} ms with {of.size} {of.kind}, {half:.3g} ms with {of.size // 2}, "
            f"{of.layers} layers"
        )
    return lines


def _dense_of(model: str) -> str:
    """A run stands for its baseline."""
    run = Path(model)
    if (run / "config.json").is_file() or not (run / "config.yaml").is_file():
        return model
    from bplightning.io.run_folder import baseline_of

    baseline = baseline_of(run)
    if baseline is None:
        raise UserError(f"the run {model!r} has no baseline: give the folder of a dense model with its task's head.")
    return str(baseline)
