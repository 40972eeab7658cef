"""The classification task: every kind of label, GLUE, what it measures, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, Features, Value
from tiny_texts import NAMES, NUMBERS, SEVERAL, TEXTS, declared, hub_folder, make, rows
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, GPT2Config, GPT2Model

from bplightning.errors import UserError
from bplightning.tasks.classification import GLUE_COLUMNS, Classification
from bplightning.tasks.shared.class_labels import MULTI, REGRESSION, SINGLE, Labels
from bplightning.tasks.shared.label_scores import scores_of

KINDS = {SINGLE: NAMES, MULTI: SEVERAL, REGRESSION: NUMBERS}


def learn(task: Classification, *, steps: int = 100) -> dict[str, float]:
    """Learn the training data by heart, without dropout, and measure on the validation data."""
    model = task.build_model().eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = list(task.train_dataloader())
    for step in range(steps):
        batch = batches[step % len(batches)]
        loss = task.loss(model(**task.model_inputs(batch)), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return measure(task, model)


@torch.no_grad()
def measure(task: Classification, model: Any) -> dict[str, float]:
    metric = task.build_metric()
    for batch in task.val_dataloader():
        metric.update(task.evaluate_batch(model.eval(), batch), batch)
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize(
    ("kind", "monitor", "least", "names"),
    [
        (SINGLE, "accuracy", 99, {"accuracy", "f1", "matthews"}),
        (MULTI, "f1", 72, {"f1", "f1_macro", "exact_match"}),  # 67 for one who says yes to everything
        (REGRESSION, "pearson", 90, {"pearson", "spearman", "mse"}),
    ],
)
def test_it_learns_each_kind_of_label(
    kind: str, monitor: str, least: float, names: set[str], bert_folder: str, tmp_path: Path
) -> None:
    task = make(bert_folder, tmp_path, rows(KINDS[kind]))
    assert (task.labels.kind, task.monitor, task.monitor_mode) == (kind, monitor, "max")
    found = learn(task)
    assert set(found) == names
    assert found[monitor] > least
    assert task.build_model().config.problem_type == kind


def test_a_pair_is_read_whole(bert_folder: str, tmp_path: Path) -> None:
    records = rows(NAMES, text_pair=[*TEXTS[1:], TEXTS[0]])
    task = make(bert_folder, tmp_path, records)
    (batch,) = [batch for batch in task.val_dataloader() if 0 in batch["index"]]
    row = batch["index"].tolist().index(0)
    expected = task.tokenizer(TEXTS[0], TEXTS[1])
    length = len(expected["input_ids"])
    assert batch["input_ids"][row, :length].tolist() == expected["input_ids"]
    assert batch["token_type_ids"][row, :length].tolist() == expected["token_type_ids"]


def test_an_empty_text_is_fine(bert_folder: str, tmp_path: Path) -> None:
    task = make(bert_folder, tmp_path, [{"text": "", "label": "a"}, {"text": "the sea", "label": "b"}])
    assert learn(task)["accuracy"] == 100


def test_long_texts_are_cut(bert_folder: str, tmp_path: Path) -> None:
    task = make(bert_folder, tmp_path, [{"text": "sea " * 90, "label": "a"}, {"text": "a", "label": "b"}], max_length=9)
    assert sorted(task.features("train")["length"][:]) == [3, 9]


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_other_formats_say_the_same(ending: str, bert_folder: str, tmp_path: Path) -> None:
    files = {}
    for kind, labels in KINDS.items():
        cells = [",".join(label) for label in SEVERAL] if kind == MULTI and ending != "parquet" else labels
        table, path = Dataset.from_list(rows(cells)), tmp_path / f"{kind}.{ending}"
        table.to_parquet(path) if ending == "parquet" else table.to_csv(path, sep="\t" if ending == "tsv" else ",")
        files[kind] = str(path)
    for kind, file in files.items():
        options = {"train_file": file, "validation_file": file, "problem_type": MULTI if kind == MULTI else None}
        task = Classification(model=bert_folder, cache_dir=str(tmp_path / "cache"), **options)
        lines = make(bert_folder, tmp_path, rows(KINDS[kind]))
        assert task.labels == lines.labels
        for column in ("input_ids", "labels"):
            assert task.features("train")[column][:] == lines.features("train")[column][:]


def test_stars_are_classes_or_numbers_as_the_user_says(bert_folder: str, tmp_path: Path) -> None:
    stars = rows([1, 5, 3, 2, 4, 1])
    assert make(bert_folder, tmp_path, stars).labels.names == ("1", "2", "3", "4", "5")
    task = make(bert_folder, tmp_path, stars, problem_type=REGRESSION)
    assert task.features("train")["labels"][:] == [1.0, 5.0, 3.0, 2.0, 4.0, 1.0]
    assert task.build_model().config.num_labels == 1


# -- labels of models ----------------------------------------------------------------------------------------------


def named(folder: Path, bert_folder: str, *names: str, **fields: Any) -> str:
    """A fine-tuned model with labels of its own."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    config = BertConfig(vocab_size=512, max_position_embeddings=64, **sizes, **labels, **fields)
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(folder)
    return str(folder)


