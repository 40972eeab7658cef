"""Learning from a teacher: the loss, who may be one, and that no checkpoint holds it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from safetensors.torch import load_file, save_file
from tiny_families import tiny, zero_randomly
from tiny_task import TinyTask, rows
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification, BertTokenizer

from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.loading import save_compact
from bplightning.compaction.saved_models import unread_weights
from bplightning.contracts.soft_labels import soft_label_loss
from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.window import PruningWindow
from bplightning.distillation.distillation import Distillation, Teacher
from bplightning.distillation.logit_cache import LogitCache
from bplightning.distillation.teachers import TeacherInputs, require_same_labels
from bplightning.errors import UserError
from bplightning.stages import pipeline
from bplightning.stages.request import RunRequest
from bplightning.strategies.hybrid import Hybrid
from bplightning.training.module import PruningModule


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
    }
    return Trainer(callbacks=list(callbacks), **(settings | options))


def save_teacher(folder: Path, **config: Any) -> str:
    """A teacher of another seed, and of another size where `config` says so, saved as a folder."""
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    tiny("bert", seed=7, **(sizes | config)).save_pretrained(folder / "teacher")
    return str(folder / "teacher")


class Losses(Callback):
    def __init__(self) -> None:
        self.teacher: list[float] = []
        self.state: dict[str, Any] = {}

    def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
        self.teacher.append(float(trainer.callback_metrics["teacher_loss"]))
        self.state = module.state_dict()
        assert not any(parameter.grad is not None for parameter in module._teacher[0].model.parameters())
        assert not module._teacher[0].model.training


def test_soft_label_loss_is_that_of_the_papers() -> None:
    student, teacher = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).unbind(0)
    own, wanted = (log_softmax(logits / 4, dim=-1) for logits in (student, teacher))
    expected = 16 * kl_div(own, wanted, log_target=True, reduction="batchmean")
    torch.testing.assert_close(soft_label_loss(student=student, teacher=teacher, temperature=4.0), expected)


def test_what_both_rule_out_makes_no_nan() -> None:
    student = torch.tensor([[0.5, 1.0, -torch.inf]], requires_grad=True)
    loss = soft_label_loss(student=student, teacher=torch.tensor([[1.0, 1.0, -torch.inf]]), temperature=1.0)
    loss.backward()
    two = soft_label_loss(student=student[:, :2], teacher=torch.ones(1, 2), temperature=1.0)
    torch.testing.assert_close(loss, two)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_where_there_is_no_distribution_nothing_is_diluted() -> None:
    student, teacher = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).unbind(0)
    there = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    expected = soft_label_loss(student=student[there], teacher=teacher[there], temperature=2.0)
    student, teacher = (logits.masked_fill(~there[..., None], -torch.inf) for logits in (student, teacher))
    student.requires_grad_()
    loss = soft_label_loss(student=student, teacher=teacher, temperature=2.0)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("alpha_hidden", [0.0, 0.5])
def test_the_loss_is_the_weighted_sum(tmp_path: Path, alpha_hidden: float) -> None:
    task = TinyTask(tmp_path)
    student = task.build_model()
    settings = Distillation(save_teacher(tmp_path), 3.0, 0.25, 0.5, alpha_hidden)
    teacher = Teacher(settings, task, student)
    batch = next(iter(DataLoader(rows(4, seed=3), batch_size=4)))
    outputs = student(**batch, output_hidden_states=True)
    loss, decided = teacher.loss(outputs.loss, outputs, batch)
    given = teacher.model(**batch, output_hidden_states=True)
    pairs = [(outputs.start_logits, given.start_logits), (outputs.end_logits, given.end_logits)]
    logits = [torch.cat(side, dim=-1) for side in zip(*pairs, strict=True)]  # as the tiny task has them
    torch.testing.assert_close(decided, soft_label_loss(student=logits[0], teacher=logits[1], temperature=3.0))
    distance = torch.stack(
        [(a - b).square().mean() for a, b in zip(outputs.hidden_states[1:], given.hidden_states[1:], strict=True)]
    ).mean()
    torch.testing.assert_close(loss, 0.25 * outputs.loss + 0.5 * decided + alpha_hidden * distance)


def test_a_student_of_fewer_layers_is_matched_evenly(tmp_path: Path) -> None:
    task = TinyTask(tmp_path)
    student = task.build_model()
    settings = Distillation(
        save_teacher(tmp_path, num_hidden_layers=4), alpha_ce=0.0, alpha_teacher=0.0, alpha_hidden=1
    )
    teacher = Teacher(settings, task, student)
    batch = next(iter(DataLoader(rows(4, seed=3), batch_size=4)))
    outputs = student(**batch, output_hidden_states=True)
    given = teacher.model(**batch, output_hidden_states=True).hidden_states
    loss, _ = teacher.loss(outputs.loss, outputs, batch)
    own = outputs.hidden_states
    expected = ((own[1] - given[2]).square().mean() + (own[2] - given[4]).square().mean()) / 2
    torch.testing.assert_close(loss, expected)


def test_padding_is_no_part_of_the_distance(tmp_path: Path) -> None:
    task = TinyTask(tmp_path)
    student = task.build_model()
    teacher = Teacher(Distillation(save_teacher(tmp_path), 2.0, 0.0, 0.0, 1.0), task, student)
    batch = next(iter(DataLoader(rows(4, seed=3), batch_size=4)))
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][:, 8:] = 0
    losses = []
    for value in (6, 9):  # whatever stands in the padding
        batch["input_ids"][:, 8:] = value
        outputs = student(**batch, output_hidden_states=True)
        losses.append(teacher.loss(outputs.loss, outputs, batch)[0])
    torch.testing.assert_close(*losses)


def test_the_student_comes_to_decide_as_its_teacher_which_nothing_holds(tmp_path: Path) -> None:
    watch = Losses()
    distillation = Distillation(save_teacher(tmp_path, num_hidden_layers=3), alpha_ce=0.0, alpha_teacher=1.0)
    module = PruningModule(TinyTask(tmp_path), PruningStrategy(), learning_rate=3e-3, distillation=distillation)
    trainer(tmp_path, watch, max_epochs=12).fit(module, datamodule=module.task)
    assert sum(watch.teacher[-5:]) < 0.5 * sum(watch.teacher[:5])
    keys = set(watch.state)
    assert keys == {f"model.{name}" for name in module.task.build_model().state_dict()}
    assert module._teacher == []  # and after training it takes no memory


@pytest.mark.parametrize(("megabytes", "kept"), [(1.0, 96), (0.01, 89)])  # 112 bytes: 24 logits and a key
def test_a_cached_teacher_says_the_same_and_is_asked_once(tmp_path: Path, megabytes: float, kept: int) -> None:
    folder = save_teacher(tmp_path)
    losses, asked = [], []
    for cache in (0.0, megabytes):
        torch.manual_seed(0)
        distillation = Distillation(folder, cache_megabytes=cache)
        module = PruningModule(TinyTask(tmp_path), PruningStrategy(), learning_rate=3e-3, distillation=distillation)
        watch = Asked()
        trainer(tmp_path, watch, max_epochs=3).fit(module, datamodule=module.task)
        losses.append(watch.teacher)
        asked.append(watch.rows)
        assert watch.kept == (kept if cache else 0)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-6)
    assert asked == [3 * 96, 96 + 2 * (96 - kept)]


class Asked(Losses):
    """Counts the rows that the teacher computes to teach; in the first validation it is evaluated, too."""

    rows = kept = 0

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.trainer = trainer
        module._teacher[0].model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, model: Any, args: Any, inputs: dict[str, Any]) -> None:
        if self.trainer.training:
            self.rows += len(inputs["input_ids"])

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.kept = len(module._teacher[0].cache)


def test_an_example_is_known_however_far_it_is_padded() -> None:
    cache, computed = LogitCache(1.0, classes=3), []

    def classes(inputs: Mapping[str, Tensor]) -> Tensor:
        computed.append(len(inputs["input_ids"]))
        return (inputs["input_ids"] * inputs["attention_mask"]).sum(1, keepdim=True) * torch.tensor([1.0, 2.0, 3.0])

    def batch(*rows: list[int], length: int) -> dict[str, Tensor]:
        padded = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        return {"input_ids": padded, "attention_mask": (padded != 0).int()}

    first = cache.logits(batch([5, 6], [7], length=2), classes)
    again = cache.logits(batch([7], [8, 9, 1], [5, 6], length=4), classes)
    assert computed == [2, 1]
    assert torch.equal(again, torch.stack([first[1], torch.tensor([18.0, 36.0, 54.0]), first[0]]))

    def tokens(inputs: Mapping[str, Tensor]) -> Tensor:
        computed.append(len(inputs["input_ids"]))
        return inputs["input_ids"].float()

    cache = LogitCache(1.0, classes=3)
    for length in (2, 4, 2):  # where each token has its logits, another length is another example
        assert cache.logits(batch([5, 6], length=length), tokens).shape == (1, length)
    assert computed[2:] == [1, 1]


def test_without_a_teacher_the_loss_is_the_tasks(tmp_path: Path) -> None:
    module = PruningModule(TinyTask(tmp_path), PruningStrategy())
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, datamodule=module.task)
    assert "teacher_loss" not in run.callback_metrics
    assert Distillation().settings() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0; it must be above 0"),
        ({"alpha_ce": -1.0}, "alpha_ce is -1; it must be 0 or more"),
        ({"teacher": "x", "alpha_ce": 0.0, "alpha_teacher": 0.0}, "weights are all 0"),
        ({"cache_megabytes": -1.0}, "cache_megabytes is -1; it must be 0 \\(none\\) or more"),
        ({"cache_megabytes": 1.0, "alpha_hidden": 1.0}, "cache_megabytes caches logits, but with alpha_hidden"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Distillation(**options)


def test_other_labels_and_another_order_are_refused() -> None:
    def labelled(*names: str) -> Any:
        options = {"num_labels": len(names), "id2label": dict(enumerate(names))}
        return tiny("bert", auto=AutoModelForSequenceClassification, **options)

    require_same_labels(labelled("bad", "good"), labelled("bad", "good"), name="t")
    require_same_labels(labelled("LABEL_0", "LABEL_1"), labelled("bad", "good"), name="t")
    with pytest.raises(UserError, match=r"'t' has its labels in another order than the model: .'good', 'bad'."):
        require_same_labels(labelled("good", "bad"), labelled("bad", "good"), name="t")
    with pytest.raises(UserError, match=r"'t' has other labels than the model: .*'so so'"):
        require_same_labels(labelled("bad", "so so", "good"), labelled("bad", "good"), name="t")
    with pytest.raises(UserError, match="other labels"):
        require_same_labels(labelled("LABEL_0", "LABEL_1", "LABEL_2"), labelled("bad", "good"), name="t")
    require_same_labels(labelled("BAD", "Good"), labelled("bad", "good"), name="t")
    require_same_labels(labelled("negative", "positive"), labelled("0", "1"), name="t")
    for teacher, own in ((("1", "0"), ("0", "1")), (("a", "A"), ("A", "a"))):
        with pytest.raises(UserError, match="its labels in another order"):
            require_same_labels(labelled(*teacher), labelled(*own), name="t")


def test_models_that_write_have_no_labels_to_compare() -> None:
    one, two = (tiny("gpt2", auto=AutoModelForCausalLM, num_labels=labels) for labels in (1, 2))
    require_same_labels(one, two, name="t")


def test_a_teacher_without_a_trained_head_is_refused_before_a_baseline_is_trained(tmp_path: Path) -> None:
    tiny("bert", hidden_size=64, num_attention_heads=2).bert.save_pretrained(tmp_path / "bare")
    task = TinyTask(tmp_path)
    module = PruningModule(task, Hybrid(), distillation=Distillation(str(tmp_path / "bare")))
    with pytest.raises(UserError, match=r"is not fine-tuned for this task: it has no 'qa_outputs\.weight' and 1 "):
        pipeline.fit(trainer(tmp_path), module, RunRequest(baseline="train"), stage_trainer=pytest.fail)
    teacher = save_teacher(tmp_path)
    words = sorted(task.tokenizer.get_vocab().items(), key=lambda item: (item[1] > 4, -item[1]))
    (tmp_path / "vocab.txt").write_text("\n".join(word for word, _ in words))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(teacher)
    module.distillation = Distillation(teacher)
    with pytest.raises(UserError, match="of the tokenizer's 59 tokens"):
        pipeline.fit(trainer(tmp_path), module, RunRequest(baseline="train"), stage_trainer=pytest.fail)


@pytest.mark.parametrize("model_type", ["pegasus", "marian", "t5", "bart", "distilbert", "modernbert"])
def test_a_whole_model_has_no_random_weights(tmp_path: Path, model_type: str) -> None:
    model = tiny(model_type)
    model.save_pretrained(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    if model_type in ("pegasus", "marian"):  # published files lack the positions, which are computed
        weights = {name: value for name, value in weights.items() if "embed_positions" not in name}
        save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    zero_randomly(model, "heads", seed=0)
    save_compact(compact(model), tmp_path / "compact")
    for folder in ("model", "compact"):
        assert unread_weights(type(model).from_pretrained(tmp_path / folder)) == []


def test_a_teacher_of_another_family_gets_what_it_learned_with(tmp_path: Path) -> None:
    task = TinyTask(tmp_path)
    ids = task.tokenizer("w1 w2", "w3 w4 w5", padding="max_length", max_length=10, return_tensors="pt")
    bert, distilbert = tiny("bert"), tiny("distilbert")
    assert ids["token_type_ids"].sum() == 4
    without = {name: value for name, value in ids.items() if name != "token_type_ids"}
    given = TeacherInputs(bert, distilbert, task, name="t")(without)
    assert given.keys() == ids.keys()
    assert all(torch.equal(given[name], value) for name, value in ids.items())
    assert TeacherInputs(distilbert, bert, task, name="t")(dict(ids)).keys() == without.keys()
    # Where the student could take segments and is given none, the teacher has learned without them, too; and whoever
    # says which tokens stand where has read texts by themselves.
    assert TeacherInputs(bert, bert, task, name="t")(without).keys() == without.keys()
    writers = [tiny(name, auto=AutoModelForMaskedLM) for name in ("bert", "distilbert")]
    assert TeacherInputs(*writers, task, name="t")(without).keys() == without.keys()
    with pytest.raises(UserError, match="the teacher 't' has 8 positions, and the batch is 10 tokens long: lower"):
        TeacherInputs(tiny("bert", max_position_embeddings=8), bert, task, name="t")(dict(ids))
    rotary = tiny("llama", auto=AutoModelForCausalLM, max_position_embeddings=8)
    assert TeacherInputs(rotary, rotary, task, name="t")(without).keys() == without.keys()


@pytest.mark.parametrize(("own", "theirs"), [(60, 67), (67, 60)])
def test_spare_rows_of_a_vocabulary_are_no_tokens(tmp_path: Path, own: int, theirs: int) -> None:
    class Writing(TinyTask):
        def logits(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
            return outputs.logits  # type: ignore[no-any-return]

        def load_model(self, folder: str | Path) -> Any:
            return AutoModelForCausalLM.from_pretrained(folder)

    tiny("llama", seed=7, auto=AutoModelForCausalLM, vocab_size=theirs).save_pretrained(tmp_path / "teacher")
    student = tiny("llama", auto=AutoModelForCausalLM, vocab_size=own)
    teacher = Teacher(Distillation(str(tmp_path / "teacher")), Writing(tmp_path), student)
    batch = {"input_ids": torch.arange(8)[None]}
    _, decided = teacher.loss(torch.tensor(0.0), student(**batch), batch)
    wanted = teacher.model(**batch).logits[..., :60]
    expected = soft_label_loss(student=student(**batch).logits[..., :60], teacher=wanted, temperature=2.0)
    torch.testing.assert_close(decided, expected)


def test_a_teacher_that_gives_no_numbers_shows_in_the_loss() -> None:
    teacher = torch.tensor([[1.0, 2.0], [torch.nan, torch.nan]])
    assert soft_label_loss(student=torch.zeros(2, 2), teacher=teacher, temperature=1.0).isnan()


def test_a_teacher_of_other_tokens_or_width_is_refused(tmp_path: Path) -> None:
    task = TinyTask(tmp_path)
    student = task.build_model()
    with pytest.raises(UserError, match="has 30 tokens, but the task's tokenizer 60"):
        Teacher(Distillation(save_teacher(tmp_path / "few", vocab_size=30)), task, student)
    teacher = save_teacher(tmp_path)
    words = task.tokenizer.get_vocab()
    swapped = [*sorted(words, key=lambda word: words[word])]
    swapped[10], swapped[11] = swapped[11], swapped[10]
    (tmp_path / "swapped.txt").write_text("\n".join(swapped))
    BertTokenizer(str(tmp_path / "swapped.txt")).save_pretrained(teacher)
    with pytest.raises(UserError, match="has other ids for 2 of the tokenizer's 59 tokens, for example 'w"):
        Teacher(Distillation(teacher), task, student)
    wide = save_teacher(tmp_path / "wide", hidden_size=32)
    with pytest.raises(UserError, match="have 32 numbers and the model's 64: use a teacher of the same width"):
        Teacher(Distillation(wide, alpha_hidden=1.0), task, student)


def test_the_runs_own_baseline_may_be_the_teacher(tmp_path: Path) -> None:
    task = TinyTask(tmp_path, max_position_embeddings=128)

    def module() -> PruningModule:
        return PruningModule(
            task,
            Hybrid(window=PruningWindow(final_warmup=2)),
            learning_rate=1e-3,
            distillation=Distillation("baseline"),
        )

    with pytest.raises(UserError, match=r"--distillation.teacher baseline needs a baseline: pass --baseline train"):
        pipeline.fit(trainer(tmp_path), module())
    watch, pruned = Losses(), module()
    given = dict(vars(pruned.distillation))
    pipeline.fit(
        trainer(tmp_path / "run", watch, max_steps=3),
        pruned,
        RunRequest(baseline="train", start="baseline"),
        stage_trainer=lambda folder, _: trainer(folder, max_steps=3),
    )
    assert watch.teacher[0] == pytest.approx(0, abs=0.1)  # the student starts as its teacher, but for dropout
    assert watch.teacher[-1] > 0
    assert vars(pruned.distillation) == given  # the user's settings, which still name no folder
