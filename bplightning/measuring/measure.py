"""Measuring models: latency, FLOPs, parameters, bytes on disk.

`bplightning.measuring.timing` explains how models that are compared are timed together.

Legend: `B` rows of a batch, `L` tokens of each row; a shape is written ``"BxL"``.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bplightning.compaction.example_inputs import image_sides, positions_of, takes_images
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.measuring.records import Interval, Machine, ParameterCount
from bplightning.measuring.timing import Times, paired_ratio, side_by_side, speedup_of

DEFAULT_SHAPES = ((1, 128), (8, 128))
"""`B` and `L` of the shapes a report measures: one request, and a small batch."""

FLOPS_SHAPE = (8, 128)
"""Rows and tokens at which the report counts floating-point operations, if the model has room for so many."""

TOLERANCE = 0.05
"""Largest half of the confidence interval of a settled speed-up in a report, as a fraction of it: a report takes a few
seconds for what `benchmark` repeats until it knows 2 %."""

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
"""Patterns of the files that hold weights; the first pattern with a match is used."""


Call = Callable[[Any, Mapping[str, Tensor]], object]
"""Runs a model on its inputs."""


def forward(model: nn.Module, inputs: Mapping[str, Tensor]) -> object:
    """One forward pass.

    Args:
        model: The model.
        inputs: Its keyword arguments.
    """
    return model(**inputs)


def shape_name(batch_size: int, length: int) -> str:
    """The name of a shape in reports.

    >>> shape_name(8, 128)
    '8x128'
    """
    return f"{batch_size}x{length}"


def fitting(model: nn.Module, shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The shapes that a model can take: no more tokens than it has positions; for images, as many as it makes of one.

    Args:
        model: A transformers model.
        shapes: `B` and `L` of each shape.
    """
    config: Any = model.config
    if takes_images(model):
        (height, width), (patch_height, patch_width) = image_sides(config.image_size), image_sides(config.patch_size)
        tokens = (height // patch_height) * (width // patch_width) + 1  # one token is for the whole image
        return [(rows, tokens) for rows, _ in shapes]
    positions = positions_of(model)
    return [(rows, min(tokens, positions or tokens)) for rows, tokens in shapes]


def latency(
    models: Mapping[str, nn.Module],
    make_inputs: Callable[[int, int], Mapping[str, Tensor]],
    shapes: Sequence[tuple[int, int]] = DEFAULT_SHAPES,
    *,
    call: Call = forward,
    seconds: float = 2.5,
    block_ms: float = 20.0,
    min_rounds: int = 5,
) -> dict[str, dict[str, Times]]:
    """Time the forward passes of models, or another `call`, side by side, in evaluation mode.

    Args:
        models: Name to model; each runs where its parameters are.
        make_inputs: Returns a model's keyword arguments for `B` and `L`.
        shapes: `B` and `L` of each shape.
        call: The function to time, called with a model and its inputs.
        seconds: Time spent on each shape, for all models and their warm-up together, in seconds. Slow models take
            longer, because at least `min_rounds` rounds are run.
        block_ms: Shortest block that is timed at once, in milliseconds: fast models run several times in a block.
        min_rounds: Fewest rounds; in each round every model runs one block.

    Returns:
        Name to shape (``"BxL"``) to times; all models have the same number of rounds at a shape.
    """
    times: dict[str, dict[str, Times]] = {name: {} for name in models}
    devices = {name: _device(model) for name, model in models.items()}
    with _evaluating(models.values()), torch.inference_mode():
        for batch_size, length in shapes:
            inputs = make_inputs(batch_size, length)
            calls = {name: partial(call, model, _move(inputs, devices[name])) for name, model in models.items()}
            taken = side_by_side(calls, seconds=seconds, block_ms=block_ms, min_rounds=min_rounds)
            for name in models:
                times[name][shape_name(batch_size, length)] = taken[name]
    return times


def median_ms(times: Mapping[str, Times]) -> dict[str, float]:
    """Median milliseconds of one model, by shape."""
    return {shape: time.median_ms for shape, time in times.items()}


def speedup(dense: Mapping[str, Times], compact: Mapping[str, Times]) -> dict[str, float]:
    """How many times faster one model is than another that it was timed together with.

    Args:
        dense: Shape to times of the reference.
        compact: Shape to times of the other model, from the same call of `latency`.

    Returns:
        Shape to the median over the rounds of reference time / time.

    >>> slow, fast = (Times(rounds, rounds) for rounds in ((4.0, 9.0, 4.0), (2.0, 3.0, 2.0)))
    >>> speedup({"8x128": slow}, {"8x128": fast})
    {'8x128': 2.0}
    """
    return {shape: paired_ratio(dense[shape], compact[shape]).value for shape in compact}


def speedup_interval(dense: Mapping[str, Times], compact: Mapping[str, Times]) -> dict[str, Interval]:
    """The interval of each ratio that `speedup` gives, and whether it is settled.

    Args:
        dense: As `speedup` takes it.
        compact: As `speedup` takes it.
    """
    found = {shape: speedup_of(dense[shape], compact[shape], tolerance=TOLERANCE) for shape in compact}
    return {shape: Interval(low=of["low"], high=of["high"], settled=of["settled"]) for shape, of in found.items()}


def flops(model: nn.Module, inputs: Mapping[str, Tensor], *, call: Call = forward) -> int:
    """Floating-point operations of one forward pass: two for each multiply-add of a matrix product.

    Args:
        model: The model; it is put in evaluation mode for the pass.
        inputs: Its keyword arguments.
        call: The function to count, called with a model and its inputs.

    Returns:
        The count. It does not include attention computed by a kernel outside torch, such as flash-attn's.
    """
    return flops_by_module(model, inputs, call=call)[""]


def flops_by_module(model: nn.Module, inputs: Mapping[str, Tensor], *, call: Call = forward) -> dict[str, int]:
    """The floating-point operations that `flops` counts, by module.

    Args:
        model: The model; it is put in evaluation mode for the pass.
        inputs: Its keyword arguments.
        call: The function to count, as in `flops`.

    Returns:
        Name of each module to its count, with all modules inside it and over all its calls; the name of the whole model
        is empty.
    """
    # torch's counter does not know the CPU kernel of fused attention, and would silently leave attention out. It counts
    # the plain products of the math backend everywhere, so a model has the same count on every device.
    counter = FlopCounterMode(display=False)
    with _evaluating([model]), _without_gradients(model), sdpa_kernel(SDPBackend.MATH), counter:
        call(model, _move(inputs, _device(model)))
    root = type(model).__name__
    counts = {name: sum(by_kind.values()) for name, by_kind in counter.get_flop_counts().items()}
    found = {name.removeprefix(f"{root}."): count for name, count in counts.items() if name not in ("Global", root)}
    return {"": int(counter.get_total_flops()), **found}


def parameters(model: nn.Module, layout: PrunableLayout, *, nonzero: bool = False) -> ParameterCount:
    """Count parameters with the two denominators of reports; a shared parameter counts once.

    Args:
        model: The model to count, dense, masked (its masks hardened to zeros) or compact.
        layout: The layout of this model, or of the dense model it came from: a sub-layer that compaction removed has no
            weights left.
        nonzero: Whether to count only numbers that are not zero.

    Returns:
        ``encoder_linear``, the weights (no biases) of all prunable linear layers of encoder and decoder, and ``all``.
    """

    def count(tensors: Iterable[Tensor]) -> int:
        return sum(int(torch.count_nonzero(tensor)) if nonzero else tensor.numel() for tensor in tensors)

    by_name = dict(model.named_parameters(remove_duplicate=False))
    # Whole parameters: the members of a fused projection, or of stacked experts, cover it together.
    linear = {id(by_name[member.name]): by_name[member.name] for member in layout.members if member.name in by_name}
    return ParameterCount(encoder_linear=count(linear.values()), all=count(model.parameters()))


def bytes_on_disk(folder: str | Path) -> int:
    """Size of the weights in the folder of a saved model, all shards together.

    Args:
        folder: A folder as `save_pretrained` writes it.

    Returns:
        Bytes.

    Raises:
        UserError: The folder holds no weights.
    """
    for pattern in WEIGHT_FILES:
        sizes = [path.stat().st_size for path in Path(folder).glob(pattern)]
        if sizes:
            return sum(sizes)
    raise UserError(
        f"folder {str(folder)!r} holds no weights ({' or '.join(WEIGHT_FILES)}): "
        "give a folder written by `save_pretrained`."
    )


def machine(device: torch.device | str = "cpu") -> Machine:
    """Describe the machine on which latency is measured, without its host name.

    Args:
        device: The device that the models run on.
    """
    device = torch.device(device)
    return Machine(
        cpu=_cpu_name(),
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        platform=f"{platform.system()} {platform.machine()}",
    )


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _move(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}


@contextmanager
def _evaluating(models: Iterable[nn.Module]) -> Iterator[None]:
    """Put models in evaluation mode; afterwards every module is back in its own mode."""
    models = list(models)
    training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module in training:  # one by one: train() would also change the children of a frozen part
            module.training = True


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Compute no gradients: torch's counter would ask for the graph of a parameter that requires one."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        with torch.inference_mode():
            yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def _cpu_name() -> str:
    """The processor's model name; on Linux `platform` does not give it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
