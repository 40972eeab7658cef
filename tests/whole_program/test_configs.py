"""Every shipped configuration is one the program accepts; every published experiment can be built, and is labelled."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from tiny_squad import NILE, example, save_tokenizer
from tiny_texts import declared, hub_folder
from transformers import (
    AutoModelForQuestionAnswering,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
)

from bplightning.cli.training import PruningCLI
from bplightning.training.module import PruningModule

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "paper").glob("*.yaml"))
EXAMPLES = {
    "rajpurkar/squad": 88_510,  # windows of 384 tokens that share 128
    "rajpurkar/squad_v2": 131_750,
    "mnli": 392_702,
    "qqp": 363_846,
    "sst2": 67_349,
    "abisee/cnn_dailymail": 287_113,
    "EdinburghNLP/xsum": 204_045,
}
"""Training examples of the data sets on the hub, on which the length of a run depends."""


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hub name to a folder that holds something tiny of its kind, with shapes that 32 x 32 divides."""
    root = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 512, "max_position_embeddings": 512}
    sizes |= {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 96}
    found = {}
    for name in ("bert-base-uncased", "bert-large-uncased"):
        found[name] = str(root / name)
        AutoModelForQuestionAnswering.from_config(BertConfig(**sizes)).save_pretrained(found[name])
    for name in (
        "csarron/bert-base-uncased-squad-v1",
        "twmkn9/bert-base-uncased-squad2",
        "bert-large-uncased-whole-word-masking-finetuned-squad",
    ):
        found[name] = found["bert-large-uncased"]
    found["facebook/bart-base"] = str(root / "bart")
    layers: dict[str, Any] = {}
    for part in ("encoder", "decoder"):
        layers |= {f"{part}_layers": 1, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 96}
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    bart = BartConfig(vocab_size=512, d_model=64, max_position_embeddings=1024, **layers, **special)
    BartForConditionalGeneration(bart).save_pretrained(found["facebook/bart-base"])
    for folder in set(found.values()):
        save_tokenizer(Path(folder))
    found |= data_sets(root)
    return found


def data_sets(root: Path) -> dict[str, str]:
    """Hub name of a data set to a folder in its layout, with a few rows."""
    answered, unanswered = example("1", NILE, "How long?", "6650 km"), example("2", NILE, "How deep?")
    pairs = {"mnli": ("premise", "hypothesis"), "qqp": ("question1", "question2")}
    glue = {}
    for name, (text, other) in pairs.items():
        labels = ["entailment", "neutral", "contradiction"] if name == "mnli" else ["not_duplicate", "duplicate"]
        rows = [{text: "the nile", other: "is long", "label": index} for index in range(len(labels))]
        splits = ("train", "validation_matched", "validation_mismatched") if name == "mnli" else ("train", "validation")
        glue[name] = dict.fromkeys(splits, declared(rows, labels))
    rows = [{"sentence": "the nile is long", "label": index} for index in range(2)]
    glue["sst2"] = dict.fromkeys(("train", "validation"), declared(rows, ["negative", "positive"]))

    def plain(name: str, config: str, *records: dict[str, Any]) -> str:
        table = Dataset.from_list(list(records))
        return hub_folder(root / name, {config: {"train": table, "validation": table}})

    return {
        "nyu-mll/glue": hub_folder(root / "glue", glue),
        "rajpurkar/squad": plain("squad", "plain_text", answered),
        "rajpurkar/squad_v2": plain("squad_v2", "squad_v2", answered, unanswered),
        "abisee/cnn_dailymail": plain("cnn_dailymail", "3.0.0", {"article": NILE, "highlights": "the nile"}),
        "EdinburghNLP/xsum": plain("xsum", "default", {"document": NILE, "summary": "the nile"}),
    }


def text_of(path: Path) -> str:
    """A file's comments without their line breaks."""
    return " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))


def replaced(given: dict[str, Any], stand_ins: dict[str, str], cache: Path) -> list[str]:
    """Options that put stand-ins where a recipe names something on the hub."""
    task, teacher = given["task"]["init_args"], given.get("distillation", {}).get("teacher", "baseline")
    options = [f"--task.model={stand_ins[task['model']]}", f"--task.dataset={stand_ins[task['dataset']]}"]
    options += [f"--task.cache_dir={cache}", "--trainer.accelerator=cpu"]
    return options + ([] if teacher == "baseline" else [f"--distillation.teacher={stand_ins[teacher]}"])


