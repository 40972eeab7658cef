"""A latency table: its sums, its file, what it refuses, and that one can be measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_tables import REST_MS, made_table
from tiny_families import HEADS, LAYERS, UNITS, tiny
from transformers import AutoModelForSequenceClassification

from bplightning.cli import main
from bplightning.compaction.exact_compaction import compact
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.measuring import latency_measuring, measure
from bplightning.measuring.latency_measuring import grid, measured_table, not_falling
from bplightning.measuring.latency_table import LatencyTable
from bplightning.measuring.random_copies import compact_copy

LAYOUT = PrunableLayout.of(tiny("bert"))


def everything(heads: int, units: int) -> list[tuple[str, int]]:
    return [("attention", heads)] * LAYERS + [("feed_forward", units)] * LAYERS


def test_a_model_takes_what_its_layers_take_and_the_rest() -> None:
    table = made_table(LAYOUT)
    assert table.milliseconds(everything(HEADS, UNITS)) == pytest.approx(table.dense_ms)
    assert table.milliseconds(everything(0, 0)) == REST_MS
    assert table.largest_speedup == pytest.approx((REST_MS + LAYERS * (HEADS + 3)) / REST_MS)
    uneven = [("attention", 1), ("attention", HEADS), ("feed_forward", UNITS // 8), ("feed_forward", UNITS // 2)]
    third = 1.5 + 1.5 * (UNITS // 2 - UNITS // 4) / (UNITS - UNITS // 4)  # between a quarter and all
    assert table.milliseconds(uneven) == pytest.approx(REST_MS + 1 + HEADS + 0.75 + third)


def test_between_what_was_measured_there_are_straight_lines() -> None:
    times = made_table(LAYOUT).roles["feed_forward"]
    assert times.by_count() == pytest.approx(np.interp(range(UNITS + 1), times.kept, times.ms))


def test_sums_are_put_right_by_what_was_measured_together() -> None:
    table, bent = made_table(LAYOUT), made_table(LAYOUT, bent=0.1)
    half = table.milliseconds(everything(HEADS // 2, UNITS // 2)) - REST_MS
    assert bent.milliseconds(everything(HEADS // 2, UNITS // 2)) == pytest.approx(REST_MS + 1.1 * half)
    assert bent.milliseconds(everything(HEADS, UNITS)) == table.dense_ms
    assert bent.milliseconds(everything(0, 0)) == REST_MS


def test_values_that_fall_are_pooled() -> None:
    assert not_falling([0.2, 0.1, 0.3, 0.5, 0.4, 0.3, 1.0]) == pytest.approx([0.15, 0.15, 0.3, 0.4, 0.4, 0.4, 1.0])


def test_a_grid_goes_from_none_to_less_than_all() -> None:
    assert grid(12, heads=True) == list(range(12))
    many = grid(64, heads=True)
    assert (many[0], many[-1]) == (0, 45)
    for width in (16, 1536, 3072):
        units = grid(width, heads=False)
        assert units[:2] == [0, 1]
        assert all(count % 2 for count in units[1:])
        assert 0.6 * width < units[-1] < width


# -- the file ----------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_read_again_and_again(tmp_path: Path) -> None:
    table = made_table(LAYOUT, bent=0.1, dense_ms=1 / 3, together_ms=(0.1, 0.2, 1 / 3))
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == LatencyTable.load(str(tmp_path / "table.json")) == table


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.pop("dense_ms"), "missing key dense_ms"),
        (lambda d: d.update(seed=0), "unknown key seed"),
        (lambda d: d.update(version=99), "has version 99, but this bplightning reads 1"),
        (lambda d: d["machine"].pop("cpu"), r"missing key machine\.cpu"),
        (lambda d: d.update(dense_ms=float("nan")), "dense_ms is nan, but must be above 0"),
        (lambda d: d.update(length=0), "length is 0, but must be above 0"),
        (lambda d: d["roles"].clear(), "roles is empty"),
        (lambda d: d["roles"]["attention"].update(layers=0), r"roles\.attention\.layers is 0"),
        (lambda d: d["roles"]["attention"].update(kind="tails"), r"roles\.attention\.kind is 'tails'"),
        (lambda d: d["roles"]["attention"]["ms"].__setitem__(-1, float("inf")), r"roles\.attention\.ms must be"),
        (lambda d: d["roles"]["attention"]["ms"].__setitem__(0, -1.0), r"roles\.attention\.ms must begin with 0"),
        (lambda d: d["roles"]["feed_forward"]["ms"].reverse(), r"roles\.feed_forward\.ms must be .* must not fall"),
        (lambda d: d["roles"]["feed_forward"]["kept"].pop(), r"roles\.feed_forward\.kept must ascend from 0 to"),
        (lambda d: d["together_ms"].__setitem__(0, 0.0), "together_ms must begin above 0"),
        (lambda d: d["sums_ms"].clear(), "sums_ms must ascend from 0 to"),
    ],
)
def test_a_damaged_file_is_refused_by_what_is_wrong(tmp_path: Path, damage: Any, message: str) -> None:
    file = tmp_path / "table.json"
    made_table(LAYOUT).save(file)
    document = json.loads(file.read_text())
    damage(document)
    file.write_text(json.dumps(document))
    with pytest.raises(UserError, match=rf"latency table .*table\.json' .*{message}"):
        LatencyTable.load(file)


def test_no_file_and_no_json_are_refused(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text("{")
    with pytest.raises(UserError, match=r"is not JSON .* make it again with `latency-table`"):
        LatencyTable.load(tmp_path / "table.json")
    with pytest.raises(UserError, match=r"'absent\.json' cannot be read \(No such file"):
        LatencyTable.load("absent.json")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: tiny("roberta"), "its model_type is 'bert', the model's 'roberta'"),
        (
            lambda: tiny("bert", auto=AutoModelForSequenceClassification),
            "its model_class is 'BertForQuestionAnswering'",
        ),
        (lambda: tiny("bert", num_hidden_layers=LAYERS + 1), rf"of attention it has {LAYERS} layers of {HEADS} heads"),
        (lambda: tiny("bert", intermediate_size=UNITS + 4), f"the model {LAYERS} layers of {UNITS + 4} units"),
        (lambda: tiny("bert", num_attention_heads=HEADS // 2), rf"of attention .* the model .* of {HEADS // 2} heads"),
    ],
)
def test_a_table_of_another_model_is_refused(other: Any, message: str) -> None:
    table = made_table(LAYOUT)
    table.require_fits(LAYOUT, name="it")
    with pytest.raises(UserError, match=rf"it is of another model: .*{message}.* Make one of this model"):
        table.require_fits(PrunableLayout.of(other()), name="it")


# -- measuring ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time real models, but a few passes only."""
    latency = measure.latency

    def briefly(*arguments: Any, **options: Any) -> Any:
        return latency(*arguments, **(options | {"seconds": 0.0, "block_ms": 0.0, "min_rounds": 6}))

    monkeypatch.setattr(measure, "latency", briefly)


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("model_type", ["bert", "bart", "qwen2"])
def test_a_table_is_measured(model_type: str) -> None:
    """Its structure, and not its times."""
    model = tiny(model_type)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told: list[float] = []
    table = measured_table(
        model, (1, 8), device=torch.device("cpu"), seconds=0.0, on_progress=lambda fraction, what: told.append(fraction)
    )
    layout = PrunableLayout.of(model)
    table.require_fits(layout, name="it")
    assert LatencyTable.of_document(json.loads(json.dumps(table.document())), name="it") == table
    assert set(table.roles) == {group.role for group in layout.groups}
    assert len(table.sums_ms) > 2
    assert table.shape == "1x8"
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_takes_as_long_with_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_measuring, "_beside", lambda _, others, *rest: (1.0, [1.01] * len(others)))
    with pytest.raises(UserError, match="is not faster at 1x8: give more seconds"):
        measured_table(tiny("bert"), (1, 8), device=torch.device("cpu"))