def test_labels_reach_the_configuration(bert_folder: str, tmp_path: Path) -> None:
    config = make(bert_folder, tmp_path, rows(NAMES)).build_model().config
    assert (config.id2label, config.label2id) == ({0: "long", 1: "short"}, {"long": 0, "short": 1})


def test_the_head_of_a_model_with_the_same_labels_is_kept(bert_folder: str, tmp_path: Path) -> None:
    folder = named(tmp_path / "model", bert_folder, "short", "long")
    task = make(folder, tmp_path, rows(NAMES))
    assert task.labels.names == ("short", "long")
    saved = BertForSequenceClassification.from_pretrained(folder).classifier.weight
    assert torch.equal(task.build_model().classifier.weight, saved)
    assert task.features("train")["labels"][:] == [1, 0, 1, 1, 0, 0]


def test_a_model_of_other_labels_gets_a_new_head(bert_folder: str, tmp_path: Path) -> None:
    folder = named(tmp_path / "model", bert_folder, "a", "b", "c")
    model = make(folder, tmp_path, rows(NAMES)).build_model()
    assert model.classifier.weight.shape == (2, 16)
    assert model.config.id2label == {0: "long", 1: "short"}
    body = BertForSequenceClassification.from_pretrained(folder).bert.state_dict()
    assert all(torch.equal(value, body[name]) for name, value in model.bert.state_dict().items())
    assert make(folder, tmp_path, rows(NUMBERS)).build_model().classifier.weight.shape == (1, 16)


@pytest.mark.parametrize("names", [("short", "long"), ("brief", "long"), ("a", "b", "c")])
def test_a_baseline_of_other_labels_is_refused(names: tuple[str, ...], bert_folder: str, tmp_path: Path) -> None:
    folder = named(tmp_path / "dense", bert_folder, *names)
    task = make(bert_folder, tmp_path, rows(NAMES))
    message = rf"dense' is for other labels, .* it predicts '{names[0]}', .*, and the data has 'long', 'short'"
    with pytest.raises(UserError, match=message):
        task.load_model(folder)
    fine = named(tmp_path / "fine", bert_folder, "long", "short")
    assert task.load_model(fine).config.id2label == {0: "long", 1: "short"}


def test_nothing_is_measured_with_other_labels(bert_folder: str, tmp_path: Path) -> None:
    task = make(bert_folder, tmp_path, rows(NAMES))
    other = BertForSequenceClassification.from_pretrained(named(tmp_path / "m", bert_folder, "short", "long"))
    with pytest.raises(UserError, match="is for other labels, or for the same in another order"):
        measure(task, other)


def test_validation_alone_takes_the_labels_of_the_model(bert_folder: str, tmp_path: Path) -> None:
    folder = named(tmp_path / "model", bert_folder, "short", "long")
    task = make(folder, tmp_path, None, rows(NAMES))
    assert task.features("validation")["labels"][:] == [1, 0, 1, 1, 0, 0]
    by_number = make(folder, tmp_path, None, rows([1, 0, 1, 1, 0, 0]))
    assert by_number.features("validation")["labels"][:] == [1, 0, 1, 1, 0, 0]
    with pytest.raises(UserError, match=r"example 6 of '.*validation\.jsonl' has the label 'odd'.*'short', 'long'"):
        make(folder, tmp_path, None, rows([*NAMES[:5], "odd"])).features("validation")


