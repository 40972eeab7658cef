"""Programs in processes of their own, forked from one that has imported the libraries, which takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent

PYTEST = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
"""The text of a program that runs tests."""

_forks = multiprocessing.get_context("forkserver")
# Nothing of ours: what is forked knows no more of it than a fresh interpreter.
_forks.set_forkserver_preload(
    ["datasets", "lightning.pytorch.cli", "torch", "torchmetrics", "transformers.models.bert.modeling_bert"]
)


class Program:
    """``python SCRIPT WORD ...``, begun with torch, transformers and Lightning already imported, and nothing of ours.

    It has the other programs' seed of string hashes, which is another than that of the process that runs the tests. It
    is not for ranks that others start, for Lightning asks for a process's rank as it is imported.

    Args:
        script: The file, run as ``__main__``, or its text, which is written to ``program.py`` in that folder.
        words: Its arguments.
        cwd: The folder it is run in.
        variables: Of the environment, besides the present ones; none that libraries read as they are imported.
    """

    def __init__(self, script: Path | str, *words: str, cwd: Path, variables: Mapping[str, str] | None = None) -> None:
        if isinstance(script, str):
            (cwd / "program.py").write_text(script)
            script = cwd / "program.py"
        reader, writer = _forks.Pipe(duplex=False)
        environment = os.environ | (variables or {})
        self.process = _forks.Process(target=_main, args=(script, words, cwd, environment, writer))
        self.process.start()
        writer.close()
        self.output = open(os.dup(reader.fileno()), errors="replace")  # noqa: SIM115  # closed at its end
        self.said = ""

    def wait_for(self, ready: Callable[[str], bool]) -> None:
        """Read its output up to the first line that is `ready`."""
        while line := self._line():
            if ready(line):
                return
        raise AssertionError(self.said)

    def end(self, signum: int | None = None) -> int:
        """Its status, negative where a signal ended it; by then all processes that it started have closed its output.

        Args:
            signum: A signal to send it first.
        """
        if signum is not None:
            assert self.process.pid is not None
            os.kill(self.process.pid, signum)
        while self._line():
            pass
        self.output.close()
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode

    def _line(self) -> str:
        try:
            line = self.output.readline()
        except BaseException:  # a test that has run out of time, above all
            self.process.kill()
            raise
        self.said += line
        return line


def said_by(script: Path | str, *words: str, cwd: Path, variables: Mapping[str, str] | None = None) -> str:
    """What a program says, on both streams, that ends well.

    Args:
        script: As `Program` takes it, like the others.
        words: Its arguments.
        cwd: The folder it is run in.
        variables: Of the environment.
    """
    program = Program(script, *words, cwd=cwd, variables=variables)
    assert program.end() == 0, program.said[-3000:]
    return program.said


def _main(script: Path, words: tuple[str, ...], cwd: Path, environment: dict[str, str], output: Connection) -> None:
    multiprocessing.set_start_method(None, force=True)  # the script's own processes start as they do elsewhere
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:] = [
        str(script.parent),
        *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)),
        *(entry for entry in sys.path if Path(entry) not in (ROOT, Path()) and TESTS not in Path(entry, "_").parents),
        str(ROOT),  # last, as an editable installation has it
    ]
    sys.argv = [str(script), *words]
    runpy.run_path(str(script), run_name="__main__")
