"""The verb `compact`.

Its function has another name than `bplightning.compact`, which jsonargparse would find, and import torch with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bplightning.cli.invocation import command_line


def write_compact(
    run: str,
    out: str,
    checkpoint: str | None = None,
    vocabulary: str | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    multiple_of: int | str | None = None,
    portable: bool = False,
    trust: str = "",
) -> None:
    """Write the compact model of a run, and a report about it.

    Args:
        run: Folder of the run, such as runs/qa-hybrid/version_0.
        out: Folder to write: an ordinary transformers folder with weights, configuration and tokenizer, and a
            report.json.
        checkpoint: Which checkpoint: best, last, or a file. Default: the newest.
        vocabulary: A corpus (.txt, .json, .jsonl, .csv, .tsv or .parquet). Only the tokens that occur in it and the
            special tokens are kept, with a tokenizer that matches.
        dtype: Precision to save in. Default: the precision of the training.
        multiple_of: Restore the best of the removed feed-forward units until each layer's width is a multiple of this
            number: 1 or more, such as 16; or auto, the fastest on this machine. Default: as in the run. For a run that
            was refilled, give checkpoint last too.
        portable: Write an ordinary checkpoint, which loads without bplightning: every layer is padded with zeros to the
            widest, as far as config.json has one number for all. The report says what that costs.
        trust: Class paths, separated by commas, that the run's configuration may name, such as my_file.MyStrategy.
            Registered plugins need none.
    """
    from bplightning.plugins import trust as trust_classes
    from bplightning.runs.compact_run import compact_run  # takes seconds to import

    trust_classes(trust)
    corpus = None if vocabulary is None else Path(vocabulary)
    compact_run(
        Path(run),
        Path(out),
        checkpoint=checkpoint,
        vocabulary=corpus,
        dtype=dtype,
        multiple_of=multiple_of,
        portable=portable,
        command=command_line(),
    )
