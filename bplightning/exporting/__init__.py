"""Exporting saved models to files that run without this project: ONNX, int8 ONNX and `torch.export`."""

from bplightning.exporting.export import Exported, export_model
from bplightning.exporting.variants import Variant, export_onnx, exported_parts

__all__ = ["Exported", "Variant", "export_model", "export_onnx", "exported_parts"]
