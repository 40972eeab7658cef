"""The verb `predict`.

Its function has another name than `bplightning.predict`, which jsonargparse would find, and import torch with it.
"""

from __future__ import annotations


def answer(
    model: str,
    input: str = "-",
    output: str = "-",
    task: str | None = None,
    batch_size: int | None = None,
    accelerator: str = "auto",
    overwrite: bool = False,
    trust: str = "",
) -> None:
    """Answer JSON lines or a table with a saved model: one line of JSON for each record, in the same order.

    Args:
        model: Folder of a dense or compact model; folder of a run, whose compact/ is used, or its newest checkpoint
            where there is no compact/; or a file in a run's checkpoints/.
        input: File with one JSON object on each line, or with one JSON list of objects; or a table, .csv or .tsv,
            with a row of column names; - for standard input. Lines are read 1,000 at a time, a list at once.
        output: File to write; it appears when it is complete. - for standard output.
        task: Short name or class path of the task, where the model's folder has no task.json that names it.
        batch_size: Rows of a batch, 1 or more. Default: the task's own.
        accelerator: What to compute on, by Lightning's names: auto, cpu, gpu.
        overwrite: Whether to replace an output that exists.
        trust: Class paths, separated by commas, that a run's configuration may name, such as my_file.MyStrategy.
            Registered plugins need none.
    """
    from bplightning.plugins import trust as trust_classes
    from bplightning.runs.predicting import predict_file  # takes seconds to import

    trust_classes(trust)
    predict_file(
        model,
        input_path=input,
        output_path=output,
        task=task,
        batch_size=batch_size,
        accelerator=accelerator,
        overwrite=overwrite,
    )