def leaves(settings: Any, *path: str) -> dict[tuple[str, ...], Any]:
    """Every single setting with where it stands."""
    if not isinstance(settings, dict):
        return {path: settings}
    return {key: value for name, each in settings.items() for key, value in leaves(each, *path, name).items()}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_published_experiment_can_be_built(
    path: Path, stand_ins: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = yaml.safe_load(path.read_text())
    made = PruningCLI(["fit", f"--config={path}", *replaced(given, stand_ins, tmp_path / "cache")])
    read = leaves(made.settings.as_dict())
    for place, value in leaves(given).items():
        if value not in stand_ins and place[-1] != "class_path":
            assert read[place] == value, place

    module: PruningModule = made.built.module
    strategy, task = module.strategy, made.built.task
    assert (
        strategy.__class__.__module__ == f"bplightning.strategies.{given['strategy']['class_path'].replace('-', '_')}"
    )
    module.trainer = made.trainer
    module.configure_model()
    task.prepare_data()
    task.setup("fit")
    batch = next(iter(task.train_dataloader()))
    assert torch.isfinite(task.loss(module(batch), batch))
    if given.get("distillation", {}).get("teacher", "baseline") != "baseline":
        module.take_teacher()  # which refuses other labels and other tokens
    elif "distillation" in given:
        assert given["baseline"] == "train"
    for role, granularity in given["strategy"]["init_args"].get("granularity", {}).items():
        (tiles,) = {mask.weights_per_entry for mask in strategy.all_masks if mask.role == role}
        assert tiles == {"element": 1, "32x32": 1024, "head": 4 * 32 * 64, "unit": 2 * 64}[granularity], role

    options, settings = given["strategy"]["init_args"], given["task"]["init_args"]
    rows = EXAMPLES[settings.get("dataset_config", settings["dataset"])]
    total = given["trainer"]["max_epochs"] * math.ceil(rows / settings["batch_size"])
    assert made.trainer.max_epochs == given["trainer"]["max_epochs"]
    assert made.trainer.gradient_clip_val == given["trainer"]["gradient_clip_val"]
    assert module.learning_rate == given["model"]["learning_rate"]
    assert module.distillation.teacher is None or module.distillation.alpha_teacher == 0.9
    for group in strategy.parameter_groups(total_steps=total):
        assert group["lr"] == options["score_learning_rate"]
    monkeypatch.setattr(type(made.trainer), "estimated_stepping_batches", total)
    progress = module.progress(total)
    start, end = strategy.window.steps(progress)  # type: ignore[union-attr]  # it refuses a schedule without steps
    assert (end - start) / total > 0.3
    strategy.advance(progress)
    assert strategy.target_reached(progress)
    (said,) = re.findall(r"GPU-hours: .*?([\d,]+) steps", text_of(path))
    assert int(said.replace(",", "")) == pytest.approx(total, rel=0.002)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_published_experiment_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert re.search(r"^# Row: \S", text, re.M)
    assert re.search(r"^# Published score: .*(\d|none published)", text, re.M)
    assert re.search(r"^# Published speed-up: (\d\.\d\dx|none published)", text, re.M)
    assert re.search(r"^# GPU-hours: about [\d.]+ \(an estimate, at \d+ TFLOP/s in float32: ", text, re.M)
    assert f"#     bplightning fit --config configs/paper/{path.name}" in text.splitlines()


VARIATIONS = [(path, options) for path in RECIPES for options in re.findall(r"`(--\S+ [^`]*)`", text_of(path))]


@pytest.mark.parametrize(("path", "options"), VARIATIONS, ids=lambda value: getattr(value, "stem", value))
def test_options_that_a_header_recommends_are_accepted(
    path: Path, options: str, stand_ins: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = replaced(yaml.safe_load(path.read_text()), stand_ins, tmp_path / "cache")
    assert PruningCLI(["fit", f"--config={path}", *own, *options.split()]).built.module.strategy is not None


def test_every_data_set_and_size_of_the_papers_has_its_recipe() -> None:
    tasks = [yaml.safe_load(path.read_text())["task"]["init_args"] for path in RECIPES]
    assert {task.get("dataset_config", task["dataset"]) for task in tasks} == EXAMPLES.keys()
    assert {task["model"] for task in tasks} == {"bert-base-uncased", "bert-large-uncased", "facebook/bart-base"}
