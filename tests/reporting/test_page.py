"""The report's page: what it shows is what the report says, in words too; it loads nothing and escapes everything."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from built_reports import built, without_baseline
from parsed_page import Page

from bplightning.cli import main
from bplightning.errors import UserError
from bplightning.reporting.page import draw, report_run, write_drawn
from bplightning.reporting.report import save_report

METRICS = """density/attention,density/feed_forward,density/total,epoch,learning_rate,step,task_loss,teacher_loss,val_f1
1.0,1.0,1.0,0,1e-5,10,2.0,4.0,
0.9,0.8,0.85,0,3e-5,20,1.0,3.0,
,,,0,,20,,,80.5
0.5,0.125,0.25,1,0.0,30,1.25,2.5,
,,,1,,30,,,87.25
"""
SCORES = [
    {"step": 20, "roles": {"attention": {"low": 0.0, "high": 0.0, "pruned": [0] * 40, "kept": [48] + [0] * 39}}},
    {
        "step": 30,
        "roles": {"attention": {"low": -2.5, "high": 1.0, "pruned": [20] + [0] * 39, "kept": [0] * 39 + [28]}},
    },
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder."""
    save_report(built(), tmp_path / "report.json")
    (tmp_path / "metrics.csv").write_text(METRICS)
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in SCORES) + '{"step": 40, "ro')
    return tmp_path


def test_every_picture_says_in_words_what_it_shows(run: Path) -> None:
    page = Page(draw(built(), run))
    titles = [picture.findtext("title") or "" for picture in page.pictures]
    for title in (
        *("Heads of encoder.0.self", "Blocks of encoder.1.self", "Units of encoder.1.feed_forward"),
        *(
            "Density over training by role",
            "f1 on the validation set over training",
            "Scores of attention over training",
            "Training loss over training",
            "Learning rate of the weights over training",
        ),
        *("Latency", "Size and work"),
    ):
        assert title in titles
    for picture in page.pictures:
        named = [picture.find(f"*[@id='{name}']") for name in picture.attrib["aria-labelledby"].split()]
        assert picture.attrib["role"] == "img"
        assert [part.tag for part in named if part is not None and (part.text or "").strip()] == ["title", "desc"]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_numbers_are_those_of_the_report(run: Path) -> None:
    text = draw(built(), run)
    page = Page(text)
    assert re.findall(r'class="big">(.*?)<', text) == ["2.44x", "30.0 %", "87.50"]
    for said in (
        *("2.44x", "2.02x at 1x128", "120.00 ms", "50.00 ms", "400.12 MB", "176.00 MB", "30.0 %", "24.00 M"),
        *("87.50", "f1 (dense 88.50)", "exact_match 79.00 (dense 80.80)", "6 of 12 heads", "300 of 1,024"),
        *("python cli.py fit --strategy hybrid", "A processor", "attention 50.0 %", "kept 28", "pruned 20"),
        *("masked 87.25", "25.0 % kept, 30.0 % stored", "95 %: 85.25 to 89.75", "(95 %: 2.40 to 2.50)"),
    ):
        assert said in page.text, said
    words = {picture.findtext("title"): picture.findtext("desc") or "" for picture in page.pictures}
    assert (
        "feed-forward from 100.0 per cent at step 10 to 12.5 per cent at step 30"
        in words["Density over training by role"]
    )
    assert words["Heads of encoder.1.self"] == "kept: 1, 3; removed: 0, 2"
    assert words["Units of encoder.0.feed_forward"] == "300 of 512 units kept, 58.6 per cent"
    assert words["Training loss over training"].startswith("task from 2 at step 10 to 1.25 at step 30; teacher from 4")
    assert "the highest is 30." in words["Learning rate of the weights over training"]
    assert "between -2.5 and 1; 28 are kept and 20 pruned" in words["Scores of attention over training"]


def test_scores_by_class_and_what_was_taken_for_what(run: Path) -> None:
    words = " ".join(Page(draw(built(), run)).text.split())
    assert "no 200 90.0 % 80.0 % 84.8 % yes 300 – 0.0 % –" in words
    assert "no 160 40 yes 300 0" in words
    assert "dense f1 86.50 to 90.50, compact f1 85.25 to 89.75" in words
    assert "Classes" not in Page(draw(without_baseline(), run)).text


