"""No secret and no local path leaves with a run: of a canary that several options hold, no file has a trace."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from bplightning.cli import main
from bplightning.measuring import measure
from bplightning.runs.masked_settings import variable_of

USER_FILE = """
from pathlib import Path
from lightning.pytorch.loggers import CSVLogger
from tiny_task import TinyTask


class Logged(CSVLogger):
    def __init__(self, save_dir: str, api_key: str | None = None, headers: dict | None = None) -> None:
        super().__init__(save_dir, name="", version="")
        assert api_key == "CANARY0" and headers["Authorization"] == "CANARY1", (api_key, headers)


class Tiny(TinyTask):
    def __init__(self, hub_token: str = "", address: str = "", train_file: str = ""):
        super().__init__(Path(), max_position_embeddings=128)
        assert hub_token == "CANARY2" and "CANARY3" in address

    def data_settings(self):
        return {"token": "CANARY4", "address": "https://CANARY5@host/x", "validation": "/home/CANARY_PATH/val.json"}
"""
PRUNE = [
    *("prune", "--strategy", "magnitude", "--strategy.target.density", "0.5", "--trainer.accelerator", "cpu"),
    *("--strategy.granularity", "{attention: head}", "--baseline", "none", "--task", "user_tiny.Tiny"),
]
SECRETS = [
    *("--trainer.logger", "user_tiny.Logged", "--trainer.logger.save_dir", "logs"),
    *("--trainer.logger.api_key=CANARY0", "--trainer.logger.headers", "{Authorization: CANARY1}"),
    *("--task.hub_token", "CANARY2", "--task.address=mysql://me:CANARY3@host/x"),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "user_tiny.py").write_text(USER_FILE)
    monkeypatch.delitem(sys.modules, "user_tiny", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    latency = measure.latency
    monkeypatch.setattr(
        measure, "latency", lambda *args, **call: latency(*args, **call, seconds=0.0, block_ms=0.0, min_rounds=2)
    )
    return tmp_path


def test_no_file_of_a_run_holds_a_secret_and_the_run_can_be_repeated(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main([*PRUNE, *SECRETS, "--task.train_file", "/home/CANARY_PATH/my data/train.json"])
    run = here / "logs"
    written = [file for file in run.rglob("*") if file.is_file()]
    assert {"config.yaml", "report.json", "report.html", "README.md"} <= {file.name for file in written}
    for file in written:
        assert not any(f"CANARY{number}".encode() in file.read_bytes() for number in range(6)), file
    public = [file for file in (run / "compact").rglob("*") if file.is_file()]
    for file in public:
        assert not any(path.encode() in file.read_bytes() for path in ("CANARY_PATH", str(here))), file
    assert "<masked>" in (run / "compact" / "README.md").read_text()
    assert "train.json" in (run / "compact" / "README.md").read_text()

    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["trainer"]["logger"]["init_args"]["api_key"] == "<masked>"
    again = ["prune", "--config", str(run / "config.yaml"), "--trust", "user_tiny.Logged"]
    again += ["--trainer.logger.save_dir", "again"]
    with pytest.raises(SystemExit):
        main(again)
    said = capsys.readouterr().err
    assert "was masked when the configuration was written: type it again, as --" in said
    for option, value in {"hub_token": "CANARY2", "address": "//CANARY3@", "Authorization": "CANARY1"}.items():
        monkeypatch.setenv(variable_of(option), value)
    with pytest.raises(SystemExit):
        main(again)
    assert "set the variable BPLIGHTNING_API_KEY of the environment" in capsys.readouterr().err
    main([*again, "--trainer.logger.api_key", "CANARY0"])
    assert (here / "again" / "report.json").exists()
