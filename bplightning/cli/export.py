"""The verb `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def export(
    folder: str,
    out: str,
    format: Literal["onnx", "torch-export", "gguf"] = "onnx",
    dtype: Literal["float32", "float16"] = "float32",
    quantize: Literal["int8", "q8_0"] | None = None,
    opset: int | None = None,
) -> None:
    """Write a saved model as ONNX, as a torch.export program or as GGUF; the first two are checked against torch.

    Args:
        folder: Folder of a dense or compact model, or of a run, whose compact/ is used.
        out: Folder to write, with tokenizer and configuration: model.onnx; for an encoder-decoder that generates
            encoder_model.onnx, decoder_model.onnx and decoder_with_past_model.onnx; or model.pt2, one forward pass
            without a key/value cache. Batch and length may have any size. Or model.gguf alone, for llama.cpp.
        format: onnx needs pip install onnx onnxruntime onnxscript; gguf, for decoders of Llama's kind, pip install
            gguf.
        dtype: Precision to compute in.
        quantize: int8 quantizes the weights by channel with ONNX Runtime, and activations at run time. The distance
            from torch is reported, whatever it is. q8_0 is for gguf: weights in blocks of 32. Default: not quantized.
        opset: Version of ONNX's operators, 18 to 25. Default: 20.
    """
    from bplightning.exporting.export import export_model  # takes seconds to import

    export_model(Path(folder), Path(out), format=format, dtype=dtype, quantize=quantize, opset=opset)
