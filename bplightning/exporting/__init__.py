"""Exporting saved models to files that run without this project: ONNX, int8 ONNX and `torch.export`."""
