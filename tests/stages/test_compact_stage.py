"""The stage that makes a compact model: a smaller vocabulary, and how well it fits."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from tiny_squad import save_tokenizer
from tiny_texts import NAMES, TEXTS, make, rows
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from bplightning.stages.compact_stage import Compacted, Saving, lost_tokens, make_compact
from bplightning.stages.stage_cache import Notes
from bplightning.tasks.classification import Classification


@pytest.fixture
def task(tmp_path: Path) -> Classification:
    """A task whose model knows a few words and spells the others."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=125, max_position_embeddings=64, **sizes))
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    return make(str(tmp_path / "model"), tmp_path, rows(NAMES))


def trimmed(task: Classification, tmp_path: Path, corpus: str) -> Compacted:
    (tmp_path / "corpus.txt").write_text(corpus)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    saving = Saving(vocabulary=tmp_path / "corpus.txt", task_of=lambda folder: task)
    notes = Notes(trainer, None, resume=False)
    masked = task.build_model().eval()
    return make_compact(trainer, task, masked, tmp_path / "out", filling=None, saving=saving, notes=notes, resume=False)


def test_a_vocabulary_of_other_text_is_doubted(task: Classification, tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"\d+\.\d % of the validation set's tokens do not occur in the corpus '.*corpus"
    ):
        made = trimmed(task, tmp_path, "east\nwest\n")
    tokens = [token for text in TEXTS for token in task.tokenizer.tokenize(text)]
    still = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    assert made.vocabulary["lost"] == pytest.approx(sum(token not in still for token in tokens) / len(tokens))
    assert made.vocabulary["lost"] > 0.5


def test_a_vocabulary_of_the_same_text_is_not(task: Classification, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The '.*_dataloader' does not have many workers")
        made = trimmed(task, tmp_path, "\n".join(TEXTS))
    assert made.vocabulary["lost"] == 0
    assert lost_tokens(task, [0]) == 1
