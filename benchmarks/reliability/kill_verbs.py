"""Stops and kills every verb that writes, and repeats its command: status, time, what is left, whether it then works.

    python benchmarks/reliability/kill_verbs.py [--verbs predict export]

A short run of the embedded example comes first. Then each verb runs once to its end. The same command is started again
and ended by SIGTERM at a moment that is drawn (seeded), by SIGTERM and by SIGINT while it writes its output, and by
SIGKILL then; after each, what is in its folder is listed. At last the command must work. The counts land in
benchmarks/results/kill_verbs.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "kill_verbs.json"
RUN = [
    *("fit", "--trainer.max_steps", "4", "--trainer.limit_val_batches", "1", "--task.max_length", "96"),
    *("--task.stride", "32", "--strategy.window.initial_warmup", "0", "--strategy.window.final_warmup", "1"),
]
MADE = "run/runs/qa-hybrid/version_0"
VERBS = {
    "predict": ["predict", f"{MADE}/compact", "--input", "records.jsonl", "--output", "out/answers.jsonl"],
    "compact": ["compact", MADE, "out/compact"],
    "export": ["export", f"{MADE}/compact", "out/onnx"],
    "prune": [
        *(
            "prune",
            "--task",
            "qa",
            "--task.model",
            f"{MADE}/compact",
            "--strategy",
            "magnitude",
            "--calibration_examples",
            "8",
        ),
        *("--strategy.target.density", "0.9", "--trainer.default_root_dir", "out", "--trainer.limit_val_batches", "1"),
    ],
    "benchmark": [
        *("benchmark", f"{MADE}/compact", "--against", f"{MADE}/compact", "--lengths", "32", "--seconds", "2"),
        *("--output", "out/speed.json", "--plot", "out/speed.png"),
    ],
}
STOPS = ((signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True), (signal.SIGKILL, True))
"""Signals, and whether each comes while the output is written, or at any time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=list(VERBS), help="which; all by default")
    chosen = parser.parse_args().verbs
    generator, start = random.Random(0), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        begin([*RUN, "--trainer.default_root_dir", "run"], folder).wait()
        record = {"question": "Who lives in Dinmouth?", "context": "Anna lives in Dinmouth."}
        (folder / "records.jsonl").write_text(f"{json.dumps(record)}\n" * 3000)
        found = {name: stopped(VERBS[name], folder, generator) for name in chosen}
    result = {"seed": 0, "seconds": round(time.monotonic() - start), "date": datetime.now(UTC).date().isoformat()}
    RESULT.write_text(json.dumps(result | {"verbs": found}, indent=1) + "\n")
    print(RESULT.read_text())


def begin(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["HF_DATASETS_CACHE"] = str(folder / "cache")
    with (folder / "log.txt").open("wb") as log:
        command = [sys.executable, str(ROOT / "cli.py"), *words]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)


def stopped(words: list[str], folder: Path, generator: random.Random) -> dict[str, Any]:
    """What each stop of a verb leaves, and how the command ends after them all."""
    out = folder / "out"
    begun = time.monotonic()
    whole = begin(words, folder).wait()
    seconds, expected = time.monotonic() - begun, names(out)
    shutil.rmtree(out)
    stops = []
    for signum, writing in STOPS:
        process = begin(words, folder)
        wait = generator.uniform(1.0, seconds)
        begun = time.monotonic()
        while process.poll() is None and not (any(out.rglob(".*")) if writing else time.monotonic() - begun > wait):
            time.sleep(0.005)
        at, over = time.monotonic(), process.poll() is not None
        process.send_signal(signum)
        status = process.wait()
        left = [name for name in names(out) if (out / name).is_file()]
        stops.append({"signal": signum.name, "writing": writing, "status": status, "left": left})
        stops[-1] |= {"seconds": round(time.monotonic() - at, 2), "over_before": over}
        if over:  # it was faster than before, and its output would be in the way
            shutil.rmtree(out)
    again = begin(words, folder).wait()
    same = [name for name in expected if name not in names(out)]
    shutil.rmtree(out, ignore_errors=True)
    print(words[0], whole, stops, again, same, flush=True)
    return {"status": whole, "stops": stops, "again": again, "missing_then": same}


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


if __name__ == "__main__":
    main()