def test_some_answers_and_the_whole_configuration(run: Path) -> None:
    (run / "config.yaml").write_text(
        "seed_everything: 0\nstrategy:\n  class_path: a.Hybrid\n  init_args:\n    target: {density: 0.25}\n"
    )
    page = Page(draw(built(), run))
    for said in ("question Who?", "dense model answer: Ada; score: 0.75", "compact model answer: Bob; score: 0.5"):
        assert said in page.text, said
    assert "strategy a.Hybrid strategy.target.density 0.25" in " ".join(page.text.split())
    (run / "config.yaml").write_text("trainer: {logger: {api_key: abc123}}")  # as an earlier version wrote it
    page = Page(draw(built(), run))
    assert "trainer.logger.api_key <masked>" in " ".join(page.text.split())
    assert "abc123" not in page.text
    (run / "config.yaml").write_text("{")
    assert "whole configuration" not in Page(draw(built(), run)).text


def test_an_unsettled_speed_up_is_marked_on_the_page(run: Path) -> None:
    shaky = {"8x128": {"low": 1.1, "high": 3.0, "settled": False}}
    text = draw(built(speedup_interval=shaky), run)
    assert re.findall(r'class="big">(.*?)<', text)[0] == "2.44x?"
    assert "not settled: measure longer" in Page(text).text


def test_a_model_that_got_zeros_only_is_neither_smaller_nor_faster(run: Path) -> None:
    report = built(speedup={"8x128": 0.98})
    report["parameters"]["compact"] = {"encoder_linear": 80_000_000, "all": 100_000_000}
    page = Page(draw(report, run))
    assert "the dense model's speed at 8x128" in page.text
    assert "faster than" not in page.text
    assert "of the linear weights not zero after pruning; all 80.00 M are stored" in page.text
    assert re.findall(r'class="big">(.*?)<', draw(report, run)) == ["0.98x", "25.0 %", "87.50"]


def test_it_says_how_wide_the_model_is_and_what_is_skipped(run: Path) -> None:
    text = Page(draw(built(), run)).text
    assert "372 of 384 dimensions of the residual stream" in text
    assert "Skipped, each with its norm: encoder.2.self." in text
    assert "Across each band run the dimensions that stay" in text
    text = Page(draw(built(stream={"kept": 384, "total": 384}, skipped=[]), run)).text
    assert "dimensions" not in text
    assert "norm: encoder" not in text
    assert "norms: encoder" not in text


def test_the_map_draws_what_is_left_inside_the_heads_that_stay(run: Path) -> None:
    (blocks,) = (p for p in Page(draw(built(), run)).pictures if p.findtext("title") == "Blocks of encoder.1.self")
    # Of heads 1 and 3: 2 + 2 tiles of the query, 0 + 4 of the key, 2 + 1, and of the output's columns 1 and 3 2 + 2.
    assert "query 50 per cent, key 50 per cent, value 38 per cent, output 50 per cent" in (
        blocks.findtext("desc") or ""
    )
    assert len(blocks.findall("rect[@class='gone']")) == 2 * 4
    drawn = Counter(
        path.get("fill-opacity") for path in blocks.findall("path") for _ in re.findall("M", path.get("d", ""))
    )
    runs_of_nines, runs_of_zeros = (2 + 1) + (0 + 1) + (1 + 1) + (2 + 1), (1 + 2) + (1 + 0) + (2 + 2) + (2 + 2)
    assert drawn == {"1": runs_of_nines, "0.53": 1, None: runs_of_zeros}


def test_the_map_says_which_expert_a_row_is(run: Path) -> None:
    parts = ("expert.0", "expert.1", "shared")
    units = [(f"decoder.3.feed_forward.{part}", range(4), 8) for part in parts]
    report = built(heads_by_layer=[("decoder.3.self", [0], 4)], units_by_layer=units, patterns=[])
    page = Page(draw(report, run))
    assert [word for word in page.words if word.startswith("decoder 3")] == [
        *("decoder 3", "decoder 3, expert 1", "decoder 3, shared")
    ]
    assert "expert 0: 4 of 8 units" in page.words  # beside the layer's heads
    assert page.words.count("4 of 8 units") == 2


