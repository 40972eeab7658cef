"""The verb `benchmark`: from the words of the command line to table, JSON and picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from bplightning.cli.invocation import command_line
from bplightning.errors import UserError
from bplightning.io.files import writable, write_whole
from bplightning.io.quiet import quiet_transformers


def benchmark(
    folder: str,
    against: str | None = None,
    batch_sizes: str = "1,8",
    lengths: str = "128",
    new_tokens: int = 32,
    device: Literal["cpu", "cuda"] = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    threads: int | None = None,
    backends: str = "eager",
    tolerance: float = 0.02,
    seconds: float = 20.0,
    output: str | None = None,
    plot: str | None = None,
    overwrite: bool = False,
) -> None:
    """Time a model side by side with its dense model: latency, throughput, and how close the speed-up is to the ideal.

    Args:
        folder: Folder of a dense or compact model, or of a run, whose compact/ is used.
        against: Folder of the dense model, or its name on the hub. Default: the baseline of the run, if it has one.
        batch_sizes: Rows of a batch, 1 or more; separate several by commas.
        lengths: Tokens of each row, 1 or more; separate several by commas. Every batch size is timed with every length.
        new_tokens: Tokens that a model that generates writes to each row, exactly so many, 2 or more; greedy, with
            cache.
        device: Where the models run.
        dtype: What the models compute in, whatever they were saved in.
        threads: CPU threads, 1 or more. Default: torch's own number.
        backends: eager, cuda-graph (a forward pass recorded on the GPU), compile (torch.compile), onnx or onnx-int8
            (ONNX Runtime, weights quantized); separate several by commas. The dense model in eager is always timed.
        tolerance: Passes are repeated until half of the 95 % confidence interval of each speed-up is at most this
            fraction of it.
        seconds: Longest time for one shape, in seconds; a slow model takes longer, for six rounds.
        output: JSON file to write.
        plot: Picture to write, such as speed.png.
        overwrite: Whether to replace files that exist.
    """
    # Imported here, as they take seconds.
    from rich.console import Console

    from bplightning.benchmarking import benchmark as timing
    from bplightning.benchmarking import plot as plotting
    from bplightning.benchmarking.table import render
    from bplightning.io.progress_bar import progress_bar

    rows, tokens = _numbers("batch_sizes", batch_sizes), _numbers("lengths", lengths)
    json_file, picture = (None if name is None else writable(Path(name), overwrite) for name in (output, plot))
    if picture is not None:
        plotting.check_plot(picture)
    settings = timing.BenchmarkSettings(
        shapes=[(row, length) for length in tokens for row in rows],
        new_tokens=new_tokens,
        backends=_words(backends),
        device=device,
        dtype=dtype,
        threads=threads,
        tolerance=tolerance,
        seconds=seconds,
    )
    with quiet_transformers(), progress_bar() as on_progress:
        found = timing.benchmark(folder, against, settings, on_progress=on_progress, command=command_line())
    if json_file is not None:
        write_whole(json_file, json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if picture is not None:
        plotting.plot(found, picture)
    console = Console()
    console.print(render(found))
    for what, file in (("JSON", json_file), ("plot", picture)):
        if file is not None:
            console.print(f"The {what}: {file}", soft_wrap=True, highlight=False, markup=False)


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.strip("[] ").split(",")))


def _numbers(name: str, text: str) -> list[int]:
    words = _words(text)
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UserError(
            f"{name} is {text!r}; it must be whole numbers, 1 or more, separated by commas, such as 1,8,32."
        )
    return [int(word) for word in words]
