"""Resizing the groups of a model: slicing their parameters and updating the counts that their modules keep.

Compacting a model (real weights) and loading a compact one (shapes only, on the meta device) both use it, so that they
build the same modules.

Legend: `B` batch, `L` tokens, `H` heads, `K` key/value heads, `D` head size, `F` units of a feed-forward layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bplightning.errors import UserError
from bplightning.layout.groups import AttentionGroup, FeedForwardGroup, Member
from bplightning.layout.headless import Featureless, behead
from bplightning.layout.instance_mixin import mix_in, take_out
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.layout.routing import kept_experts, routers_of, set_experts

Group = AttentionGroup | FeedForwardGroup

_HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads")
_KV_HEAD_COUNTS = ("num_key_value_heads",)
_HEADS_TIMES_SIZE = ("all_head_size", "inner_dim")

Selection = dict[tuple[str, str], dict[int, Tensor]]
"""Module and parameter name to axis to the indices kept along it."""


def size_of(group: Group) -> int:
    """How many key/value heads, or units, `group` has: the parts that can be removed one by one."""
    return group.kv_heads if isinstance(group, AttentionGroup) else group.width


def can_shrink(layout: PrunableLayout) -> list[Group]:
    """The groups that can lose heads or units: not those that cannot be sliced, nor those that have none left."""
    return [group for group in layout.groups if size_of(group) and all(each.expert is None for each in group.members)]


def kind_of(group: Group) -> str:
    """``"heads"`` or ``"units"``, for messages and for the plan."""
    return "heads" if isinstance(group, AttentionGroup) else "units"


def writer_columns(group: Group, kept: Tensor) -> Tensor:
    """The columns of the output or down projection that belong to the heads or units `kept`."""
    if isinstance(group, FeedForwardGroup):
        return kept
    return _spread(kept, group.head_size * _queries_per_kv_head(group))


def reader_rows(group: Group, member: Member, kept: Tensor) -> Tensor:
    """The rows of `member`, one that reads the stream, that belong to the heads or units `kept`."""
    if isinstance(group, FeedForwardGroup):
        return kept
    return _spread(kept, group.head_size * (_queries_per_kv_head(group) if member is group.query else 1))


def stream_width(layout: PrunableLayout) -> int:
    """Dimensions of the residual stream."""
    return layout.groups[0].members[0].weight(layout.model).shape[1]


def member_selections(layout: PrunableLayout, kept: Mapping[str, Tensor], stream: Tensor | None = None) -> Selection:
    """The indices of each parameter that stay.

    Args:
        layout: The layout of the model to resize.
        kept: Group name to the indices of its heads (key/value heads where queries are grouped) or units that stay; an
            expert without any is removed as a whole.
        stream: Indices of the residual stream's dimensions that stay; `None` for all of them.

    Returns:
        Every parameter of every member, every bias of its rows, every table of position biases, and with `stream` every
        parameter that the stream runs along, each with its axes.

    Raises:
        UserError: An expert loses only some of its units, or layers keep different numbers of experts, or too few.
    """
    parts: dict[tuple[str, str], dict[int, list[tuple[int, Tensor]]]] = {}

    def keep(member: Member, axis: int, indices: Tensor) -> None:
        """Keep `indices` of the member's rows (`axis` 0) or columns (1), however the parameter is stored."""
        stored = 1 - axis if member.transposed else axis
        start = member.rows[0] if member.rows is not None and axis == 0 else 0
        parts.setdefault((member.module, member.parameter), {}).setdefault(stored, []).append((start, indices + start))
        if axis == 0 and member.bias is not None and member.bias_of(layout.model) is not None:
            parts.setdefault((member.module, member.bias), {}).setdefault(0, []).append((start, indices + start))

    for group in layout.groups:
        indices = kept[group.name]
        *readers, writer = group.members
        if writer.expert is not None:
            if len(indices) in (0, size_of(group)):  # the whole expert, below
                continue
            raise UserError(
                f"{group.name} cannot lose some of its {kind_of(group)}: one expert of a stacked tensor cannot be "
                "narrower than the others. Keep or remove the expert as a whole."
            )
        for member in readers:
            keep(member, 0, reader_rows(group, member, indices))
        keep(writer, 1, writer_columns(group, indices))
    for table, columns in _looked_up(layout, kept).items():
        keep(table, 1, columns)
    experts = routers_of(layout)
    for router, indices in kept_experts(layout, kept).items():
        stacked = {(member.module, member.parameter) for member in experts[router][0].members}
        for key in ((router, "weight"), *sorted(stacked)):
            parts[key] = {0: [(0, indices)]}
    if stream is not None:
        for axis in layout.residual:
            module, _, name = axis.parameter.rpartition(".")
            parts.setdefault((module, name), {}).setdefault(axis.axis, []).append((0, stream))
    # Members that share a parameter (fused qkv) are joined in the order they are stored in.
    return {
        key: {
            axis: torch.cat([part for _, part in sorted(several, key=lambda p: p[0])]) for axis, several in axes.items()
        }
        for key, axes in parts.items()
    }


