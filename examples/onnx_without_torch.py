"""Ask an exported model with onnxruntime, tokenizers and numpy alone: no torch, no transformers, no bplightning.

    bplightning export runs/qa-hybrid/version_0/compact exported
    pip install onnxruntime tokenizers numpy
    python onnx_without_torch.py exported "Who lives in Dinmouth?" "Sirina Senman lives in Dinmouth."

A question and its passage for a model that answers questions; one sentence (or two) for one that classifies. Prints a
line of JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Encoding, Tokenizer

LONGEST_ANSWER = 30
"""Tokens."""

COUNTED_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Models whose first position comes after the padding token's number."""


class Model:
    """An exported model: a folder with onnx/model.onnx, tokenizer.json and config.json."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        """Read it.

        Args:
            folder: What `bplightning export` wrote.
            threads: CPU threads to compute with; 0 for as many as there are cores.
        """
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        file = folder / "onnx" / "model.onnx"
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def answer(self, *texts: str) -> dict[str, Any]:
        """What the model makes of one text or two.

        Args:
            *texts: A sentence; two; or a question and its passage.
        """
        tokens = self.tokenizer.encode(*texts)
        positions = self.config.get("max_position_embeddings") or len(tokens)
        if self.config["model_type"] in COUNTED_FROM_PADDING:
            positions -= self.config["pad_token_id"] + 1
        if len(tokens) > positions:
            raise SystemExit(f"the text has {len(tokens)} tokens, and the model takes {positions}: give a shorter one.")
        outputs = self.run(tokens)
        if "start_logits" in outputs:
            if len(texts) < 2:
                raise SystemExit("the model answers questions: give a question and a passage.")
            return self.span(tokens, texts[1], outputs["start_logits"][0], outputs["end_logits"][0])
        return self.label(outputs["logits"][0])

    def run(self, tokens: Encoding) -> dict[str, Any]:
        """The model's outputs for one row of tokens."""
        known = {
            "input_ids": tokens.ids,
            "attention_mask": tokens.attention_mask,
            "token_type_ids": tokens.type_ids,
        }
        wanted = [each.name for each in self.session.get_inputs()]
        if unknown := [name for name in wanted if name not in known]:
            raise SystemExit(f"the model reads {', '.join(unknown)}: this is for encoders of text, which do not.")
        fed = {name: np.array([known[name]], dtype=np.int64) for name in wanted}
        return dict(zip(self.outputs, self.session.run(None, fed), strict=True))

    def label(self, logits: Any) -> dict[str, Any]:
        """The likeliest label and its probability; of a regression its number."""
        logits = logits.astype(np.float64)
        if len(logits) == 1:
            return {"score": round(float(logits[0]), 4)}
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = int(probabilities.argmax())
        return {"label": self.config["id2label"][str(best)], "score": round(float(probabilities[best]), 4)}

    def span(self, tokens: Encoding, passage: str, starts: Any, ends: Any) -> dict[str, Any]:
        """The part of the passage with the highest sum of start and end logit."""
        inside = np.array([sequence == 1 for sequence in tokens.sequence_ids])  # of the passage, not of the question
        sums = starts[:, None].astype(np.float64) + ends[None, :]
        allowed = np.triu(np.ones_like(sums, dtype=bool)) & ~np.triu(np.ones_like(sums, dtype=bool), LONGEST_ANSWER)
        sums[~(allowed & inside[:, None] & inside[None, :])] = -np.inf
        first, last = np.unravel_index(sums.argmax(), sums.shape)
        begin, end = tokens.offsets[first][0], tokens.offsets[last][1]
        return {"answer": passage[begin:end], "score": round(float(sums[first, last]), 4)}


def main() -> None:
    """Answer what stands on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `bplightning export` wrote")
    parser.add_argument("texts", nargs="+", metavar="text", help="a sentence, two, or a question and its passage")
    arguments = parser.parse_args()
    if len(arguments.texts) > 2:
        parser.error("give one text or two, each in quotes")
    print(json.dumps(Model(arguments.folder).answer(*arguments.texts), ensure_ascii=False))


if __name__ == "__main__":
    main()
