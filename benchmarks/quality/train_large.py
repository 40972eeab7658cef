"""Train large, then compress: three sizes of the generated default, each pruned, at equal memory and at equal latency.

Li et al. 2020, *Train Large, Then Compress* (arXiv 2002.11794): of models that are trained for the same time, a large
one that is compressed is better than a small one as it is. Three BERTs of 4 layers, 64, 128 and 256 wide, are
pretrained on generated passages for about the same time on one core, so the large one for the fewest steps; then
`compare` fine-tunes each on the generated classification set and prunes it to two densities.

    python benchmarks/quality/train_large.py [--runs benchmark-runs]

All runs together, with the dense models they began from, land in benchmarks/results/train_large.json, as `bplightning
compare --output` writes it. What was run is not run again. Half an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "train_large.json"
STEPS = {"small": 2600, "base": 1400, "large": 600}
WIDTHS = {"small": 64, "base": 128, "large": 256}
DENSITIES = (0.5, 0.25)
FIT = ["--config", str(ROOT / "tasks" / "classification_default.yaml")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("benchmark-runs"), help="where models and runs go")
    arguments = parser.parse_args()
    folder = arguments.runs / "train-large"
    models = [pretrained(size, folder) for size in STEPS]
    program = [sys.executable, "-m", "bplightning", "compare"]
    for density in DENSITIES:
        made = ["--strategies", "hybrid", "--models", ",".join(map(str, models)), "--folder", str(folder / "compared")]
        fit = [*FIT, "--strategy.target.density", str(density)]
        subprocess.run([*program, *made, "--", *fit], check=True)
    runs = [str(report.parent) for report in sorted((folder / "compared").glob("*/runs/*/*/report.json"))]
    subprocess.run([*program, *runs, "--output", str(folder / "compared.json"), "--overwrite", "true"], check=True)
    found = json.loads((folder / "compared.json").read_text())
    for point in found["points"]:
        point["model"] = Path(point["model"]).name
    report = json.loads((Path(runs[-1]) / "report.json").read_text())
    found["machine"], found["date"] = report["machine"]["cpu"], report["date"][:10]
    found["pretraining"] = {size: json.loads((folder / f"{size}.json").read_text()) for size in STEPS}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def pretrained(size: str, folder: Path) -> Path:
    """A size's model, pretrained if it is not there yet."""
    done = folder / f"{size}.json"
    if not done.exists():
        script = ROOT / "benchmarks" / "data" / "pretrain_embedded_start.py"
        options = {"--output": folder / size, "--steps": STEPS[size], "--hidden_size": WIDTHS[size]}
        words = [str(word) for option in options.items() for word in option]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime  # of all processes that have ended
        printed = subprocess.run([sys.executable, str(script), *words], check=True, capture_output=True, text=True)
        last = json.loads(printed.stdout.splitlines()[-1])
        used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        row = {"steps": STEPS[size], "processor_seconds": round(used), "spans_found": last["found"]}
        done.write_text(json.dumps(row) + "\n")
    return folder / size


if __name__ == "__main__":
    main()
