"""Whether an engine can hold what a strategy will make of a model, known before anything is trained.

Each engine's own refusals are asked, those of `export` and of `compact --portable`. Where they depend on what training
keeps, the plan's groups and granularities say what can be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from transformers import PreTrainedModel

from bplightning.compaction.plan import STREAM
from bplightning.compaction.portable import NARROW, NO_NORM, unsayable
from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.targeted import Targeted
from bplightning.errors import UserError
from bplightning.exporting.files import require_onnx
from bplightning.exporting.gguf_format import require_gguf
from bplightning.exporting.gguf_tokenizer import require_known
from bplightning.layout.prunable_layout import PrunableLayout, stacks_of
from bplightning.planning.inventory import shrinks
from bplightning.planning.schema import WHOLE, Engine, Plan, PlannedGroup
from bplightning.plugins import name_of

ENGINES = ("gguf", "portable", "vllm", "onnx")


def engine_of(
    name: str,
    model: PreTrainedModel,
    strategy: PruningStrategy,
    found: Plan,
    *,
    tokenizer: object | None = None,
    no_norm: bool = False,
) -> Engine:
    """Whether an engine can hold the pruned model, in one line, with what would fit where it cannot.

    Args:
        name: One of `ENGINES`.
        model: The model that is to be pruned.
        strategy: The strategy, which is asked for its target alone.
        found: The plan for both.
        tokenizer: The model's tokenizer, for formats that hold it too; `None` where there is none.
        no_norm: Whether training replaces LayerNorms by NoNorm.
    """
    checks: dict[str, Callable[[], str]] = {
        "gguf": lambda: _gguf(model, tokenizer),
        "portable": lambda: _portable(PrunableLayout.of(model), strategy, found, no_norm),
        "vllm": lambda: _vllm(PrunableLayout.of(model), strategy, found, no_norm),
        "onnx": _onnx,
    }
    try:
        said = checks[name]()
    except UserError as refusal:
        return Engine(name=name, holds=False, message=str(refusal))
    return Engine(name=name, holds=True, message=said)


def _gguf(model: PreTrainedModel, tokenizer: object | None) -> str:
    require_gguf(model)
    if tokenizer is not None:
        require_known(tokenizer, "the task")
    return "each layer keeps heads and units of its own, and nothing is padded (export --format gguf)."


def _onnx() -> str:
    require_onnx()
    return "a graph has the widths of each layer as they are (export)."


def _portable(layout: PrunableLayout, strategy: PruningStrategy, found: Plan, no_norm: bool) -> str:
    """What config.json can say of what is pruned; see `bplightning.compaction.portable`."""
    if no_norm:
        raise unsayable(layout, NO_NORM)
    if any(STREAM in tie["names"] for tie in found["tied"]):
        raise unsayable(layout, NARROW)
    losing = [group for group in found["groups"] if shrinks(group)]
    said = {stack.name: stack.config for stack in stacks_of(layout.model, layout.family)}
    experts = {group.name for group in layout.groups if group.members[-1].expert is not None}

    def field(group: PlannedGroup) -> str | None:
        config = said[group["stack"]]
        return config.heads if group["kind"] == "heads" else None if group["name"] in experts else config.units

    kept = [group for group in losing if field(group)]
    padded = _kinds(group for group in losing if not field(group))
    rule = f"config.json of a {found['model']['type']!r} model"
    if not kept:
        what = (
            f"has no number for {padded}, which are padded to the dense number" if padded else "counts heads or units"
        )
        fits = "; ".join(_fitting(found, field)) or "the compact folder, or `export`"
        raise UserError(f"{rule} {what}, and {name_of(type(strategy))} prunes nothing else. What fits: {fits}.")
    notes = [f"{rule} has one number of {_kinds(kept)} for all layers of a stack"]
    if padded:
        notes.append(f"{padded} are padded to the dense number, so pruning them gains nothing")
    targeted = strategy.capability(Targeted)
    broken = [group for group in kept if not set(group["granularity"]) <= set(WHOLE)]
    if broken:
        notes.append(
            f"{_kinds(broken)} go only where all their parts ({', '.join(broken[0]['granularity'])}) do: "
            f"--strategy.granularity.{_role(broken[0])} {_whole(broken[0])} makes them go whole, where the strategy "
            "has that option"
        )
    if targeted is not None and targeted.target.uniform:
        notes.append("the target is uniform, so padding them adds nothing")
    elif targeted is not None and targeted.keeps_uniform:
        notes.append("each layer is padded to the widest: --strategy.target.uniform true keeps them equal")
    else:
        notes.append(
            "each layer is padded to the widest, and this strategy chooses sizes by layer: hybrid with "
            "--strategy.target.uniform true keeps them equal"
        )
    shared = any(tie["how"] == "position_bias" and len(tie["names"]) > 1 for tie in found["tied"])
    if shared and any(group["kind"] == "heads" for group in kept):
        notes.append(
            "a head has the same place in all layers that share a position bias, so all that any of them kept stay"
        )
    return f"{'; '.join(notes)} (compact --portable true)."


def _vllm(layout: PrunableLayout, strategy: PruningStrategy, found: Plan, no_norm: bool) -> str:
    """What a portable checkpoint can say: vLLM reads those, as its source has it; it was not run here."""
    config: Any = layout.model.config
    if config.is_encoder_decoder:
        raise UserError(
            f"vLLM serves no {config.model_type!r} models, which have an encoder and a decoder. What fits: onnx."
        )
    said = f"it reads a portable checkpoint, which was not tried here: {_portable(layout, strategy, found, no_norm)}"
    if config.model_type == "qwen2" and any(shrinks(group) for group in found["groups"] if group["kind"] == "heads"):
        # Read in vLLM's source of 2025: hidden_size // num_attention_heads.
        said += " Its Qwen2 may ignore head_dim, with which fewer heads are said: prune units alone."
    return said


def _fitting(found: Plan, field: Callable[[PlannedGroup], str | None]) -> list[str]:
    """Options by which something that config.json counts would be pruned."""
    there = {(_role(group), _whole(group)) for group in found["groups"] if field(group) and group["obstacle"] is None}
    return [f"--strategy.granularity.{role} {whole}" for role, whole in sorted(there)]


def _role(group: PlannedGroup) -> str:
    return group["role"]


def _whole(group: PlannedGroup) -> str:
    return group["kind"].removesuffix("s")


def _kinds(groups: Iterable[PlannedGroup]) -> str:
    return " and ".join(dict.fromkeys(group["kind"] for group in groups))
