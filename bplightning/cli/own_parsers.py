"""Verbs that have parsers of their own, with a line of help each; importing this costs nothing."""

from __future__ import annotations

TRAINING_VERBS = {
    "fit": "Fine-tune and prune, then compact, evaluate and report. With no model or data of yours: a small example.",
    "validate": "Evaluate on the validation set, usually with --config and --ckpt_path of a run.",
    "test": "Evaluate on the test set.",
}
PARSED_THEMSELVES = {
    "prune": "Prune a fine-tuned model without training, then compact, evaluate and report.",
    "plan": "Say what would be pruned with this task, model and strategy, without training.",
    "compare": "Set runs side by side, made for it or there already: score against latency and size.",
}
