"""What the documentation's commands name, small: models, data sets of the hub, files of data, runs, a strategy."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, Value
from tiny_squad import NILE, example, save_tokenizer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from bplightning.tasks.embedded.classification import generate
from bplightning.tasks.embedded.qa import generate as asked_of_passages
from bplightning.tasks.shared.pretrained import EMBEDDED_MODEL

ROOT = Path(__file__).parents[2]
TEXT = "The Nile is 6650 km long. It flows north, through Egypt.\n" * 40
BERT: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
}
MIXTRAL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "num_local_experts": 8,
    "max_position_embeddings": 512,
}


def make(shelf: Path) -> None:
    """Fill a folder, but for runs, which the program itself makes."""
    labels = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    models: dict[str, PreTrainedModel] = {
        "bert-base-uncased": BertModel(BertConfig(**BERT)),
        "csarron/bert-base-uncased-squad-v1": BertForQuestionAnswering(BertConfig(**BERT)),
        "FINE_TUNED_FOLDER": BertForSequenceClassification(BertConfig(**BERT | {"intermediate_size": 512}, **labels)),
        "DENSE_FOLDER": BertForQuestionAnswering(BertConfig.from_pretrained(EMBEDDED_MODEL, dtype="float32")),
        **{name: BertModel(BertConfig(**BERT)) for name in ("MINILM_FOLDER", "COMPACT_FOLDER")},
        "RERANKER_FOLDER": BertForSequenceClassification(BertConfig(**BERT, num_labels=1)),
        **{name: MixtralForCausalLM(MixtralConfig(**MIXTRAL)) for name in ("FOLDER", "DENSE", "COMPACT")},
    }
    models["COMPACT"].load_state_dict(models["DENSE"].state_dict())
    with torch.no_grad():  # as pruning one of two leaves it
        for parameter in models["COMPACT"].model.layers[0].mlp.experts.parameters():
            parameter[..., ::2] = 0
    for name, model in models.items():
        model.save_pretrained(shelf / name)
        save_tokenizer(shelf / name)
        AutoTokenizer.from_pretrained(shelf / name, model_max_length=512).save_pretrained(shelf / name)
    questions(shelf)
    sentences(shelf)
    lines = [{"text": f"Where does river {n} flow?", "text_pair": f"River {n} flows north."} for n in range(16)]
    (shelf / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (shelf / "labelled.jsonl").write_text("".join(json.dumps(line | {"label": 1}) + "\n" for line in lines))
    for name in ("texts.txt", "held-out.txt"):
        (shelf / name).write_text(TEXT)
    rows = [("text", "label"), *((each["text"], n % 2) for n, each in enumerate(generate("train", size=64)))]
    for name in ("train", "validation"):
        with (shelf / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    (shelf / "configs").symlink_to(ROOT / "configs")
    (shelf / "recipe.yaml").symlink_to(ROOT / "configs" / "paper" / "squad-v1-hybrid.yaml")
    files = "{model: bert-base-uncased, train_file: a.json, validation_file: b.json}"
    (shelf / "my.yaml").write_text(f"task: {{class_path: qa, init_args: {files}}}\n")
    book = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## Add a strategy\n")[2]
    (shelf / "my_file.py").write_text(re.findall(r"^```python\n(.*?)^```$", book, flags=re.M | re.S)[0])


def questions(shelf: Path) -> None:
    """SQuAD, as a data set of the hub and as files in its own format."""
    rows = [example(f"{n}", NILE, "How long is the Nile?", "6650 km") for n in range(32)]
    (shelf / "rajpurkar/squad").mkdir(parents=True)
    for split in ("train", "validation"):
        Dataset.from_list(rows).to_parquet(shelf / "rajpurkar/squad" / f"{split}.parquet")
    answer = {"text": "6650 km", "answer_start": NILE.index("6650")}
    asked = [{"id": f"{n}", "question": "How long is the Nile?", "answers": [answer]} for n in range(32)]
    file = {"version": "1.1", "data": [{"title": "Nile", "paragraphs": [{"context": NILE, "qas": asked}]}]}
    for name in ("a.json", "b.json"):
        (shelf / name).write_text(json.dumps(file))
    (shelf / "questions.jsonl").write_text(json.dumps({"question": "How long is the Nile?", "context": NILE}) + "\n")


def sentences(shelf: Path) -> None:
    """SST-2 in the hub's layout, and files of lines with text and label."""
    records = generate("train", size=64)
    for name in ("train", "validation", "a", "b"):
        (shelf / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    passages = [(each["question"], each["context"]) for each in asked_of_passages("validation", size=500)]
    corpus = [each["text"] for each in records] + [text for pair in passages for text in pair]
    (shelf / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in corpus))
    columns = Features(
        {"sentence": Value("string"), "label": ClassLabel(names=["negative", "positive"]), "idx": Value("int32")}
    )
    rows = [{"sentence": each["text"], "label": n % 2, "idx": n} for n, each in enumerate(records)]
    glue = shelf / "nyu-mll/glue"
    (glue / "sst2").mkdir(parents=True)
    listed = []
    for split in ("train", "validation"):
        Dataset.from_list(rows, features=columns).to_parquet(glue / "sst2" / f"{split}.parquet")
        listed.append(f"      - {{split: {split}, path: sst2/{split}.parquet}}")
    lines = ["---", "configs:", "  - config_name: sst2", "    data_files:", *listed, "---"]
    (glue / "README.md").write_text("\n".join(lines) + "\n")