def test_a_language_model_that_knows_no_padding(bert_folder: str, tmp_path: Path) -> None:
    GPT2Model(GPT2Config(vocab_size=512, n_embd=16, n_layer=1, n_head=2, n_positions=64)).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(bert_folder, pad_token=None, eos_token="[SEP]")
    assert tokenizer.pad_token is None
    tokenizer.save_pretrained(tmp_path)
    task = make(str(tmp_path), tmp_path, rows(NAMES))
    model = task.build_model()
    assert model.config.pad_token_id == task.tokenizer.eos_token_id
    assert all(0 <= value <= 100 for value in measure(task, model).values() if not math.isnan(value))


def test_what_a_teacher_hands_on(bert_folder: str, tmp_path: Path) -> None:
    student, teacher = torch.tensor([[0.5, -1.0]]), torch.tensor([[2.0, 1.0]])

    def loss(labels: Any, student: Any, teacher: Any) -> float:
        task = make(bert_folder, tmp_path, rows(labels))
        own, wanted = (task.logits(type("Outputs", (), {"logits": each}), {}) for each in (student, teacher))
        assert task.distillation_loss(wanted, wanted, temperature=2.0).item() == pytest.approx(0, abs=1e-6)
        return task.distillation_loss(own, wanted, temperature=2.0).item()

    p, q = (student / 2).softmax(-1), (teacher / 2).softmax(-1)
    assert loss(NAMES, student, teacher) == pytest.approx(4 * float((q * (q / p).log()).sum()), rel=1e-4)
    p, q = (student / 2).sigmoid(), (teacher / 2).sigmoid()
    each = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    assert loss(SEVERAL, student, teacher) == pytest.approx(4 * float(each.mean()), rel=1e-4)
    assert loss(NUMBERS, student[:, :1], teacher[:, :1]) == pytest.approx(1.5**2)


# -- GLUE ----------------------------------------------------------------------------------------------------------


def glue(folder: Path) -> str:
    """GLUE's nine configurations, small: columns, types and splits as on the hub."""
    splits: dict[str, dict[str, Dataset]] = {}
    for config, columns in GLUE_COLUMNS.items():
        texts = {name: [f"{text} {place}" for text in TEXTS] for place, name in enumerate(columns)}
        records = [{name: texts[name][row] for name in columns} for row in range(len(TEXTS))]
        numbers = [0, 1, 2, 1, 0, 2] if config == "mnli" else [0, 1, 0, 1, 1, 0]
        if config == "stsb":
            given = [record | {"label": label} for record, label in zip(records, NUMBERS, strict=True)]
            features = Features(dict.fromkeys(columns, Value("string")) | {"label": Value("float32")})
            table = Dataset.from_list(given, features=features)
        else:
            names = ["entailment", "neutral", "contradiction"] if config == "mnli" else ["negative", "positive"]
            table = declared([r | {"label": n} for r, n in zip(records, numbers, strict=True)], names)
        table = table.add_column("idx", list(range(len(table))))
        validation = {"validation": table}
        if config == "mnli":
            validation = {"validation_matched": table, "validation_mismatched": table.select([5, 4, 3])}
        splits[config] = {"train": table, **validation}
    return hub_folder(folder / "glue", splits)


@pytest.fixture(scope="module")
def glue_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return glue(tmp_path_factory.mktemp("hub"))


def of_glue(config: str | None, folder: str, model: str, cache: Path, **options: Any) -> Classification:
    return Classification(model=model, dataset=folder, dataset_config=config, cache_dir=str(cache), **options)


@pytest.mark.parametrize("config", GLUE_COLUMNS)
def test_each_of_glue(config: str, glue_folder: str, bert_folder: str, tmp_path: Path) -> None:
    task = of_glue(config, glue_folder, bert_folder, tmp_path)
    official = {"cola": "matthews", "stsb": "pearson"}.get(config, "accuracy")
    assert task.monitor == official
    columns = [f"{TEXTS[0]} {place}" for place in range(len(GLUE_COLUMNS[config]))]
    assert task.features("train")["input_ids"][0] == task.tokenizer(*columns)["input_ids"]
    metrics = measure(task, task.build_model())
    assert official in metrics
    assert {"mrpc": "f1", "qqp": "f1", "stsb": "spearman", "mnli": "accuracy_mismatched"}.get(
        config, official
    ) in metrics


