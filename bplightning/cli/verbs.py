"""The command line: Lightning's verbs for training, and this project's own beside them.

``bplightning``, ``python -m bplightning`` and ``python cli.py`` are this one program. To add a verb, write a function
with typed arguments and a docstring, and put it into `VERBS`: its arguments and help follow from its signature.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser

from bplightning.cli.own_parsers import PARSED_THEMSELVES, TRAINING_VERBS
from bplightning.errors import UserError
from bplightning.io.invocation import program
from bplightning.runs.parser_errors import OneLine


def write_compact(
    run: str,
    out: str,
    checkpoint: str | None = None,
    vocabulary: str | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    multiple_of: int | str | None = None,
) -> None:
    """Write the compact model of a run, and a report of it.

    Args:
        run: Folder of the run, such as runs/qa-hybrid/version_0.
        out: Folder to write: an ordinary transformers folder with weights, configuration and tokenizer, and a
            report.json.
        checkpoint: Which checkpoint: best, last, or a file; by default the newest.
        vocabulary: A corpus (.txt, .json, .jsonl, .csv or .parquet): only the tokens that occur in it, and the special
            ones, are kept, with a tokenizer that matches.
        dtype: Precision to save in; by default as it was trained.
        multiple_of: Put the best of the removed feed-forward units back, until each layer's width is a multiple of so
            many: 1 or more, such as 16; or auto, the fastest on this machine. By default as the run has it. A run that
            was refilled needs checkpoint last for it.
    """
    from bplightning.runs.compact_run import compact_run

    corpus = None if vocabulary is None else Path(vocabulary)
    compact_run(Path(run), Path(out), checkpoint=checkpoint, vocabulary=corpus, dtype=dtype, multiple_of=multiple_of)


def answer(
    model: str,
    input: str = "-",
    output: str = "-",
    task: str | None = None,
    batch_size: int | None = None,
    accelerator: str = "auto",
    overwrite: bool = False,
) -> None:
    """Answer JSON lines with a saved model: one line of JSON a record, in their order.

    Args:
        model: A model's folder, dense or compact; a run's folder, which stands for its compact/, or else for its newest
            checkpoint; or a file in a run's checkpoints/.
        input: File with one JSON object a line, or with one JSON list of objects; - for standard input. It is read
            1,000 records at a time, a list at once.
        output: File to write, which appears when it is whole; - for standard output.
        task: Short name or class path of the task, where the model's folder does not say it (in its task.json).
        batch_size: Rows of a batch, 1 or more; by default the task's own.
        accelerator: What to compute on, by Lightning's names: auto, cpu, gpu.
        overwrite: Whether to replace an output that is there already.
    """
    from bplightning.runs.predicting import predict_file

    predict_file(
        model,
        input_path=input,
        output_path=output,
        task=task,
        batch_size=batch_size,
        accelerator=accelerator,
        overwrite=overwrite,
    )


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
    """Time a model side by side with the dense one: latency, throughput, and how near to the ideal the speed-up is.

    Args:
        folder: A model's folder, dense or compact; or a run's, which stands for its compact/.
        against: Folder of the dense model, or its name on the hub; by default the baseline of the run, if it has one.
        batch_sizes: Rows of a batch, 1 or more; several with commas.
        lengths: Tokens of each row, 1 or more; several with commas. Every batch size is timed with every length.
        new_tokens: Tokens written to each row by a model that generates, 2 or more: greedy, with cache, and no fewer.
        device: Where the models run.
        dtype: What the models compute in, whatever they were saved in.
        threads: CPU threads, 1 or more; by default as many as torch takes.
        backends: eager, cuda-graph (a forward pass recorded on the GPU), compile (torch.compile), onnx or onnx-int8
            (ONNX Runtime, weights quantized); several with commas. The dense model in eager is timed in any case.
        tolerance: Passes are repeated until half of the 95 % confidence interval of each speed-up is at most this
            fraction of it.
        seconds: Most time spent on one shape, in seconds; slow models take longer, for six rounds.
        output: JSON file to write.
        plot: Picture to write, such as speed.png.
        overwrite: Whether to replace files that are there already.
    """
    from bplightning.cli.benchmark import run_benchmark

    run_benchmark(
        folder,
        against=against,
        batch_sizes=batch_sizes,
        lengths=lengths,
        new_tokens=new_tokens,
        device=device,
        dtype=dtype,
        threads=threads,
        backends=backends,
        tolerance=tolerance,
        seconds=seconds,
        output=output,
        plot_file=plot,
        overwrite=overwrite,
    )


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
    """Measure on this machine what each head and unit of a dense model takes, for --strategy.latency_table.

    Args:
        model: The dense model's folder, with the head of its task; or a run's, which stands for its baseline; or its
            name on the hub.
        out: JSON file to write.
        batch_size: Rows of the batch, 1 or more.
        length: Tokens of each row, 1 or more, as far as the model can take so many.
        device: Where the model runs.
        dtype: What it computes in, whatever it was saved in.
        threads: CPU threads, 1 or more; by default as many as torch takes.
        seconds: Time spent, in seconds; slow models take longer, for six rounds of every copy.
        overwrite: Whether to replace a file that is there already.
    """
    from bplightning.cli.latency import run_latency_table

    run_latency_table(
        model,
        out,
        shape=(batch_size, length),
        device=device,
        dtype=dtype,
        threads=threads,
        seconds=seconds,
        overwrite=overwrite,
    )


def export(
    folder: str,
    out: str,
    format: Literal["onnx", "torch-export"] = "onnx",
    dtype: Literal["float32", "float16"] = "float32",
    quantize: Literal["int8"] | None = None,
    opset: int | None = None,
) -> None:
    """Write a saved model as ONNX, or as a torch.export program, checked against torch.

    Args:
        folder: A model's folder, dense or compact, or a run's folder, which stands for its compact/.
        out: Folder to write, with the tokenizer and configuration beside the model: model.onnx, or for an
            encoder-decoder that generates encoder_model.onnx, decoder_model.onnx and decoder_with_past_model.onnx; or
            model.pt2, one forward pass without a key/value cache. Batch and length may have any size.
        format: onnx needs pip install onnx onnxruntime onnxscript.
        dtype: Precision to compute in.
        quantize: int8 quantizes the weights by channel with ONNX Runtime, activations while it runs; by default nothing
            is quantized. How far that is from torch is said, and not refused.
        opset: Version of ONNX's operators, 18 to 25; by default 20.
    """
    from bplightning.exporting.export import export_model

    export_model(Path(folder), Path(out), format=format, dtype=dtype, quantize=quantize, opset=opset)


def report(run: str, output: str | None = None, overwrite: bool = False) -> None:
    """Draw the report of a run as a page: one HTML file that loads nothing.

    Args:
        run: Folder of the run, such as runs/qa-hybrid/version_0; or of what `compact` wrote.
        output: File to write; by default report.html in that folder, which is then drawn anew.
        overwrite: Whether to replace an output that is there already.
    """
    from bplightning.reporting.page import report_run

    sys.stdout.write(
        f"The page: {report_run(Path(run), None if output is None else Path(output), overwrite=overwrite)}\n"
    )


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> None:
    """Write what a shell must read to complete verbs, options and the names of tasks and strategies.

    Args:
        shell: Which shell. For bash, `bplightning completion bash >
            ~/.local/share/bash-completion/completions/bplightning`.
    """
    from bplightning.cli.completion import completion_script

    sys.stdout.write(completion_script(shell, build_parser()) + "\n")


def schema() -> None:
    """Write the JSON schema of configuration files of `fit`, by which an editor completes and checks them."""
    from bplightning.cli.completion import config_schema

    sys.stdout.write(json.dumps(config_schema(), indent=1) + "\n")


VERBS: dict[str, Callable[..., None]] = {
    "compact": write_compact,
    "predict": answer,
    "benchmark": benchmark,
    "latency-table": latency_table,
    "export": export,
    "report": report,
    "completion": completion,
    "schema": schema,
}
NOT_WRITTEN = {
    errno.ENOSPC: "make room on the disk, or name another place",
    errno.EDQUOT: "make room, or name another place",
    errno.EACCES: "name a place that you may read and write, or change its permissions",
    errno.EPERM: "name a place that you may read and write, or change its permissions",
    errno.EROFS: "name a place that can be written to",
}
"""What a machine refuses, and the remedy."""


def main(argv: list[str] | None = None) -> None:
    """Run the program.

    Args:
        argv: What follows the program's name; by default that of this process.
    """
    try:
        _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()  # now, where a reader that is gone is not a traceback
    except UserError as error:
        _refuse(str(error))
    except KeyboardInterrupt:
        sys.stderr.write("bplightning: interrupted\n")
        sys.exit(130)  # as the shell has it: 128 + SIGINT
    except BrokenPipeError:  # whoever read our output, `head` for example, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the very end
        sys.exit(141)  # 128 + SIGPIPE
    except OSError as error:
        if error.errno not in NOT_WRITTEN:
            raise
        _refuse(f"{error.filename or 'a file'}: {error.strerror}: {NOT_WRITTEN[error.errno]}.")


def _run(args: list[str]) -> None:
    # Each is imported only now: it takes seconds.
    if args and args[0] == "prune":
        from bplightning.cli.prune import run_prune

        run_prune(args[1:])
    elif args and args[0] == "plan":
        from bplightning.cli.plan import run_plan

        run_plan(args[1:])
    elif args and args[0] == "compare":
        from bplightning.cli.compare import run_compare

        run_compare(args[1:])
    elif any(verb in args for verb in TRAINING_VERBS) and args[0] not in VERBS:
        from bplightning.cli.training import TrainingCommand

        TrainingCommand(args, program()).run()
    else:
        config = build_parser().parse_args(args)
        VERBS[config.verb](**config[config.verb])


def _refuse(message: str) -> NoReturn:
    sys.stderr.write(f"bplightning: error: {' '.join(message.split())}\n")
    sys.exit(2)


class _Parser(OneLine, ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)


def build_parser() -> ArgumentParser:
    """The parser of the verbs here; it only lists those that have parsers of their own."""
    parser = _Parser(
        prog="bplightning",
        description="Block pruning for faster Transformers. Start with: bplightning fit --strategy hybrid",
    )
    verbs = parser.add_subcommands(dest="verb", metavar="VERB")
    for name, line in (TRAINING_VERBS | PARSED_THEMSELVES).items():
        verbs.add_subcommand(name, _Parser(), help=line)
    for name, function in VERBS.items():
        description = (function.__doc__ or "").partition("\n")[0]
        subparser = _Parser(description=description)
        subparser.add_function_arguments(function, as_positional=True)
        verbs.add_subcommand(name, subparser, help=description)
    return parser
