"""A program that is asked to stop ends with the shell's status in about a second, and leaves nothing half-written."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from programs import Program

BEGIN = """
import hashlib, os, signal, sys, time
from pathlib import Path
from bplightning.io.ending import ends_on_signals, let_finish
from bplightning.io.files import whole_file, whole_folder

def work(how):
    with whole_folder(Path("out")) as part, whole_file(Path("answers")) as file:
        (part / "weights").write_text("half")
        file.write(b"half")
        file.flush()
        print("ready", flush=True)
        how()

with ends_on_signals():
"""

INTERRUPTIBLE = "work(lambda: time.sleep(60))"
IN_A_LIBRARY = "work(lambda: hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9))"
SWALLOWED = """
    def deaf():
        try:
            time.sleep(60)
        except BaseException:
            time.sleep(60)
    work(deaf)
"""


@pytest.mark.parametrize("how", [INTERRUPTIBLE, IN_A_LIBRARY, SWALLOWED])
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_nothing_left(tmp_path: Path, how: str, signum: signal.Signals, status: int) -> None:
    program = Program(f"{BEGIN}    {how}\n", cwd=tmp_path)
    program.wait_for(lambda line: line == "ready\n")
    assert len(list(tmp_path.iterdir())) == 3
    sent = time.monotonic()
    assert program.end(signum) == status
    assert time.monotonic() - sent < 4
    assert f"stopped by {signum.name}\n" in program.said or how == IN_A_LIBRARY
    assert "Traceback" not in program.said
    assert [path.name for path in tmp_path.iterdir()] == ["program.py"]


def test_what_ends_by_itself_is_left_to_it(tmp_path: Path) -> None:
    """Training has handlers of its own, and takes longer for a checkpoint than a second."""
    program = Program(
        f"{BEGIN}"
        "    signal.signal(signal.SIGTERM, lambda *_: print('saving', flush=True))\n"
        "    let_finish(True)\n"
        "    work(lambda: time.sleep(1.7))\n"
        "    sys.exit(7)\n",
        cwd=tmp_path,
    )
    program.wait_for(lambda line: line == "ready\n")
    assert program.end(signal.SIGTERM) == 7
    assert "saving" in program.said
    assert (tmp_path / "answers").read_text() == "half"


def test_the_end_of_a_process_of_its_own_is_not_its_end(tmp_path: Path) -> None:
    program = Program(
        f"{BEGIN}"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        time.sleep(60)\n"
        "    time.sleep(0.1)\n"
        "    os.kill(child, signal.SIGTERM)\n"
        "    print(os.waitpid(child, 0)[1], flush=True)\n"
        "    time.sleep(1.4)\n",
        cwd=tmp_path,
    )
    assert program.end() == 0
    assert program.said == f"{signal.SIGTERM.value}\n"


def test_who_has_ignored_it_goes_on_ignoring_it(tmp_path: Path) -> None:
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)\nwith ends_on_signals():"
    program = Program(
        BEGIN.replace("with ends_on_signals():", ignored) + "    work(lambda: time.sleep(1.3))\n", cwd=tmp_path
    )
    program.wait_for(lambda line: line == "ready\n")
    assert program.end(signal.SIGINT) == 0