def test_both_sets_of_mnli_are_told_apart(glue_folder: str, bert_folder: str, tmp_path: Path) -> None:
    task = of_glue("mnli", glue_folder, bert_folder, tmp_path)
    assert len(task.features("validation")) == 9
    metric = task.build_metric()
    for batch in task.val_dataloader():
        right = torch.nn.functional.one_hot(batch["labels"], 3).float()
        right[batch["index"] == 6] = -right[batch["index"] == 6]  # the first of three mismatched ones is wrong
        metric.update(type("Outputs", (), {"logits": right}), batch)
    values = {name: round(value.item(), 1) for name, value in metric.compute().items()}
    assert (values["accuracy"], values["accuracy_mismatched"]) == (100.0, 66.7)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "dataset_config is None, and .*glue' has several: give --task.dataset_config one of cola, mnli, .*wnli"),
        ("sst-2", "dataset_config is 'sst-2', .* one of cola"),
        ("ax", "dataset_config is 'ax', which has no training data: train mnli"),
    ],
)
def test_what_glue_has_not(config: str | None, message: str) -> None:
    for name in ("nyu-mll/glue", "some/folder/glue"):
        with pytest.raises(UserError, match=message):
            Classification(model="m", dataset=name, dataset_config=config)


def test_columns_of_glue_may_be_chosen(glue_folder: str, bert_folder: str, tmp_path: Path) -> None:
    task = of_glue("mnli", glue_folder, bert_folder, tmp_path, columns={"text": "hypothesis", "text_pair": "premise"})
    assert task.examples("train")[0]["text"] == f"{TEXTS[0]} 1"


def test_another_data_set_of_the_hub(bert_folder: str, tmp_path: Path) -> None:
    tables = {"plain": {"train": Dataset.from_list(rows(NAMES)), "validation": Dataset.from_list(rows(NAMES))}}
    folder = hub_folder(tmp_path / "mine", tables)
    task = Classification(model=bert_folder, dataset=folder, cache_dir=str(tmp_path / "cache"))
    assert task.labels.names == ("long", "short")
    assert task.monitor == "accuracy"


# -- metrics -------------------------------------------------------------------------------------------------------


