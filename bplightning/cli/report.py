"""The verb `report`."""

from __future__ import annotations

import sys
from pathlib import Path


def report(run: str, output: str | None = None, overwrite: bool = False) -> None:
    """Draw the report of a run as one HTML page that needs no other file.

    Args:
        run: Folder of the run, such as runs/qa-hybrid/version_0; or a folder that `compact` wrote.
        output: File to write. Default: report.html in that folder, which is replaced if it exists.
        overwrite: Whether to replace an output that exists.
    """
    from bplightning.reporting.page import report_run

    page = report_run(Path(run), None if output is None else Path(output), overwrite=overwrite)
    sys.stdout.write(f"The page: {page}\n")