def resize(model: nn.Module, layout: PrunableLayout, kept: Mapping[str, Tensor], stream: Tensor | None = None) -> None:
    """Replace the parameters of `model` in place by the parts that stay; on the meta device only shapes change.

    Every parameter of every member becomes a new tensor, even where all of it stays.

    Args:
        model: The model to resize.
        layout: Its layout, or that of a model with the same shapes.
        kept: Group name to the indices of its heads (key/value heads where queries are grouped) or units that stay.
        stream: Indices of the residual stream's dimensions that stay, in a family without stacked experts; `None` for
            all of them.
    """
    for (module_name, name), axes in member_selections(layout, kept, stream).items():
        module = model.get_submodule(module_name)
        old = module._parameters[name]
        assert old is not None
        new = old.detach()
        if old.is_meta:  # there are no numbers to select
            shape = [len(axes[axis]) if axis in axes else size for axis, size in enumerate(old.shape)]
            new = torch.empty(shape, dtype=old.dtype, device="meta")
        else:
            for axis, indices in axes.items():
                if len(indices) < new.shape[axis]:
                    new = new.index_select(axis, indices.to(new.device))
            if new.data_ptr() == old.data_ptr():
                new = new.clone()
        module._parameters[name] = nn.Parameter(new, requires_grad=old.requires_grad)
        _set_features(module)
    set_experts(model, layout, kept_experts(layout, kept))
    columns = _looked_up(layout, kept)
    for group in layout.attention:
        _set_heads(model, group, len(kept[group.name]))
        if group.position_bias is not None:
            _set_position_columns(model, group, kept[group.name], columns[group.position_bias])
    if layout.family.resized is not None:
        for each in layout.groups:
            layout.family.resized(model, each, kept[each.name])


def make_bias(model: nn.Module, member: Member) -> None:
    """Give the projection of `member`, which has no bias, one of zeros."""
    weight = member.weight(model)
    bias = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=weight.requires_grad)
    model.get_submodule(member.module).register_parameter(member.bias or "bias", bias)


def _looked_up(layout: PrunableLayout, kept: Mapping[str, Tensor]) -> dict[Member, Tensor]:
    """Each table of position biases with the columns, ascending, that the remaining heads look up."""
    used: dict[Member, set[int]] = {}
    for group in layout.attention:
        if group.position_bias is not None:
            columns = (group.position_columns[head] for head in kept[group.name].tolist())
            used.setdefault(group.position_bias, set()).update(columns)
    return {table: torch.tensor(sorted(columns), dtype=torch.long, device="cpu") for table, columns in used.items()}


def _set_position_columns(model: nn.Module, group: AttentionGroup, kept: Tensor, looked_up: Tensor) -> None:
    """Tell a module that lost heads which columns the others look up, in a table that keeps only `looked_up`."""
    module = model.get_submodule(group.module)
    if len(kept) < group.heads or hasattr(module, "position_columns"):
        before = torch.tensor(group.position_columns, dtype=torch.long, device="cpu")
        # Not a buffer: transformers would initialize it again when it loads the model.
        module.position_columns = torch.searchsorted(looked_up, before[kept.to(before.device)])


def _queries_per_kv_head(group: AttentionGroup) -> int:
    return group.heads // max(group.kv_heads, 1)


def _spread(indices: Tensor, size: int) -> Tensor:
    """The rows of the blocks with these indices, where a block has `size` rows."""
    return (indices[:, None] * size + torch.arange(size, device=indices.device)).flatten()


def _set_features(module: nn.Module) -> None:
    weight = module._parameters.get("weight")
    if weight is None:
        return
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
        if weight.numel():
            take_out(module, Featureless)
        else:
            mix_in(module, Featureless)
    elif isinstance(module, Conv1D):
        module.nx, module.nf = weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(weight.shape)


def _set_heads(model: nn.Module, group: AttentionGroup, kv_heads: int) -> None:
    """Tell the attention module how many heads are left, under whatever name it keeps the number."""
    module = model.get_submodule(group.module)
    heads = kv_heads * _queries_per_kv_head(group)
    counts = {_HEAD_COUNTS: heads, _KV_HEAD_COUNTS: kv_heads, _HEADS_TIMES_SIZE: heads * group.head_size}
    for names, count in counts.items():
        for name in names:
            if hasattr(module, name):
                setattr(module, name, count)
    if kv_heads == 0:
        behead(model, group)
