"""The tables of a plan's measurements, drawn from its JSON."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType

from bplightning.planning.schema import WHOLE, Measured, MeasuredModel, Plan
from bplightning.reporting.table_format import per_cent, section, short, titled_table


def measured(plan: Plan, found: Measured) -> RenderableType:
    """Draw the measurements.

    Args:
        plan: The plan.
        found: Its part ``measured``.

    Returns:
        Renderable for a `rich.console.Console`, for usual models no wider than 80 columns.
    """
    if found["limit"] is None:
        why = "this strategy prunes nothing that can be removed as whole heads or units, so no model gets smaller"
        return section("Speed-up on this machine: not measured", [why])
    sizes = ["<kept", "<heads", "<FFN units", "<encoder linear", "<all parameters"]
    times = ["shape", "<kept", "<median ms", "<ideal", "<speed-up", "<95 % within", "<efficiency"]
    return Group(
        titled_table("Compact copies, pruned at random", sizes, _sizes(found), _which(plan)),
        titled_table("Speed-up on this machine", times, _times(found), _where(found)),
        section("Saturation: halving the density again gains less than 10 %", [*_ends(found)]),
    )


def _models(found: Measured) -> Iterator[tuple[str, MeasuredModel]]:
    """Name and record of each model."""
    yield "dense", found["dense"]
    for model in found["at"]:
        yield f"{'target, ' if model['target'] else ''}{_kept(model['density'])}", model
    if found["limit"] is not None:
        yield "nothing", found["limit"]


def _sizes(found: Measured) -> Iterator[tuple[str, ...]]:
    dense = found["dense"]["parameters"]
    for name, model in _models(found):
        linear, every = model["parameters"]["encoder_linear"], model["parameters"]["all"]
        yield (
            name,
            f"{model['heads']:,}",
            f"{model['units']:,}",
            f"{short(linear)} ({per_cent(linear, dense['encoder_linear'])})",
            f"{short(every)} ({per_cent(every, dense['all'])})",
        )


def _which(plan: Plan) -> str:
    text = "Whole heads and units, in different numbers from layer to layer."
    alike: dict[tuple[str, str], list[str]] = {}
    for role in plan["roles"]:
        finer = [each for each in role["granularity"] if each not in WHOLE and ":" not in each]
        if finer:
            alike.setdefault((role["kind"], ", ".join(finer)), []).append(role["role"])
    for (kind, grains), roles in alike.items():
        text += f" {', '.join(roles)} is pruned by {grains}, and only training shows which {kind} become dead: "
        text += f"the copies lose the same fraction of {kind}."
    return text


def _times(found: Measured) -> Iterator[tuple[str, ...]]:
    for shape in found["dense"]["flops"]:
        for name, model in _models(found):
            limit, dense = model is found["limit"], model is found["dense"]
            low, high = model["within"][shape]
            took = model["latency_ms"][shape]
            yield (
                shape if dense else "",
                name,
                f"{took:,.0f}" if took >= 100 else f"{took:.3g}",
                "" if limit else f"{model['ideal'][shape]:.2f}x",
                f"{model['speedup'][shape]:.2f}x",
                "" if dense else f"{low:.2f} to {high:.2f}",
                "" if limit or dense else f"{100 * model['efficiency'][shape]:.0f} %",
            )


def _where(found: Measured) -> str:
    machine = found["machine"]
    device = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''}"
    return (
        f"{device}, {threads}, {found['dtype']}; one forward pass, models timed in turns. Ideal: ratio of FLOPs; "
        "efficiency: speed-up / ideal."
    )


def _ends(found: Measured) -> Iterator[str]:
    *_, (_, lowest), (_, limit) = _models(found)
    for shape, density in found["saturation"].items():
        where = "from the beginning"
        if density != 1:
            where = f"not down to {_kept(lowest['density'])}" if density is None else f"below {_kept(density)}"
        yield f"{shape}: {where}; {limit['speedup'][shape]:.3g}x with nothing kept"
    yield (
        "Pruning never removes embeddings, norms and the head of the task. Softmax and small matrices get faster by "
        "less than their FLOPs."
    )


def _kept(density: float) -> str:
    """A density with two or three significant figures.

    >>> _kept(0.75), _kept(0.0434), _kept(0.0056)
    ('75 %', '4.3 %', '0.56 %')
    """
    return f"{100 * density:.{3 if density >= 0.1 else 2}g} %"
