"""What a report warns about, and that table, page, card and JSON all say it."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from built_reports import built, without_baseline
from rich.console import Console

from bplightning.reporting.model_card import model_card
from bplightning.reporting.page import draw
from bplightning.reporting.report import Report, load_report, render, save_report
from bplightning.reporting.run_warnings import collapsed
from bplightning.reporting.table import heads_kept, rows

FULL = {"encoder_linear": 80_000_000, "all": 100_000_000}
LEFT = {"encoder_linear": 1_440_000, "all": 21_000_000}
NEARLY_EMPTY = {"dense": FULL, "masked": LEFT, "compact": LEFT}
NO_HEADS = [
    *(("encoder.0.self", [], 4), ("encoder.1.self", [], 4)),
    *(("decoder.0.self", [1], 4), ("decoder.0.cross", [], 4)),
]
SNAP = {"kind": "density", "target": 0.4, "before": 0.0, "after": 0.39, "changed": 700, "shape": None}


def kinds(report: Report) -> list[str]:
    return [warning["kind"] for warning in report["warnings"]]


def everywhere(report: Report, folder: Path) -> list[str]:
    """The text of the table, the page and the card, each on one line."""
    output = io.StringIO()
    Console(file=output, width=100).print(render(report))
    card = model_card(report, architecture="BertForQuestionAnswering", reader="AutoModelForQuestionAnswering")
    return [" ".join(text.split()) for text in (output.getvalue(), draw(report, folder), card)]


@pytest.mark.parametrize(
    ("changes", "found", "message"),
    [
        ({"parameters": NEARLY_EMPTY}, ["nearly_empty"], "Only 1.8 % of the linear weights is left, less than 5 %"),
        (
            {"vocabulary": {"kept": 900, "total": 30_522, "lost": 0.456}},
            ["other_corpus"],
            "The smaller vocabulary lacks 45.6 % of the validation set",
        ),
        ({"heads_by_layer": NO_HEADS}, ["empty_stack"] * 2, "All 8 heads of self-attention in the encoder are gone"),
        (
            {"units_by_layer": [("encoder.0.feed_forward", [], 512), ("encoder.1.feed_forward", [], 512)]},
            ["empty_stack"],
            "All 1,024 units of the feed-forward layers in the encoder are gone",
        ),
        ({"alike": 96}, ["constant_answer"], "gives the same answer to all of the 96 validation examples looked at"),
        (
            {"metrics": {"dense": {"f1": 88.5}, "compact": {"f1": 40.0}}},
            ["score_lost"],
            "f1 is 40.00 where the dense model has 88.50: less than half as good",
        ),
        (
            {"snap": {**SNAP, "metrics_before": {"f1": 3.0}}},
            ["late_correction"],
            "brought the density to 0; the last correction of the masks then moved it to 0.39 at once",
        ),
    ],
)
def test_it_is_said_in_table_page_card_and_json(
    tmp_path: Path, changes: dict[str, Any], found: list[str], message: str
) -> None:
    report = built(**changes)
    assert kinds(report) == found
    assert message in report["warnings"][0]["message"]
    save_report(report, tmp_path / "report.json")
    assert load_report(tmp_path / "report.json")["warnings"] == report["warnings"]
    for text in everywhere(report, tmp_path):
        assert message in text.replace("\\", "")
    assert collapsed(report) is (found not in (["late_correction"], ["other_corpus"]))


def test_nothing_is_said_of_an_ordinary_run(tmp_path: Path) -> None:
    for report in (built(), without_baseline()):
        assert report["warnings"] == []
        assert not any("Warning" in text for text in everywhere(report, tmp_path))


def test_a_speed_up_is_not_headlined_next_to_a_collapsed_score(tmp_path: Path) -> None:
    page = draw(built(parameters=NEARLY_EMPTY), tmp_path)
    assert page.index('role="alert"') < page.index('class="tiles"')
    assert re.findall(r'class="name">(\w+)<', page) == ["Score", "Speed", "Size"]
    assert "faster than the dense model at 8x128, but the model has collapsed: see the warning" in page
    assert re.findall(r'class="name">(\w+)<', draw(built(), tmp_path)) == ["Speed", "Size", "Score"]


def test_without_a_baseline_the_loss_is_said_to_be_unknown(tmp_path: Path) -> None:
    for text in everywhere(without_baseline(), tmp_path):
        assert "no dense model was evaluated, so what pruning cost is not known" in text
    assert "f1 (dense not known)" in draw(without_baseline(), tmp_path)
    empty = built(parameters=NEARLY_EMPTY, metrics={"compact": {"f1": 58.0}})
    assert "What the score lost is not known without a dense baseline." in empty["warnings"][0]["message"]


def test_where_a_loss_is_the_score_greater_is_worse() -> None:
    def of(dense: float, compact: float) -> Report:
        metrics = {"dense": {"perplexity": dense}, "compact": {"perplexity": compact}}
        return built(metrics=metrics, monitor={"metric": "perplexity", "mode": "min"})

    assert kinds(of(20.0, 41.0)) == ["score_lost"]
    assert kinds(of(20.0, 39.0)) == []


def test_heads_are_counted_one_way_with_both_numbers_where_queries_share_keys(tmp_path: Path) -> None:
    grouped = built(heads_by_layer=[("decoder.0.self", [1, 2], 4)], queries_by_layer={"decoder.0.self": 2})
    assert heads_kept(grouped["heads"]) == "4 of 8 heads (2 of 4 key/value heads)"
    drawn = {label: cells for label, *cells in rows(grouped)}
    assert drawn["heads"] == ["8", "4", "4"]
    assert drawn["key/value heads"] == ["4", "2", "2"]
    assert "4 of 8 heads (2 of 4 key/value heads) and 300 of" in draw(grouped, tmp_path)
    assert heads_kept(built()["heads"]) == "6 of 12 heads"
    assert "key/value heads" not in {label for label, *_ in rows(built())}
