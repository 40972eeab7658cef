"""What a model weighs and how fast it is: latency, FLOPs, parameters, bytes on disk.

How models that are compared are timed together, and why, stands in `bplightning.measuring.timing`.

Legend: `B` rows of a batch, `L` tokens of each row; a shape is written ``"BxL"``.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bplightning.compaction.equivalence import image_sides, takes_images
from bplightning.compaction.example_inputs import positions_of
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout
from bplightning.measuring.records import Machine, ParameterCount
from bplightning.measuring.timing import side_by_side

DEFAULT_SHAPES = ((1, 128), (8, 128))
"""`B` and `L` of the shapes a report measures: one request, and a small batch."""

FLOPS_SHAPE = (8, 128)
"""Rows and tokens at which the report counts floating-point operations, where the model can take so many."""

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
"""Patterns of the files that hold weights; the first that matches counts."""


Call = Callable[[Any, Mapping[str, Tensor]], object]
"""Does something with a model and its inputs."""


def forward(model: nn.Module, inputs: Mapping[str, Tensor]) -> object:
    """One forward pass.

    Args:
        model: The model.
        inputs: Its keyword arguments.
    """
    return model(**inputs)


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass of one model at one shape.

    Attributes:
        rounds_ms: Milliseconds of a pass, one entry a round; the entries of models timed together are pairs.
        threads: CPU threads torch computed with.
        device: Where the model ran, for example ``"cpu"``.
    """

    rounds_ms: tuple[float, ...]
    threads: int
    device: str

    @property
    def median_ms(self) -> float:
        """Median over the rounds, milliseconds."""
        return median(self.rounds_ms)


def shape_name(batch_size: int, length: int) -> str:
    """The name of a shape in reports.

    >>> shape_name(8, 128)
    '8x128'
    """
    return f"{batch_size}x{length}"


