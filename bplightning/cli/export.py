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
    batch: int | None = None,
    length: int | None = None,
) -> None:
    """Write a saved model as ONNX, as a torch.export program or as GGUF; the first two are checked against torch.

    Args:
        folder: Folder of a dense or compact model, or of a run, whose compact/ is used.
        out: Folder to write: tokenizer, configuration, and onnx/model.onnx, as ONNX Runtime, transformers.js, TEI and
            OpenVINO read it. For an encoder-decoder that generates, onnx/ has encoder_model, decoder_model,
            decoder_with_past_model and decoder_model_merged. With torch-export: model.pt2, one forward pass without a
            key/value cache. With gguf: model.gguf alone, for llama.cpp.
        format: onnx needs pip install onnx onnxruntime onnxscript; gguf, for decoders of Llama's kind, pip install
            gguf.
        dtype: float16 writes onnx/model_fp16.onnx too, or model.pt2 or model.gguf in this precision.
        quantize: int8 writes onnx/model_quantized.onnx too: weights quantized by channel with ONNX Runtime, activations
            at run time. The distance from torch is reported, whatever it is. q8_0 is for gguf: weights in blocks of 32.
        opset: Version of ONNX's operators, 18 to 25. Default: 20.
        batch: The only number of rows that the ONNX files take, for runtimes that want fixed shapes. Default: any.
        length: The only number of tokens that they take. Default: any.
    """
    from bplightning.exporting.export import export_model  # takes seconds to import

    export_model(
        Path(folder),
        Path(out),
        format=format,
        dtype=dtype,
        quantize=quantize,
        opset=opset,
        batch=batch,
        length=length,
    )
