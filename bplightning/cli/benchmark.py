"""`benchmark`: from the command line's words to table, JSON and picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from transformers.utils import logging as transformers_logging

from bplightning.benchmarking.benchmark import benchmark
from bplightning.benchmarking.plot import check_plot, plot
from bplightning.benchmarking.schema import Benchmark
from bplightning.benchmarking.table import render
from bplightning.errors import UserError
from bplightning.io.files import writable, write_whole
from bplightning.io.progress_bar import watching


def run_benchmark(
    folder: str,
    *,
    against: str | None,
    batch_sizes: str,
    lengths: str,
    new_tokens: int,
    device: str,
    dtype: str,
    threads: int | None,
    backends: str,
    tolerance: float,
    seconds: float,
    output: str | None,
    plot_file: str | None,
    overwrite: bool,
) -> Benchmark:
    """Run the verb; the arguments are those of `bplightning.cli.verbs.benchmark`.

    Args:
        folder: What is timed.
        against: The dense model.
        batch_sizes: Numbers with commas.
        lengths: Numbers with commas.
        new_tokens: Tokens to generate.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: What the models compute in.
        threads: CPU threads.
        backends: Names with commas.
        tolerance: Half of a confidence interval, as a fraction.
        seconds: Most time for a shape.
        output: JSON file.
        plot_file: Picture.
        overwrite: Whether files that are there already are replaced.

    Raises:
        UserError: As `bplightning.benchmarking.benchmark.benchmark` has it; a file exists or cannot be written.
    """
    rows, tokens = _numbers("batch_sizes", batch_sizes), _numbers("lengths", lengths)
    files = [None if name is None else writable(Path(name), overwrite) for name in (output, plot_file)]
    if files[1] is not None:
        check_plot(files[1])
    with quiet(), watching() as watch:
        found = benchmark(
            folder,
            against,
            shapes=[(row, length) for length in tokens for row in rows],
            new_tokens=new_tokens,
            backends=_words(backends),
            device=device,
            dtype=dtype,
            threads=threads,
            tolerance=tolerance,
            seconds=seconds,
            watch=watch,
        )
    if files[0] is not None:
        write_whole(files[0], json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if files[1] is not None:
        plot(found, files[1])
    console = Console()
    console.print(render(found))
    for what, file in zip(("JSON", "plot"), files, strict=True):
        if file is not None:
            console.print(f"The {what}: {file}", soft_wrap=True, highlight=False, markup=False)
    return found


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.strip("[] ").split(",")))


def _numbers(name: str, text: str) -> list[int]:
    words = _words(text)
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UserError(f"{name} is {text!r}; it must be whole numbers, 1 or more, with commas, such as 1,8,32.")
    return [int(word) for word in words]


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing of what loading a model or generating with it says beside."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    try:
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