def test_f1_is_of_the_class_that_the_data_names_second() -> None:
    rows = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 1.0], [0.0, 1.0, 1.0]])  # predicted 0 0 1, right 0 1 1
    assert scores_of(Labels(SINGLE, ("no", "yes")), rows)["f1"].item() == pytest.approx(100 * 2 / 3)
    flipped = torch.tensor([[1.0, 2.0, 1.0], [1.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
    found = scores_of(Labels(SINGLE, ("yes", "no"), positive=0), flipped)
    assert found["f1"].item() == pytest.approx(100 * 2 / 3)
    uneven = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [2.0, 1.0, 1.0]])
    assert scores_of(Labels(SINGLE, ("no", "yes")), uneven)["f1"].item() == 0


def test_values_against_the_definitions() -> None:
    several = torch.tensor([[1.0, -1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0], [-1.0, 1.0, 0.0, 1.0]])
    found = scores_of(Labels(MULTI, ("a", "b")), several)
    assert found["f1"].item() == pytest.approx(100 * 2 * 3 / (2 * 3 + 1))
    assert found["f1_macro"].item() == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert found["exact_match"].item() == pytest.approx(100 * 2 / 3)
    numbers = torch.tensor([[1.0, 1.0], [2.0, 2.0], [9.0, 3.0]], dtype=torch.float64)
    found = scores_of(Labels(REGRESSION), numbers)
    assert found["spearman"].item() == pytest.approx(100, rel=1e-5)
    assert found["mse"].item() == pytest.approx(12)
    assert found["pearson"].item() == pytest.approx(100 * 8 / math.sqrt(38 * 2), rel=1e-5)


NOISE = [[2.0, 1.0], [2.0 + 1e-6, 2.0]]  # as of a network that is pruned away


@pytest.mark.parametrize("values", [[[1.0, 1.0], [1.0, 2.0]], [[1.0, 2.0], [3.0, 2.0]], [[1.0, 2.0]], NOISE])
def test_a_constant_has_no_correlation(values: list[list[float]]) -> None:
    found = scores_of(Labels(REGRESSION), torch.tensor(values))
    assert found["pearson"] == found["spearman"] == 0  # no NaN, which would never be the best, nor warned of


ONES = [1] * 721 + [0] * 322  # MRPC's validation set has such shares


@pytest.mark.parametrize(
    ("predicted", "targets", "classes", "f1", "matthews"),
    [
        ([1] * 1043, ONES, 2, 200 * 721 / (721 + 1043), 0),  # one class is all that it says
        ([1] * 10, [1] * 9 + [0], 2, 100 * 18 / 19, 0),
        ([1] * 4, [0] * 4, 2, 0, 0),
        ([0] * 4, [0] * 4, 2, 0, 0),  # all right, but there is nothing to tell apart
        ([1] * 4, [1] * 4, 3, 100, 0),
        ([0, 1, 1, 1], [0, 0, 1, 0], 3, 50, 100 / 3),
        ([0, 1, 2, 2], [0, 1, 1, 2], 3, 100 * (1 + 2 / 3 + 2 / 3) / 3, 100 * 7 / 10),
    ],
)
def test_one_class_only_scores_as_scikit_learn_has_it(
    predicted: list[int], targets: list[int], classes: int, f1: float, matthews: float
) -> None:
    logits = torch.eye(classes)[torch.tensor(predicted)]
    rows = torch.cat([logits, torch.tensor(targets)[:, None]], dim=1).double()
    found = scores_of(Labels(SINGLE, ("a", "b", "c")[:classes]), rows)
    assert found["f1"].item() == pytest.approx(f1, abs=1e-4)
    assert found["matthews"].item() == pytest.approx(matthews, abs=1e-9)
    right = sum(one == other for one, other in zip(predicted, targets, strict=True))
    assert found["accuracy"].item() == pytest.approx(100 * right / len(targets))


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION])
def test_no_example_and_nothing_to_find_are_nought(kind: str) -> None:
    labels, width = Labels(kind, ("a", "b")), {SINGLE: 3, MULTI: 4, REGRESSION: 2}[kind]
    assert {value.item() for value in scores_of(labels, torch.zeros(0, width)).values()} == {0.0}
    nothing = torch.cat([-torch.ones(3, width - 2), torch.zeros(3, 2)], dim=1)  # no label is predicted, none is there
    assert all(torch.isfinite(value) for value in scores_of(labels, nothing).values())
    if kind == MULTI:
        assert scores_of(labels, nothing)["f1"] == scores_of(labels, nothing)["f1_macro"] == 0


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        (rows([*NAMES[:5], None]), {}, r"example 6 of '.*train\.jsonl' has no label"),
        (rows(NAMES)[:1], {}, "has one label only, 'long'"),
        (rows([[0, 1, 0]] * 6), {}, r"example 1 of '.*train\.jsonl' has a label more than once, \['0', '1', '0'\]"),
        (rows(NAMES), {"problem_type": REGRESSION}, "example 1 of .* has the label 'long', where a regression needs"),
        (rows(NUMBERS), {"problem_type": MULTI}, "set problem_type to what they are"),
        ([{"text": 3, "label": "a"}, {"text": 4, "label": "b"}], {}, "column 'text' of .* must hold texts"),
        ([{"text": None, "label": "a"}, {"text": "b", "label": "b"}], {}, "example 1 of .* has no 'text'"),
        (rows(NAMES, text_pair=[*TEXTS[1:], None]), {}, "example 6 of .* has no 'text_pair'"),
        ([{"sentence": "a", "label": "b"}], {}, r"lacks the columns \['text'\].*--task\.columns\.text=sentence"),
        (rows(NAMES), {"columns": {"labels": "label"}}, "columns names 'labels', which is no column of this task"),
    ],
)
def test_data_that_is_not_right(
    train: Any, options: dict[str, Any], message: str, bert_folder: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        make(bert_folder, tmp_path, train, **options).prepare_data()


def test_a_label_that_training_does_not_know(bert_folder: str, tmp_path: Path) -> None:
    task = make(bert_folder, tmp_path, rows(NAMES), rows([*NAMES[:3], "tall", *NAMES[4:]]))
    message = r"example 4 of '.*validation\.jsonl' has the label 'tall', which the training data or the model does not"
    with pytest.raises(UserError, match=message):
        task.prepare_data()


def test_examples_without_a_label_are_left_out(bert_folder: str, tmp_path: Path) -> None:
    table = declared(rows((0, -1, 1, 0, 1, -1)), ["yes", "no"])  # as in SNLI
    folder = hub_folder(tmp_path / "snli", {"plain": {"train": table, "test": table}})
    cache = str(tmp_path / "cache")
    task = Classification(model=bert_folder, dataset=folder, dataset_config="plain", cache_dir=cache)
    assert task.examples("train")["label"][:] == ["yes", "no", "yes", "no"]
    assert task.examples("validation")["text"][:] == [TEXTS[row] for row in (0, 2, 3, 4)]  # of the test set