def test_the_page_loads_nothing(run: Path) -> None:
    text = draw(built(), run)
    assert not [name for name, _ in Page(text).elements if name in ("script", "link", "img", "iframe", "image", "use")]
    assert not re.search(r"(src|href|url|@import)\s*[=(:]", text)
    assert "://" not in text


def test_hostile_names_are_text(run: Path) -> None:
    hostile = '</title></style><script>alert("1")</script><svg onload=x>\'&amp;'
    report = built()
    report["model"] = report["task"] = report["strategy"] = report["command"] = hostile
    report["versions"] = {hostile: hostile}
    report["metrics"]["compact"] = {hostile: 1.0}
    report["heads"]["by_layer"][0]["name"] = f"encoder.0.{hostile}"
    report["data"] = {"validation": hostile}
    report["samples"] = [{"example": {hostile: hostile}, "dense": None, "compact": {hostile: hostile}}]
    report["classes"] = {
        "scores": [{"name": hostile, "examples": 1, "precision": None, "recall": None, "f1": None}] * 2,
        "confusion": [[1, 0], [0, 1]],
    }
    (run / "config.yaml").write_text(json.dumps({hostile: hostile}))
    page = Page(draw(report, run))
    assert "script" not in {name for name, _ in page.elements}
    assert not [attributes for _, attributes in page.elements if "onload" in attributes]
    assert hostile in page.text


@pytest.mark.parametrize("version", [2, 3, 4])
def test_an_older_report_and_no_curves_give_a_page(tmp_path: Path, version: int) -> None:
    older: Any = copy.deepcopy(without_baseline())
    for key in ("patterns", "data", "monitor", *(("alignment", "mask_hashes", "refill") if version < 4 else ())):
        del older[key]
    (tmp_path / "report.json").write_text(json.dumps(older | {"schema_version": version}))
    page = Page(report_run(tmp_path).read_text())
    assert {picture.findtext("title") for picture in page.pictures} >= {"Heads of encoder.0.self", "Latency"}
    assert "no dense model was timed" in page.text
    assert "During pruning" not in page.text


def test_the_verb_writes_where_it_is_told_and_replaces_nothing_by_chance(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["report", str(run)])
    first = (run / "report.html").read_text()
    assert capsys.readouterr().out == f"The page: {run / 'report.html'}\n"
    (run / "report.html").write_text("older")
    main(["report", str(run), "--output", str(run / "there" / "page.html")])
    assert (run / "there" / "page.html").read_text() == first
    assert (run / "report.html").read_text() == "older"
    with pytest.raises(UserError, match=r"page.html' is there already: name another file, or give --overwrite true\."):
        report_run(run, run / "there" / "page.html")
    with pytest.raises(UserError, match="does not exist: a run writes it at its end"):
        report_run(run / "there")


def test_what_cannot_be_drawn_is_a_warning_and_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> str:
        raise ZeroDivisionError("no width")

    with pytest.warns(UserWarning, match=r"could not be drawn \(ZeroDivisionError: no width\).* are complete; again\."):
        write_drawn(tmp_path / "report.html", fail, again="again.")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed, which would draw the page")
@pytest.mark.parametrize("width", [390, 1280])
def test_chromium_draws_it_without_anything_beyond_its_sides(run: Path, width: int) -> None:
    page = report_run(run)
    measuring = "const root = document.documentElement; document.title = root.scrollWidth + ' of ' + root.clientWidth"
    page.write_text(page.read_text().replace("</body>", f"<script>{measuring}</script></body>"))
    frame = run / "frame.html"  # a window may not be made as narrow as a phone, a frame may
    frame.write_text(
        f"<iframe src='report.html' width={width} height=3000></iframe><script>onload = () => setTimeout(() => "
        "document.title = frames[0].document.title, 300)</script>"
    )
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    options += "--disable-component-update --disable-sync --allow-file-access-from-files --virtual-time-budget=3000"
    done = subprocess.run(
        ["chromium", *options.split(), f"--user-data-dir={run / 'profile'}", "--dump-dom", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout)
    assert found is not None, done.stdout
    assert found[1] == found[2]
    assert width - 20 <= int(found[2]) <= width  # but for a scrollbar