def fitting(model: nn.Module, shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The shapes as a model can take them: no more tokens than it has positions, of an image just so many as it has.

    Args:
        model: A transformers model.
        shapes: `B` and `L` of each shape.
    """
    config: Any = model.config
    if takes_images(model):
        (height, width), (patch_height, patch_width) = image_sides(config.image_size), image_sides(config.patch_size)
        tokens = (height // patch_height) * (width // patch_width) + 1  # one stands for the whole image
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
) -> dict[str, dict[str, Latency]]:
    """Time the forward passes of models, or what else `call` does with them, side by side, in evaluation mode.

    Args:
        models: Name to model; each runs where its parameters are.
        make_inputs: From `B` and `L` to a model's keyword arguments.
        shapes: `B` and `L` of each shape.
        call: What is timed: does something with a model and its inputs.
        seconds: Time spent on each shape, all models and their warm-up together, in seconds. Slow models take longer,
            because at least `min_rounds` rounds are run.
        block_ms: Shortest block that is timed at once, milliseconds: fast models pass several times in a block.
        min_rounds: Fewest rounds, each of one block of every model.

    Returns:
        Name to shape (``"BxL"``) to latency; of all models for a shape, the same number of rounds.
    """
    times: dict[str, dict[str, Latency]] = {name: {} for name in models}
    devices = {name: _device(model) for name, model in models.items()}
    with _evaluating(models.values()), torch.inference_mode():
        for batch_size, length in shapes:
            inputs = make_inputs(batch_size, length)
            calls = {name: partial(call, model, _move(inputs, devices[name])) for name, model in models.items()}
            taken = side_by_side(calls, seconds=seconds, block_ms=block_ms, min_rounds=min_rounds)
            for name in models:
                times[name][shape_name(batch_size, length)] = Latency(
                    taken[name].rounds_ms, torch.get_num_threads(), str(devices[name])
                )
    return times


def median_ms(times: Mapping[str, Latency]) -> dict[str, float]:
    """Shape to median milliseconds, of one model."""
    return {shape: time.median_ms for shape, time in times.items()}


def speedup(dense: Mapping[str, Latency], compact: Mapping[str, Latency]) -> dict[str, float]:
    """How many times faster one model is than another that it was timed together with.

    Args:
        dense: Shape to latency of the reference.
        compact: Shape to latency of the other model, from the same call of `latency`.

    Returns:
        Shape to the median over the rounds of reference time / time.

    >>> slow, fast = (Latency(rounds, threads=1, device="cpu") for rounds in ((4.0, 9.0, 4.0), (2.0, 3.0, 2.0)))
    >>> speedup({"8x128": slow}, {"8x128": fast})
    {'8x128': 2.0}
    """
    return {
        shape: median(a / b for a, b in zip(dense[shape].rounds_ms, compact[shape].rounds_ms, strict=True))
        for shape in compact
    }


def flops(model: nn.Module, inputs: Mapping[str, Tensor], *, call: Call = forward) -> int:
    """Floating-point operations of one forward pass: two for each multiply-add of a matrix product.

    Args:
        model: The model; it is put in evaluation mode for the pass.
        inputs: Its keyword arguments.
        call: What else to count: does something with a model and its inputs.

    Returns:
        The count. Attention computed by a kernel outside torch (flash-attn's own) is not seen.
    """
    return flops_by_module(model, inputs, call=call)[""]


def flops_by_module(model: nn.Module, inputs: Mapping[str, Tensor], *, call: Call = forward) -> dict[str, int]:
    """What `flops` counts, by where it is computed.

    Args:
        model: The model; it is put in evaluation mode for the pass.
        inputs: Its keyword arguments.
        call: As `flops` has it.

    Returns:
        A module's name to the count of it and all modules within, over all its calls; the model's own name is empty.
    """
    # torch's counter knows no CPU kernel of fused attention and would leave attention out in silence; the plain
    # products of the math backend are counted everywhere, so a model counts the same on every device.
    counter = FlopCounterMode(display=False)
    with _evaluating([model]), _without_gradients(model), sdpa_kernel(SDPBackend.MATH), counter:
        call(model, _move(inputs, _device(model)))
    root = type(model).__name__
    counts = {name: sum(by_kind.values()) for name, by_kind in counter.get_flop_counts().items()}
    found = {name.removeprefix(f"{root}."): count for name, count in counts.items() if name not in ("Global", root)}
    return {"": int(counter.get_total_flops()), **found}


def parameters(model: nn.Module, layout: PrunableLayout, *, nonzero: bool = False) -> ParameterCount:
    """Count parameters with the two denominators reports use; a shared parameter counts once.

    Args:
        model: The model to count, dense, masked (its masks hardened to zeros) or compact.
        layout: The layout of this model, or of the dense model it came from: a sub-layer that compaction took away has
            no weights left.
        nonzero: Whether to count only what is not zero.

    Returns:
        ``encoder_linear``, the weights (no biases) of all prunable linear layers of encoder and decoder, and ``all``.
    """

    def count(tensors: Iterable[Tensor]) -> int:
        return sum(int(torch.count_nonzero(tensor)) if nonzero else tensor.numel() for tensor in tensors)

    by_name = dict(model.named_parameters(remove_duplicate=False))
    # By whole parameters: the members of a fused projection, or of stacked experts, cover it between them.
    linear = {id(by_name[member.name]): by_name[member.name] for member in layout.members if member.name in by_name}
    return ParameterCount(encoder_linear=count(linear.values()), all=count(model.parameters()))


def bytes_on_disk(folder: str | Path) -> int:
    """Size of the weights in a saved model's folder, all shards together.

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
        "give a folder that `save_pretrained` wrote."
    )


def machine(device: torch.device | str = "cpu") -> Machine:
    """Where latency is measured, no host name.

    Args:
        device: The device the models run on.
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
    """Evaluation mode within; afterwards every module is in the mode it was in."""
    models = list(models)
    training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module in training:  # one by one: train() would set a frozen part's children alike
            module.training = True


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """No parameter wants a gradient within: torch's counter would ask for the graph of one that a module reads."""
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
    """The processor's model name; `platform` knows it only outside Linux."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
