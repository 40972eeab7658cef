"""The model card, read back as the Hub reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from built_reports import built, without_baseline
from huggingface_hub import ModelCard

from bplightning.reporting.model_card import model_card
from bplightning.reporting.report import Report


def card_of(report: Report, architecture: str = "BertForQuestionAnswering") -> ModelCard:
    return ModelCard(model_card(report, architecture=architecture, reader="AutoModelForQuestionAnswering"))


def test_the_hub_reads_its_metadata() -> None:
    data = card_of(built()).data
    assert data.library_name == "transformers"
    assert data.base_model == "bert-base-uncased"
    assert data.pipeline_tag == "question-answering"
    assert data.datasets == "rajpurkar/squad"
    assert data.metrics == ["exact_match", "f1"]
    assert {"bplightning", "hybrid"} <= set(data.tags or [])
    results = {result.metric_type: result for result in data.eval_results or []}
    assert {name: result.metric_value for name, result in results.items()} == {"exact_match": 79.0, "f1": 87.5}
    assert results["f1"].dataset_type == results["f1"].dataset_name == "rajpurkar/squad"
    assert results["f1"].task_type == "question-answering"


def test_it_says_how_to_load_what_it_cost_and_how_it_was_made() -> None:
    text = card_of(built(portable=None)).text
    code = text.partition("```python\n")[2].partition("```")[0]
    assert compile(code, "card", "exec")
    assert code.splitlines()[0].startswith("import bplightning")
    for said in (
        *("30.0 % of the linear weights", "(2.02x at 1x128, 2.44x at 8x128)", "| f1 | 88.50 | 87.50 |"),
        *("    python cli.py fit --strategy hybrid\n", "seed 7", "the compact model was refilled, epochs 2"),
    ):
        assert said in text, said


def test_what_skips_sub_layers_is_called_no_ordinary_model() -> None:
    text = " ".join(card_of(built(portable=None)).text.split())
    assert "It is a dense model with smaller matrices that skips 1 sub-layer with the norm after it, which" in text
    assert "do not: encoder.2.self." in text
    assert "lists the heads, feed-forward units and dimensions of the residual stream that were kept" in text
    assert "ordinary dense model" not in text
    assert "It is an ordinary dense model with smaller matrices." in card_of(built(portable=None, skipped=[])).text


def test_a_portable_model_needs_no_import() -> None:
    text = card_of(built()).text
    assert "import bplightning" not in text
    assert "It is an ordinary checkpoint: every layer is padded with zeros" in text


ZEROS_ONLY = {"encoder_linear": 80_000_000, "all": 100_000_000}


def test_a_model_that_got_zeros_only_is_not_called_smaller() -> None:
    report = built(refill=None)
    report["parameters"]["compact"] = dict(ZEROS_ONLY)  # type: ignore[typeddict-item]
    text = " ".join(card_of(report).text.split())
    assert "the shapes of its layers are unchanged, and 25.0 % of their linear weights are not zero, and it is" in text
    assert "smaller" not in text
    report = built()  # which is refilled
    report["parameters"]["compact"] = dict(ZEROS_ONLY)  # type: ignore[typeddict-item]
    assert "are not zero, before a refill that could fill the others" in " ".join(card_of(report).text.split())


def test_a_model_is_called_faster_only_where_it_is() -> None:
    assert "left, and it is faster (2.02x at 1x128, 2.44x at 8x128)." in " ".join(card_of(built()).text.split())
    for speedup in ({"8x128": 0.98}, {"8x128": 1.004}, {"1x128": 0.97, "8x128": 1.4}):
        told = ", ".join(f"{ratio:.2f}x at {shape}" for shape, ratio in speedup.items())
        text = " ".join(card_of(built(speedup=speedup)).text.split())
        assert f"left; its speed is {told} that of the dense model." in text
        assert "faster" not in text
    assert "speed is" not in card_of(without_baseline()).text
    shaky = built(speedup_interval={"8x128": {"low": None, "high": None, "settled": False}})
    told = "left; its speed is about 2.02x at 1x128, 2.44x? at 8x128 that of the dense model (?: not settled)."
    assert told in " ".join(card_of(shaky).text.split())


def test_a_folder_of_one_s_own_is_named_by_nothing_but_its_last_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = without_baseline()
    report["model"], report["data"], report["monitor"] = str(tmp_path / "secret" / "mine"), None, None
    card = card_of(report, architecture="ThirdPartyModel")
    assert card.data.base_model is None
    assert card.data.pipeline_tag is None
    assert card.data.datasets is None
    assert card.text.lstrip().startswith("# ThirdPartyModel for question answering, pruned by hybrid")
    assert "secret" not in card.content
    monkeypatch.chdir(tmp_path)
    report["model"] = "mine"
    Path("mine").mkdir()
    assert card_of(report).data.base_model is None


def test_the_license_and_the_base_are_those_that_the_base_s_own_card_says(tmp_path: Path) -> None:
    base = "---\nlicense: apache-2.0\nbase_model: google-bert/bert-base-uncased\n---\n# Mine\n"
    (tmp_path / "README.md").write_text(base)
    report = built()
    report["model"] = str(tmp_path)
    card = card_of(report)
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "google-bert/bert-base-uncased")
    assert card.text.lstrip().startswith("# bert-base-uncased for question answering, pruned by hybrid")
    (tmp_path / "README.md").write_text("---\nlicense: [")  # a stranger's file
    assert card_of(report).data.license is None
    assert card_of(report).text.lstrip().startswith("# Bert for question answering, pruned by hybrid")
    (tmp_path / "config.json").write_text('{"license": "mit"}')
    assert card_of(report).data.license == "mit"


def test_hostile_names_stay_within_their_line_and_cell() -> None:
    report = built()
    report["strategy"] = "x\n---\n# <script>alert(1)</script> | `a` [b](c)"
    report["metrics"]["compact"] = {"a | b": 1.0, "nothing": None}
    card = card_of(report)
    assert card.data.library_name == "transformers"
    assert "<script>" not in card.text
    assert "[b](c)" not in card.text
    (row,) = (line for line in card.text.splitlines() if line.startswith("| a "))
    assert row == r"| a \| b | – | 1.00 |"
    assert [result.metric_type for result in card.data.eval_results or []] == ["a | b"]
