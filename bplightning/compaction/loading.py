"""Saving a compact model, and loading it with transformers' own `from_pretrained`.

A compact folder is an ordinary transformers folder, whose configuration records in its own field what was removed
(`bplightning.compaction.compact_config`). Its ``quantization_config`` only holds our name: through it, transformers
lets a third party change modules before weights are loaded. After loading, no trace of a quantizer is left on the
model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils import PushToHubMixin
from transformers.utils.quantization_config import QuantizationConfigMixin

from bplightning.compaction.compact_config import QUANT_METHOD, apply_widths
from bplightning.compaction.equivalence import LogitDifference, require_equal
from bplightning.compaction.example_inputs import comparison_inputs
from bplightning.compaction.saved_models import unread_weights, was_read
from bplightning.compaction.untrusted_folder import numbers_in, own_parameters, require_plausible_size
from bplightning.errors import UserError
from bplightning.io.files import whole_folder
from bplightning.layout.prunable_layout import PrunableLayout

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Precisions a compact model can be saved in, by name."""

PLAN_FILE = "compaction_plan.json"
"""Name of the file with the plan, next to the weights."""


def save_compact(
    model: PreTrainedModel,
    folder: str | Path,
    tokenizer: PushToHubMixin | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    complete: Callable[[Path], None] | None = None,
    proved: Callable[[LogitDifference], None] | None = None,
) -> LogitDifference:
    """Save a compact model as a transformers folder, and check it by loading it again.

    The folder appears whole or not at all.

    Args:
        model: The compact model.
        folder: Where to save; it must not exist yet, or be empty.
        tokenizer: Tokenizer or image processor, saved along with the model.
        inputs: Inputs on which the saved and the reloaded model are compared; by default seeded random ones.
        complete: Writes further files into the folder before it appears.
        proved: Called with what is returned before the folder appears.

    Returns:
        The largest difference between the logits of `model` and of the reloaded model.

    Raises:
        UserError: The folder holds files already, the disk is full, or the reloaded model's logits differ.
    """
    register()
    with whole_folder(Path(folder)) as unproved:
        model.save_pretrained(unproved)
        if tokenizer is not None:
            tokenizer.save_pretrained(unproved)
        plan = getattr(model, "compaction_plan", None)
        if plan is not None:
            (unproved / PLAN_FILE).write_text(plan.to_json())
        reloaded: nn.Module = type(model).from_pretrained(unproved, trust_remote_code=False)
        reloaded.to(model.device)
        inputs = comparison_inputs(model) if inputs is None else inputs
        difference = require_equal(model, reloaded, inputs, what="the reloaded model")
        if complete is not None:
            complete(unproved)
        if proved is not None:
            proved(difference)
    return difference


def register() -> None:
    """Make `from_pretrained` read compact folders; ``import bplightning`` does this."""
    if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(QUANT_METHOD)(CompactConfig)
        register_quantizer(QUANT_METHOD)(CompactLoader)


class CompactConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a compact configuration, which only holds our name.

    Args:
        quant_method: Our name.
        compacted: Whether the model is compact; a hardened one may compute something that no folder can hold.

    Raises:
        UserError: It is not compact.
    """

    def __init__(self, quant_method: str = QUANT_METHOD, compacted: bool = True) -> None:
        if not compacted:
            raise UserError(
                "the model was saved hardened but not compact, and the sub-layers it skips, the norms it narrows or "
                "the experts it drops are not recorded in its folder: compact it first, and save the compact model."
            )
        self.quant_method = quant_method  # type: ignore[assignment]


class CompactLoader(HfQuantizer):
    """Shrinks the modules before weights are loaded. It is no quantizer, but uses transformers' hook for one."""

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        numbers = numbers_in(checkpoint_files or ())
        apply_widths(model, numbers)
        require_plausible_size(sum(value.numel() for _, value in own_parameters(model)), numbers)
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        """Leave an ordinary model: `half`, `float`, the Trainer and others refuse a model that looks quantized."""
        _require_body(model)
        for name in ("hf_quantizer", "is_quantized", "quantization_method"):
            model.__dict__.pop(name, None)
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                module.config.__dict__.pop("_is_quantized", None)
        model.config.quantization_config = {"quant_method": QUANT_METHOD}  # for `save_pretrained`
        return model

    def is_serializable(self) -> bool:
        """Whether such a model can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether such a model can be trained."""
        return True


def _require_body(model: PreTrainedModel) -> None:
    """Refuse a file that lacks weights of layers or embeddings, which transformers would initialize at random.

    A new head is common, and gets transformers' own warning.
    """
    layout = PrunableLayout.of(model)
    inside = {_layer(member.module) for group in layout.groups for member in group.members}
    # Not those with their own class, some of which are computed and never saved.
    embeddings = {id(module.weight) for module in model.modules() if type(module) is nn.Embedding}
    body = {
        name
        for name, value in model.named_parameters()
        if id(value) in embeddings or any(name.startswith(f"{layer}.") for layer in inside)
    }
    missing = [name for name in unread_weights(model) if name in body]
    # Where nothing was found, the body has another name in the saved class (as Llama for question answering).
    if missing and any(was_read(model.get_parameter(name)) for name in body):
        raise UserError(
            f"the weights lack {missing[0]!r}{f' and {len(missing) - 1} more' if missing[1:] else ''}, which the "
            "configuration needs: the file is damaged, or of another model."
        )


def _layer(module: str) -> str:
    """Path of the layer that a module is in: its path up to the last number."""
    parts = module.split(".")
    last = max((place for place, part in enumerate(parts) if part.isdigit()), default=len(parts) - 1)
    return ".".join(parts[: last + 1])


register()  # on import, which transformers may trigger itself
