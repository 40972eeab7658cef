"""Files, folders and the terminal: reading, writing whole or not at all, progress and silence. No torch."""

from bplightning.io.files import writable, write_whole
from bplightning.io.json_lines import JsonLinesWriter
from bplightning.io.progress_bar import no_progress
from bplightning.io.provenance import now, versions
from bplightning.io.records import read_records
from bplightning.io.run_folder import RunFolder, baseline_of, find_model, section_as, settings_of
from bplightning.io.schema import schema_problems

__all__ = [
    "JsonLinesWriter",
    "RunFolder",
    "baseline_of",
    "find_model",
    "no_progress",
    "now",
    "read_records",
    "schema_problems",
    "section_as",
    "settings_of",
    "versions",
    "writable",
    "write_whole",
]
