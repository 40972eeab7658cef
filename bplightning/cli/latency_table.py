"""The verb `latency-table`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bplightning.errors import UserError
from bplightning.io.files import writable
from bplightning.io.quiet import quiet_transformers
from bplightning.io.run_folder import RunFolder, baseline_of


def latency_table(
    model: str,
    out: str,
    batch_size: int = 1,
    length: int = 128,
    device: Literal["cpu", "cuda"] = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    threads: int | None = None,
    seconds: float = 60.0,
    overwrite: bool = False,
) -> None:
    """Measure what each head and unit of a dense model costs on this machine, for a target latency.

    Args:
        model: Folder of the dense model, with the head of its task; or of a run, whose baseline is used; or its name on
            the hub.
        out: JSON file to write.
        batch_size: Rows of the batch, 1 or more.
        length: Tokens of each row, 1 or more, at most what the model can take.
        device: Where the model runs.
        dtype: What it computes in, whatever it was saved in.
        threads: CPU threads, 1 or more. Default: torch's own number.
        seconds: Time to measure, in seconds; a slow model takes longer, for six rounds of every copy.
        overwrite: Whether to replace a file that exists.
    """
    # Imported here, as they take seconds.
    from rich.console import Console

    from bplightning.benchmarking.benchmark import cpu_threads, device_named
    from bplightning.benchmarking.models import dense_candidate
    from bplightning.compaction.loading import DTYPES
    from bplightning.io.progress_bar import progress_bar
    from bplightning.measuring.latency_measuring import measured_table

    for name, value in (("batch_size", batch_size), ("length", length), ("threads", 1 if threads is None else threads)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be 1 or more.")
    if not 0 < seconds < float("inf"):
        raise UserError(f"seconds is {seconds:g}; it must be more than 0.")
    place, file = device_named(device), writable(Path(out), overwrite)
    with quiet_transformers(), progress_bar() as on_progress, cpu_threads(threads):
        dense = dense_candidate(_dense_of(model)).load(dtype=DTYPES[dtype], device=place)
        table = measured_table(
            dense, (batch_size, length), device=place, dtype=dtype, seconds=seconds, on_progress=on_progress
        )
    table.save(file)
    console = Console(highlight=False)
    for line in table.described():
        console.print(line, soft_wrap=True, markup=False)
    console.print(f"The table: {file}", soft_wrap=True, markup=False)


def _dense_of(model: str) -> str:
    """The folder of the dense model; for a run, that of its baseline."""
    run = Path(model)
    if (run / "config.json").is_file() or not RunFolder(run).config.is_file():
        return model
    baseline = baseline_of(run)
    if baseline is None:
        raise UserError(f"the run {model!r} has no baseline: give the folder of a dense model with its task's head.")
    return str(baseline)