def test_layers_that_differ_are_refused() -> None:
    uneven = compact(compact_copy(LAYOUT, {LAYOUT.feed_forward[0].name: torch.arange(5)}))
    with pytest.raises(UserError, match=rf"layers of feed_forward differ \(.* has 5 units, .* has {UNITS}\)"):
        measured_table(uneven, (1, 8), device=torch.device("cpu"), seconds=0.0)


@pytest.mark.usefixtures("brief")
def test_the_verb_writes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny("bert").save_pretrained(tmp_path / "dense")
    out = tmp_path / "tables" / "table.json"
    options = ["--batch_size", "2", "--length", "8", "--threads", "1"]
    main(["latency-table", str(tmp_path / "dense"), str(out), *options])
    table = LatencyTable.load(out)
    assert (table.shape, table.machine["threads"]) == ("2x8", 1)
    printed = capsys.readouterr().out
    assert f"The table: {out}" in printed
    assert f"with {UNITS} units" in printed
    with pytest.raises(SystemExit):
        main(["latency-table", str(tmp_path / "dense"), str(out), *options])
    assert "is there already: name another file, or give --overwrite true" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--length", "0"], "length is 0; it must be 1 or more"),
        (["--seconds", "0"], "seconds is 0; it must be more than 0"),
        ([], "has no baseline: give the folder of a dense model with its task's head"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("baseline: none")
    with pytest.raises(SystemExit):
        main(["latency-table", str(tmp_path), str(tmp_path / "table.json"), *options])
    assert message in capsys.readouterr().err


def test_a_sum_within_a_time_is_the_greatest_there_is() -> None:
    table = made_table(LAYOUT, sums_ms=(0.0, 2.0, 4.0, 14.0), together_ms=(2.0, 5.0, 5.0, 16.0))
    assert [table.sum_within(ms) for ms in (1.9, 2.0, 3.5, 5.0, 10.5, 16.0, 99.0)] == [-1, 0, 1, 4, 9, 14, 14]
