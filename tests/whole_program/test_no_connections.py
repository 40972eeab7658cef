"""No verb opens a connection on local folders: Python's sockets are refused, and a resolver of our own hears the rest.

Native code, such as ONNX Runtime's, does not ask Python. So the program runs in a network namespace with no network but
a name server that counts what it is asked; where the system allows no namespace, that half is left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from bplightning import compact, save_compact
from bplightning.contracts.task_file import save_task
from bplightning.tasks.qa import QuestionAnswering

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).parents[2]

PROGRAM = """
import fcntl, os, socket, struct, subprocess, sys, time
folder, resolver, word = sys.argv[1], sys.argv[2], sys.argv[3]
asked = None
if resolver != "none":
    subprocess.run(["mount", "--bind", resolver, "/etc/resolv.conf"], check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as up:  # the loopback device, which a new namespace has down
        fcntl.ioctl(up, 0x8914, struct.pack("16sh14x", b"lo", 0x41))
    asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asked.bind(("127.0.0.1", 53))
    asked.setblocking(False)
tried = []

def refuse(*args, **kwargs):
    tried.append(args)
    raise OSError("a connection was tried")

socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
os.chdir(folder)
from bplightning.cli import main
if word == "look-up":
    subprocess.run(["getent", "ahosts", "nobody.invalid"], check=False)
else:
    fast = ["--batch_sizes", "1", "--lengths", "8", "--seconds", "0.1", "--tolerance", "0.9"]
    main(["predict", "compact", "--input", "questions.jsonl", "--output", "answers.jsonl"])
    main(["export", "compact", "exported"])
    main(["benchmark", "compact", "--against", "compact", "--backends", "onnx", *fast])
    main(["plan", "--task", "qa", "--task.model", "compact"])
    evaluated = ["--ckpt_path", "compact", "--trainer.limit_val_batches", "1"]
    main(["validate", "--task", "qa", "--task.model", "compact", *evaluated])
if asked is not None and "onnxruntime" in sys.modules:
    time.sleep(14)  # it reports some ten seconds after its start
heard = []
while asked is not None:
    try:
        heard.append(asked.recv(512))
    except BlockingIOError:
        break
print("TRIED", tried)
print("HEARD", len(heard), heard[:3])
"""


def allowed() -> bool:
    """Whether this system lets a process have a network namespace of its own."""
    try:
        return subprocess.run(["unshare", "-rnm", "true"], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = QuestionAnswering()
    made = tmp_path_factory.mktemp("no_connections")
    small = compact(task.build_model().eval())
    save_compact(small, made / "compact", task.tokenizer, complete=partial(save_task, task))
    record = {"question": "Who lives in Dinmouth?", "context": "Anna lives in Dinmouth."}
    (made / "questions.jsonl").write_text(json.dumps(record) + "\n")
    (made / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    return made


def run(folder: Path, word: str, *, namespace: bool) -> str:
    own = ["unshare", "-rnm"] if namespace else []
    resolver = str(folder / "resolv.conf") if namespace else "none"
    # The hub's client is not told to stay offline: it must not be needed.
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_HOME": str(folder / "hub"), "PYTHONPATH": f"{ROOT}"}
    words = [*own, sys.executable, "-c", PROGRAM, str(folder), resolver, word]
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_no_verb_opens_a_connection_on_local_folders(folder: Path) -> None:
    namespace = allowed()
    said = run(folder, "verbs", namespace=namespace)
    assert "TRIED []" in said, said[-1000:]
    assert "HEARD 0 []" in said, said[-1000:]
    if not namespace:
        pytest.skip("this system allows no network namespace: only Python's own sockets were watched")
    assert "HEARD 0" not in run(folder, "look-up", namespace=True)  # that the resolver would have heard native code
