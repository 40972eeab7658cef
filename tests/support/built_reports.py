"""Reports as a run builds them, for tests of what is drawn from them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from bplightning.io.provenance import now, versions
from bplightning.reporting.findings import Differences, Origin, Scores, Sizes, Speed, StagesDone, Structure
from bplightning.reporting.report import Report, build_report


def built(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "task": "qa",
        "strategy": "hybrid",
        "model": "bert-base-uncased",
        "metrics": {
            "dense": {"exact_match": 80.8, "f1": 88.5},
            "masked": {"exact_match": 79.0, "f1": torch.tensor(87.25)},
            "compact": {"exact_match": 79.0, "f1": 87.5},
        },
        "monitor": {"metric": "f1", "mode": "max"},
        "data": {"dataset": "rajpurkar/squad", "dataset_config": None, "validation": "rajpurkar/squad"},
        "evaluation": {"examples": 500},
        "density_by_role": {"attention": 0.5, "feed_forward": torch.tensor(0.125)},
        "heads_by_layer": [
            ("encoder.0.self", [0, 1, 2, 3], 4),
            ("encoder.1.self", [1, 3], 4),
            ("encoder.2.self", [], 4),
        ],
        "units_by_layer": [("encoder.0.feed_forward", range(300), 512), ("encoder.1.feed_forward", [], 512)],
        "stream": {"kept": 372, "total": 384},
        "skipped": ["encoder.2.self"],
        "patterns": [
            {
                **{"name": "encoder.1.self", "tile": [32, 32]},
                "projections": {
                    **{"query": "0000 9009 0000 0940", "key": "0000 0000 0000 9999"},
                    **{"value": "0000 0990 0000 0090", "output": "0900 0009 0909 0000"},
                },
            }
        ],
        "parameters": {
            "dense": {"encoder_linear": 80_000_000, "all": 100_000_000},
            "masked": {"encoder_linear": 20_000_000, "all": 40_000_000},
            "compact": {"encoder_linear": 24_000_000, "all": 44_000_000},
        },
        "vocabulary": {"kept": 30_522, "total": 30_522},
        "dtype": "float32",
        "bytes_on_disk": {"dense": 400_123_456, "compact": 176_000_000},
        "flops": {"dense": 12_340_000_000, "compact": 5_000_000_000},
        "flops_shape": "8x128",
        "latency_ms": {"dense": {"1x128": 20.0, "8x128": 120.0}, "compact": {"1x128": 10.0, "8x128": 50.0}},
        "speedup": {"1x128": 2.02, "8x128": 2.44},
        "speedup_interval": {
            "1x128": {"low": 2.0, "high": 2.05, "settled": True},
            "8x128": {"low": 2.4, "high": 2.5, "settled": True},
        },
        "intervals": {"dense": {"f1": [86.5, 90.5]}, "compact": {"f1": [85.25, 89.75]}},
        "classes": {
            "scores": [
                {"name": "no", "examples": 200, "precision": 90.0, "recall": 80.0, "f1": 84.75},
                {"name": "yes", "examples": 300, "precision": None, "recall": 0.0, "f1": None},
            ],
            "confusion": [[160, 40], [300, 0]],
        },
        "samples": [
            {
                **{"example": {"question": "Who?", "answers": ["Ada"]}},
                **{"dense": {"answer": "Ada", "score": 0.75}, "compact": {"answer": "Bob", "score": 0.5}},
            }
        ],
        "equivalence": {"masked_compact": torch.tensor(1e-6), "compact_reloaded": 0.0},
        "equivalence_relative": {"masked_compact": 1e-7, "compact_reloaded": 0.0},
        "world_size": 1,
        "mask_hashes": ["00ff00ff00ff00ff"],
        "seed": 7,
        "command": "python cli.py fit --strategy hybrid",
        "versions": versions(),
        "machine": {"cpu": "A processor", "threads": 2, "device": "cpu", "platform": "Linux x86_64"},
        "date": now(),
        "distillation": {"teacher": "dense", "temperature": 2.0},
        "simplification": {"no_norm": True, "relu": False, "initial_warmup": 1.0},
        "alignment": {
            **{"multiple_of": 16, "auto": True, "units_added": 5, "parameters_added": 7685, "density_before": 0.248},
            **{"metrics_before": {"f1": torch.tensor(87.5)}},
            "by_layer": [{"name": "encoder.0.feed_forward", "before": 299, "after": 304}],
            "candidates": [
                {"multiple_of": 1, "units_added": 0, "speedup": {"8x128": 1.0}},
                {"multiple_of": 16, "units_added": 5, "speedup": {"8x128": 1.0312}},
            ],
        },
        "refill": {
            **{"max_epochs": 2, "learning_rate": 3e-5, "hold_masks": False, "heads": "any", "heads_removed": 3},
            **{"logit_difference": 0.25},
        },
        "snap": {
            **{"kind": "density", "target": 0.25, "before": 0.2525, "after": 0.25, "changed": 7, "shape": None},
            **{"metrics_before": {"f1": 87.0}},
        },
        "quantized": {
            **{"kind": "int8-static", "backend": "onnxruntime", "metrics": {"f1": 87.1}, "bytes_on_disk": 44_000_000},
            "speedup": {"1x128": 4.25},
            "speedup_interval": {"1x128": {"low": 4.2, "high": 4.3, "settled": True}},
            "static": {
                **{"calibration_examples": 128, "max_loss": 0.5, "loss": 0.4, "layers": 74, "float_layers": ["node_1"]},
                "compared": [
                    {
                        **{"kind": "int8", "metrics": {"f1": 87.3}, "bytes_on_disk": 40_000_000},
                        "speedup": {"1x128": 4.0},
                        "speedup_interval": {"1x128": {"low": 3.9, "high": 4.1, "settled": True}},
                    }
                ],
            },
        },
        "portable": {
            **{"config": {"intermediate_size": [3072, 1536]}, "parameters": 40_000_000, "flops": 4_000_000_000},
            **{"latency_ms": {"8x128": 45.0}, "speedup": {"8x128": 2.67}},
        },
        "family": [
            {
                **{"name": "1.5x", "folder": "compact-1.5x", "metrics": {"f1": 88.25, "loss": float("nan")}},
                **{"parameters": {"encoder_linear": 50_000_000, "all": 70_000_000}, "bytes_on_disk": 280_000_000},
                "speedup": {"8x128": 1.52},
                "speedup_interval": {"8x128": {"low": 1.5, "high": 1.54, "settled": True}},
            }
        ],
    }
    found = {**values, **changes}
    found |= {"absolute": found.pop("equivalence"), "relative": found.pop("equivalence_relative")}
    found["size_variants"] = found.pop("family")
    kinds = (Origin, Scores, Structure, Sizes, Speed, Differences, StagesDone)
    names = [{field.name for field in dataclasses.fields(kind)} & found.keys() for kind in kinds]
    assert set().union(*names) == found.keys()
    return build_report(
        *(kind(**{name: found[name] for name in own}) for kind, own in zip(kinds, names, strict=True)),  # type: ignore[arg-type]
    )


def without_baseline() -> Report:
    return built(
        metrics={"masked": {"f1": 87.5}, "compact": {"f1": 87.5}},
        evaluation=None,
        bytes_on_disk={"compact": 176_000_000},
        flops={"compact": 5_000_000_000},
        latency_ms={"compact": {"8x128": 50.0}},
        speedup=None,
        speedup_interval={},
        intervals={"compact": {"f1": [85.25, 89.75]}},
        classes=None,
        samples=[],
        distillation=None,
        simplification=None,
        alignment=None,
        refill=None,
        snap=None,
        quantized=None,
        portable=None,
        family=[],
        stream=None,
        skipped=[],
    )


def run_of(f1: float, ms: float, size: int, **changes: Any) -> Report:
    """A report of a run with this score of the compact model, its latency, and its bytes on disk."""
    return built(
        metrics={"dense": {"exact_match": 80.0, "f1": 88.5}, "compact": {"exact_match": f1 - 9, "f1": f1}},
        latency_ms={"dense": {"8x128": 120.0}, "compact": {"8x128": ms}},
        speedup={"8x128": 120 / ms},
        speedup_interval={"8x128": {"low": 119 / ms, "high": 121 / ms, "settled": True}},
        bytes_on_disk={"dense": 400_000_000, "compact": size},
        **changes,
    )
