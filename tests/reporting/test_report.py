"""The report: JSON first, the table from the JSON alone."""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from built_reports import built, without_baseline
from rich.console import Console

import bplightning
from bplightning.errors import UserError
from bplightning.io.provenance import now, versions
from bplightning.reporting.report import Report, load_report, render, save_report, validate_report

DASH = "\N{EN DASH}"
DOCUMENT = Path(__file__).parents[2] / "docs" / "report-schema.md"

FREE_NAMES = {
    "metrics.dense": "NAME",
    "metrics.masked": "NAME",
    "metrics.compact": "NAME",
    "data": "SETTING",
    "evaluation": "SETTING",
    "distillation": "SETTING",
    "simplification": "SETTING",
    "snap.metrics_before": "NAME",
    "quantized.metrics": "NAME",
    "quantized.speedup": "BxL",
    "quantized.static.compared[].metrics": "NAME",
    "quantized.static.compared[].speedup": "BxL",
    "quantized.static.compared[].speedup_interval": "BxL",
    "portable.config": "FIELD",
    "portable.latency_ms": "BxL",
    "portable.speedup": "BxL",
    "family[].metrics": "NAME",
    "family[].speedup": "BxL",
    "alignment.metrics_before": "NAME",
    "alignment.candidates[].speedup": "BxL",
    "density.by_role": "ROLE",
    "latency_ms.dense": "BxL",
    "latency_ms.compact": "BxL",
    "speedup": "BxL",
    "speedup_interval": "BxL",
    "quantized.speedup_interval": "BxL",
    "family[].speedup_interval": "BxL",
    "score_interval.dense": "NAME",
    "score_interval.compact": "NAME",
    "samples[].example": "FIELD",
    "samples[].dense": "FIELD",
    "samples[].compact": "FIELD",
    "patterns[].projections": "PROJECTION",
    "versions": "PACKAGE",
}
"""Objects whose keys are names of the run's own, and what the document calls these."""


def drawn(report: Report, width: int = 100) -> str:
    output = io.StringIO()
    Console(file=output, width=width).print(render(report))
    return output.getvalue()


def cells(text: str) -> dict[str, list[str]]:
    """First cell of each row to the others (columns lie at least two spaces apart)."""
    rows = (re.split(r"\s{2,}", line.strip()) for line in text.splitlines())
    return {row[0]: row[1:] for row in rows}


