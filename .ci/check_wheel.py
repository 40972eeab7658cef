"""Check what a wheel puts into site-packages: one package, with the data it needs."""

from __future__ import annotations

import sys
import zipfile

NEEDED = (
    "bplightning/py.typed",
    "bplightning/strategies/hybrid.py",
    "bplightning/tasks/qa_default.yaml",
    "bplightning/testing/strategy_contract.py",
    "bplightning/tasks/summarization_start/config.json",
)


def main(path: str) -> None:
    """Exit with a message when the wheel at `path` is wrong."""
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
    extra = {name.split("/")[0] for name in names if ".dist-info/" not in name} - {"bplightning"}
    missing = [name for name in NEEDED if name not in names]
    if not any(name.startswith("bplightning/tasks/embedded_start/") for name in names):
        missing.append("bplightning/tasks/embedded_start/*")
    if extra or missing:
        sys.exit(f"{path}: beside bplightning at the top level: {sorted(extra)}; missing: {missing}")
    print(f"{path}: {len(names)} files, all in bplightning, data included")


if __name__ == "__main__":
    main(sys.argv[1])
