"""Runs as folders: built from a configuration, read back, compacted again, asked for predictions."""

from bplightning.runs.build import BuiltRun
from bplightning.runs.predicting import Predictor, predict, predict_file, predict_iter
from bplightning.runs.reading import checkpoint_of, load_run, task_of_run
from bplightning.runs.saved_model import read_model

__all__ = [
    "BuiltRun",
    "Predictor",
    "checkpoint_of",
    "load_run",
    "predict",
    "predict_file",
    "predict_iter",
    "read_model",
    "task_of_run",
]