def leaves(value: object, path: str = "") -> Iterator[str]:
    """Dotted path of every value, free names replaced, list entries as ``[]``."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, f"{path}.{FREE_NAMES.get(path, key)}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        for each in value:
            yield from leaves(each, f"{path}[]")
    else:
        yield path


def test_report_derives_totals_and_densities() -> None:
    report = built()
    assert (report["heads"]["kept"], report["heads"]["total"]) == (6, 12)
    layer = report["heads"]["by_layer"][1]
    assert layer == {"name": "encoder.1.self", "kept": 2, "total": 4, "queries": 1, "indices": [1, 3]}
    assert (report["units"]["kept"], report["units"]["total"]) == (300, 1024)
    assert report["density"]["encoder_linear"] == 0.25
    assert report["density"]["all_parameters"] == 0.4
    assert report["metrics"]["masked"] == {"exact_match": 79.0, "f1": 87.25}


def test_report_survives_the_file(tmp_path: Path) -> None:
    for report in (built(), without_baseline()):
        save_report(report, tmp_path / "report.json")
        assert load_report(tmp_path / "report.json") == report
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_without_a_baseline_dense_is_null() -> None:
    report = without_baseline()
    assert report["metrics"]["dense"] is None
    assert report["latency_ms"]["dense"] is None
    assert report["bytes_on_disk"]["dense"] is None
    assert report["flops"]["dense"] is None
    assert report["speedup"] is None


def test_a_metric_that_is_not_finite_is_null_and_the_file_is_strict_json(tmp_path: Path) -> None:
    report = built(metrics={"compact": {"f1": float("nan"), "loss": float("inf")}})
    save_report(report, tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["metrics"]["compact"] == {"f1": None, "loss": None}


def test_a_report_that_cannot_be_written_leaves_the_old_one_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    save_report(built(), path)
    before = path.read_text()
    broken = built()
    broken["speedup"] = {"8x128": float("nan")}
    with pytest.raises(ValueError, match="JSON"):
        save_report(broken, path)
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        save_report(built(), tmp_path / "taken")  # the last step, putting it in place, fails
    assert path.read_text() == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"report.json", "taken"}


def test_saving_puts_a_whole_new_file_in_place(tmp_path: Path) -> None:
    """Whoever reads while a report is saved again still reads the old one to its end: it is not written over."""
    path = tmp_path / "report.json"
    save_report(built(seed=1), path)
    with path.open() as reading:
        save_report(built(seed=2), path)
        assert json.load(reading)["seed"] == 1
    assert load_report(path)["seed"] == 2


def test_validation_names_each_wrong_key() -> None:
    document: Any = copy.deepcopy(built())
    del document["flops"]["shape"]
    del document["heads"]["by_layer"][1]["indices"]
    document["metrics"]["sparse"] = None
    document["world_size"] = "1"
    document["density"]["by_role"]["attention"] = None
    document["seed"] = True
    with pytest.raises(UserError) as error:
        validate_report(document)
    message = str(error.value)
    for problem in (
        "missing key flops.shape",
        "missing key heads.by_layer[1].indices",
        "unknown key metrics.sparse",
        "world_size is str, not int",
        "density.by_role.attention is null, not float",
        "seed is bool, not int",
        "docs/report-schema.md",
    ):
        assert problem in message
    assert message.count(";") == 5


def test_a_document_full_of_problems_is_one_short_line() -> None:
    document: Any = copy.deepcopy(built())
    document["heads"]["by_layer"] = list(range(100_000))
    with pytest.raises(UserError, match=r"by_layer\[7\] is int, not an object; and 99992 more\. docs") as caught:
        validate_report(document)
    assert len(str(caught.value)) < 1000
    with pytest.raises(UserError, match=r"has schema_version \[4\], but this version"):
        validate_report(document | {"schema_version": [4]})


def test_another_schema_version_is_refused_before_its_keys() -> None:
    document: Any = {"schema_version": 99}
    with pytest.raises(
        UserError, match="has schema_version 99, but this version of bplightning reads 2, 3, 4, 5, 6, 7, 8:"
    ) as error:
        validate_report(document)
    assert "missing" not in str(error.value)
    with pytest.raises(UserError, match="missing key schema_version"):
        validate_report({})
    with pytest.raises(UserError, match="the document is list, not an object"):
        validate_report([])


SEEN: dict[str, Any] = {
    "portable": None,
    "warnings": [],
    "speedup_interval": {},
    "score_interval": {},
    "classes": None,
    "samples": [],
}
STREAM: dict[str, Any] = {"stream": None, "skipped": []} | SEEN
FAMILY: dict[str, Any] = {"family": []} | STREAM
NEW: dict[str, Any] = {"patterns": [], "data": None, "monitor": None} | FAMILY
LATER: dict[str, Any] = {"alignment": None, "mask_hashes": []} | NEW
STAGES = {"distillation": None, "simplification": None, "refill": None, "snap": None} | LATER


@pytest.mark.parametrize(
    ("version", "lacks"),
    [(7, SEEN), (6, STREAM), (5, FAMILY), (4, LATER), (3, STAGES), (2, STAGES | {"evaluation": None})],
)
def test_a_report_of_a_version_before_is_read_too(tmp_path: Path, version: int, lacks: dict[str, Any]) -> None:
    older: Any = {key: value for key, value in built().items() if key not in lacks} | {"schema_version": version}
    older = copy.deepcopy(older)
    for layer in older["heads"]["by_layer"]:
        del layer["queries"]
    known = {key: value for key, value in lacks.items() if key != "warnings"}  # which follow from the others
    expected: Any = {**built(date=older["date"]), **known}
    for each in (older["quantized"], *older.get("family", [])):
        del each["speedup_interval"]
    del older["quantized"]["static"]
    expected["quantized"]["static"] = None
    for each in (expected["quantized"], *expected["family"]):
        each["speedup_interval"] = {}
    (tmp_path / "report.json").write_text(json.dumps(older))
    assert load_report(tmp_path / "report.json") == expected
    del older["seed"]
    with pytest.raises(UserError, match="missing key seed"):
        validate_report(older)


def test_loading_says_which_file_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json.* does not exist"):
        load_report(tmp_path / "absent.json")
    (tmp_path / "cut.json").write_text('{"schema_version": 2,')
    with pytest.raises(UserError, match=r"cut\.json.* is not JSON"):
        load_report(tmp_path / "cut.json")


def test_the_document_explains_every_key_and_no_other() -> None:
    trimmed = built(vocabulary={"kept": 900, "total": 30_522, "lost": 0.01})
    written = {path for report in (built(alike=96), without_baseline(), trimmed) for path in leaves(report)}
    written -= {
        "metrics.dense",
        "evaluation",
        "latency_ms.dense",
        "speedup",
        "distillation",
        "simplification",
        "alignment",
        "refill",
        "snap",
        "quantized",
        "portable",
        "family",
        "stream",
        "classes",
        "speedup_interval",
        "samples",
        "warnings",
    }  # null: explained beside what they hold otherwise
    explained = re.findall(r"^\| `([^`]+)` \| \w", DOCUMENT.read_text(), flags=re.MULTILINE)
    assert set(explained) == written
    assert len(explained) == len(set(explained))


def test_the_table_is_drawn_from_json_alone() -> None:
    rows = cells(drawn(json.loads(json.dumps(built()))))
    assert rows["f1"] == ["88.50", "87.25", "87.50"]
    assert rows["encoder linear (M)"] == ["80.00 (100.0 %)", "20.00 ( 25.0 %)", "24.00 ( 30.0 %)"]
    assert rows["all parameters (M)"] == ["100.00 (100.0 %)", "40.00 ( 40.0 %)", "44.00 ( 44.0 %)"]
    assert rows["heads"] == ["12", "6", "6"]
    assert rows["FFN units"] == ["1024", "300", "300"]
    assert rows["on disk (MB)"] == ["400.12", "176.00"]
    assert rows["FLOPs 8x128 (GFLOP)"] == ["12.34", "5.00"]
    assert rows["latency 8x128 (ms)"] == ["120.00", "50.00"]
    assert rows["speed-up 8x128"] == ["1.00x", "2.44x"]


def test_the_table_names_the_other_models_of_the_run() -> None:
    line = f"also saved compact-1.5x: f1 88.25, loss {DASH}, 280.00 MB, 8x128 1.52x"
    assert line in " ".join(drawn(built()).split())
    assert built()["family"][0]["metrics"]["loss"] is None  # JSON has no NaN


def test_the_table_says_how_it_was_measured() -> None:
    settings = {"examples": 500, "prefix": "", "generation": {"num_beams": 4, "min_length": None}}
    times = {"dense": {"8x128+32": 900.0}, "compact": {"8x128+32": 300.0}}
    text = drawn(built(evaluation=settings, latency_ms=times, speedup={"8x128+32": 3.0}))
    assert re.search(r"evaluated with examples 500, num_beams 4 *\n", text)
    assert cells(text)["latency 8x128+32 (ms)"] == ["900.00", "300.00"]
    assert cells(text)["speed-up 8x128+32"] == ["1.00x", "3.00x"]
    assert "evaluated" not in drawn(built(evaluation={}))


def test_the_table_shows_vocabulary_and_precision_where_they_changed() -> None:
    assert "vocabulary (tokens)" not in cells(drawn(built()))
    rows = cells(drawn(built(vocabulary={"kept": 900, "total": 30_522}, dtype="bfloat16")))
    assert rows["vocabulary (tokens)"] == ["30522", "30522", "900"]
    assert rows["on disk, bfloat16 (MB)"] == ["400.12", "176.00"]


def test_the_table_says_how_a_smaller_vocabulary_fits() -> None:
    report = built(vocabulary={"kept": 900, "total": 30_522, "lost": 0.012})
    text = " ".join(drawn(report).split())
    assert "smaller vocabulary: 1.2 % of the validation set's tokens are not in it" in text
    assert not report["warnings"]
    assert "smaller vocabulary" not in drawn(built())


def test_the_table_shows_a_width_that_changed_and_what_is_skipped() -> None:
    report = built(density_by_role={"attention": 0.5, "stream": 0.96875})
    text = " ".join(drawn(report).split())
    assert cells(drawn(report))["width (dimensions)"] == ["384", "372", "372"]
    assert "by role: attention 50.0 %; 96.9 % of the dimensions of the residual stream" in text
    assert "skipped with their norms: encoder.2.self" in text
    for width in (None, {"kept": 384, "total": 384}):
        assert "width (dim" not in drawn(built(stream=width))
    assert "skipped" not in drawn(built(skipped=[]))


def test_the_table_shows_kept_heads_and_units_by_layer() -> None:
    text = drawn(built())
    assert re.search(r"by layer +4 each +4 2 0 *\n", text)
    assert re.search(r"by layer +512 each +300 0 *\n", text)


def test_layers_of_several_kinds_have_a_row_each() -> None:
    kinds = [
        f"{stack}.{layer}.{kind}" for stack, kind in (("encoder", "self"), ("decoder", "cross")) for layer in (0, 1)
    ]
    rows = cells(drawn(built(heads_by_layer=[(name, [0] * index, 8) for index, name in enumerate(kinds)])))
    assert rows["encoder self"] == ["8 each", "0 1"]
    assert rows["decoder cross"] == ["8 each", "2 3"]


def test_the_table_shows_a_dash_for_what_was_not_measured() -> None:
    rows = cells(drawn(without_baseline()))
    assert rows["f1"] == [DASH, "87.50", "87.50"]
    for label in ("on disk (MB)", "FLOPs 8x128 (GFLOP)", "latency 8x128 (ms)"):
        assert rows[label][0] == DASH != rows[label][1]
    assert rows["speed-up 8x128"] == [DASH, DASH]


@pytest.mark.parametrize("layers", [2, 12, 24])
def test_the_table_wraps_no_row_at_80_columns(layers: int) -> None:
    units = [(f"encoder.{layer}.feed_forward", range(1000 + layer if layer else 0), 4096) for layer in range(layers)]
    heads = [(f"encoder.{layer}.self", range(layer % 9), 16) for layer in range(layers)]
    text = drawn(built(units_by_layer=units, heads_by_layer=heads, model="a-folder/" * 20), width=80)
    rows = cells(text)
    assert {"all parameters (M)", "FLOPs 8x128 (GFLOP)", "on disk (MB)"} <= rows.keys()
    summarized = {2: "0 1001", 12: f"0{DASH}1011, 1 at 0", 24: f"0{DASH}1023, 1 at 0"}
    assert re.search(rf"by layer +4096 each +{summarized[layers]} *\n", text)
    assert max(map(len, text.splitlines())) <= 80


def test_a_ratio_that_is_not_settled_is_marked_and_explained() -> None:
    shaky = {"low": 0.9, "high": 2.9, "settled": False}
    text = " ".join(drawn(built(speedup_interval={"8x128": shaky})).split())
    assert "speed-up 1x128 1.00x 2.02x speed-up 8x128 1.00x 2.44x?" in text
    assert "? not settled: " in text
    assert "?" not in drawn(built())
    of_int8 = built()["quantized"] | {"speedup_interval": {"1x128": shaky}}  # type: ignore[operator]
    assert "1x128 4.25x?" in " ".join(drawn(built(quantized=of_int8)).split())


def test_the_table_says_which_units_were_put_back_and_what_for() -> None:
    text = " ".join(drawn(built()).split())
    assert "feed-forward widths: multiples of 16 (the fastest measured); 5 units restored, 7,685 parameters" in text
    assert "without restored units: 24.8 % of encoder linear weights, f1 87.50" in text
    assert "speed-up from them: 8x128 1.031x" in text
    nothing = built()["alignment"] | {"auto": False, "multiple_of": 8, "units_added": 0}  # type: ignore[operator]
    text = " ".join(drawn(built(alignment=nothing)).split())
    assert "feed-forward widths: multiples of 8; 0 units restored" in text
    assert "speed-up from them" not in text


def test_the_table_says_what_came_after_pruning_to_a_size() -> None:
    text = " ".join(drawn(built()).split())
    assert "encoder linear weights: 25.0 % kept, 30.0 % stored; all parameters: 40.0 % kept, 44.0 % stored" in text
    assert "(kept: not zero after pruning, before the refill)" in text
    held = built()["refill"] | {"hold_masks": True}  # type: ignore[operator]
    for refill in (held, None):
        assert "before the refill" not in drawn(built(refill=refill))
    snap = built()["snap"] | {"kind": "flops_speedup", "target": 2.5, "before": 2.46, "after": 2.5}  # type: ignore[operator]
    text = " ".join(drawn(built(snap=snap)).split())
    assert "target: flops speedup 2.5; training ended at 2.46, and a last correction, which switched" in text
    assert "which switched 7 mask entries, at 2.5" in text
    assert "flops speedup of the compact model: 2.468" in text


def test_names_with_brackets_are_not_markup() -> None:
    text = drawn(built(task="[red]qa", metrics={"compact": {"f1 [macro]": 1.0}}))
    assert "[red]qa" in text
    assert "f1 [macro]" in text


def test_versions_and_date_repeat_the_run() -> None:
    assert set(versions()) == {"python", "torch", "transformers", "lightning", "bplightning"}
    assert versions()["torch"] == torch.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", now())


def test_a_report_has_the_version_of_the_code_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bplightning, "__version__", "7.8.9")  # as after an update that pip was not told about
    assert versions()["bplightning"] == "7.8.9"
