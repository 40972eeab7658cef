"""The tables of a plan, drawn from its JSON alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bplightning.planning_schema import Plan, PlannedGroup, PlannedRole, Problem

_COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_WITH_NAMES = ("head of the task", "others", "pooler", "position bias")
"""What is not pruned that its name alone does not explain."""

_WHOLE = ("head", "unit")
"""Granularities at which all that is pruned makes the model smaller."""

_FREE = {"heads": "head, row, column and element", "units": "unit, row, column and element"}
"""Granularities that divide every weight of a group."""


def render(plan: Plan) -> Group:
    """Draw a plan.

    Args:
        plan: A plan, as `bplightning.planning.plan` makes it.

    Returns:
        What a `rich.console.Console` prints, for usual models no wider than 80 columns.
    """
    parts: list[RenderableType] = [_heading(plan), _roles(plan), _layers(plan), _not_pruned(plan)]
    if plan["tied"]:
        parts.append(_section("Tied together", [tie["what"] for tie in plan["tied"]]))
    obstacles = [group["obstacle"] for group in plan["groups"] if group["obstacle"]]
    if obstacles:
        first = obstacles[0] if len(obstacles) == 1 else f"{obstacles[0]} (The other {len(obstacles) - 1} alike.)"
        parts.append(_section("Compaction cannot shrink these yet; they stay as they are", [first]))
    if plan["estimates"]:
        parts.append(_estimates(plan))
    elif not plan["problems"]:
        parts.append(_section("At the target", ["this strategy puts a mask on nothing: the model stays as it is"]))
    if plan["problems"]:
        parts.append(_problems(plan))
    return Group(*parts)


def _heading(plan: Plan) -> RenderableType:
    model = plan["model"]
    every, linear = model["parameters"]["all"], model["parameters"]["encoder_linear"]
    title = ", ".join(each for each in (plan["task"], plan["strategy"], model["name"]) if each)
    return Group(
        Text(f"\nPlan: {title}", style="bold"),
        Text(
            f"{model['class_name']} ({model['type']}), {_short(every)} parameters: {_short(linear)} encoder linear "
            f"weights ({_share(linear, every)}), {_short(model['embeddings'])} in embeddings "
            f"({_share(model['embeddings'], every)})."
        ),
    )


def _roles(plan: Plan) -> RenderableType:
    refused = {problem["role"] for problem in plan["problems"]}
    rows = []
    for role in plan["roles"]:
        partly = 0 < role["masked_weights"] < role["weights"]
        share = f" ({_share(role['masked_weights'], role['weights'])})" if partly else ""
        rows.append(
            (
                role["role"],
                str(role["groups"]),
                f"{role['size']:,} {role['kind']}",
                _short(role["weights"]),
                (", ".join(role["granularity"]) or ("refused" if role["role"] in refused else "nothing")) + share,
                f"{role['entries']:,} x {_range(role['entry_weights'])}" if role["masks"] else "",
            )
        )
    columns = ("role", "<groups", "<in them", "<weights", "pruned by", "<entries x weights")
    return _table("What is pruned", columns, rows, _pruned_caption(plan))


def _pruned_caption(plan: Plan) -> str:
    prunable = plan["prunable"]
    scores = f"{prunable['scores']:,} scores" if prunable["scores"] else "no scores"
    return (
        f"under masks: {_short(prunable['weights'])} weights, {100 * prunable['of_encoder_linear']:.1f} % of encoder "
        f"linear weights, {100 * prunable['of_all_parameters']:.1f} % of all parameters; an entry of a mask keeps or "
        f"drops its weights as one; training learns {scores} beside the weights"
    )


def _layers(plan: Plan) -> RenderableType:
    """One row for each run of layers that are alike."""
    groups = sorted(plan["groups"], key=lambda group: (group["stack"] != "encoder", group["layer"]))
    layers = [
        (stack, number, _describe(list(own)))
        for (stack, number), own in groupby(groups, key=lambda group: (group["stack"], group["layer"]))
    ]
    rows = []
    for (stack, cells), run in groupby(layers, key=lambda layer: (layer[0], layer[2])):
        numbers = [number for _, number, _ in run]
        first, last = numbers[0], numbers[-1]
        rows.append((f"{stack} {first}" if first == last else f"{stack} {first} to {last}", *cells))
    return _table("In each layer", ("layer", "heads", "FFN units", "<prunable weights"), rows)


def _describe(groups: Sequence[PlannedGroup]) -> tuple[str, str, str]:
    """Heads, units and weights of one layer."""
    attention = [group for group in groups if group["kind"] == "heads"]
    units = [group["size"] for group in groups if group["kind"] == "units"]
    heads = []
    for group in attention:
        kind = f" {group['name'].rpartition('.')[2]}" if len(attention) > 1 else ""
        shared = f" on {group['kv_heads']} key/value" if group["kv_heads"] != group["size"] else ""
        heads.append(f"{group['size']}{kind} of size {group['head_size']}{shared}")
    experts = f"{len(units)} experts, {units[0]} each" if len(units) > 1 and len(set(units)) == 1 else ""
    weights = sum(group["weights"] for group in groups)
    return "\n".join(heads), experts or " + ".join(map(str, units)), _short(weights)


def _not_pruned(plan: Plan) -> RenderableType:
    every = plan["model"]["parameters"]["all"]
    rows = []
    bare = plan["model"]["parameters"]["encoder_linear"] - plan["prunable"]["weights"]
    if bare:
        rows.append(("prunable, but without a mask", _short(bare), _share(bare, every), ""))
    for part in plan["not_pruned"]:
        names = [name.rpartition(".")[0].rpartition("*.")[2] for name in part["names"] if part["what"] in _WITH_NAMES]
        names = list(dict.fromkeys(names))
        which = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        rows.append((part["what"], _short(part["parameters"]), _share(part["parameters"], every), which))
    return _table("What is not", ("", "<parameters", "<of all", "which"), rows)


def _estimates(plan: Plan) -> RenderableType:
    estimates = plan["estimates"]
    assert estimates is not None
    scheduled = estimates["density_from"] == "schedule"
    exact = all(each in _WHOLE for role in plan["roles"] for each in role["granularity"])
    if scheduled:
        by_role = ", ".join(f"{role} {100 * kept:.1f} %" for role, kept in estimates["at"][0]["by_role"].items())
        caption = f"The schedule ends at this density; by role: {by_role}. "
    else:
        caption = "How much stays follows from training, not from the schedule: these are examples. "
    if not exact:
        caption += (
            "At best, all that is pruned goes as whole heads and units; zeros inside those that stay make nothing "
            "smaller. "
        )
    caption += "Speed-up: ratio of FLOPs; `fit` measures the real one."
    dense, works = plan["model"]["parameters"], estimates["dense_flops"]
    units = {shape: _unit(count) for shape, count in works.items()}

    def flops(counts: Mapping[str, int]) -> Iterator[str]:
        return (f"{counts[shape] / divisor:.2f}" for shape, (_, divisor) in units.items())

    rows = [("dense", _short(dense["encoder_linear"]), _short(dense["all"]), *flops(works), "1.00x")]
    for point in estimates["at"]:
        linear, every = point["parameters"]["encoder_linear"], point["parameters"]["all"]
        rows.append(
            (
                f"{100 * point['density']:.1f} %",
                f"{_short(linear)} ({_share(linear, dense['encoder_linear'])})",
                f"{_short(every)} ({_share(every, dense['all'])})",
                *flops(point["flops"]),
                f"{max(point['speedup'].values()):.2f}x",
            )
        )
    headings = (f"<{unit}FLOP {shape}" for shape, (unit, _) in units.items())
    columns = ("<kept", "<encoder linear", "<all parameters", *headings, "<speed-up")
    title = "At the target" if scheduled else "If so much stays"
    return _table(title if exact else f"{title}, at best", columns, rows, caption)


def _problems(plan: Plan) -> RenderableType:
    """By role, with what would fit; the strategy's own words for the first group of each."""
    lines = []
    by_role = groupby(sorted(plan["problems"], key=lambda p: p["role"] or ""), key=lambda p: p["role"])
    for role, problems in by_role:
        lines.append(_problem(next((each for each in plan["roles"] if each["role"] == role), None), list(problems)))
    return _section("Problems: `fit` would refuse this", lines, style="bold red")


def _problem(role: PlannedRole | None, problems: Sequence[Problem]) -> str:
    first = problems[0]
    if role is None:
        return first["message"]
    shapes = dict.fromkeys(f"{rows}x{columns}" for each in problems for rows, columns in each["shapes"])
    rows, columns = (" ".join(map(str, sizes)) for sizes in (first["rows"], first["columns"]))
    fitting = f"rows and columns: {rows}" if rows == columns else f"rows: {rows}; columns: {columns}"
    others = f" (The other {len(problems) - 1} alike.)" if len(problems) > 1 else ""
    return (
        f"{role['role']}: refused in {len(problems)} of {role['groups']} groups, with weights of {', '.join(shapes)}\n"
        f"{first['message']}{others}\n"
        f"Blocks that divide all of these weights have {fitting}. Always possible: {_FREE[role['kind']]}."
    )


def _section(title: str, lines: Sequence[str], style: str = "bold") -> RenderableType:
    return Group(Text(f"\n{title}", style=style), *(Padding(Text(line), (0, 0, 0, 2)) for line in lines))


def _table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str | None = None
) -> RenderableType:
    """A table under its title; a column whose name begins with ``<`` is set to the right."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, name in enumerate(columns):
        right = name.startswith("<")
        table.add_column(
            name.removeprefix("<"), justify="right" if right else "left", no_wrap=index == 0 or right, overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    below = [Padding(Text(caption, style="dim"), (0, 0, 0, 2))] if caption else []
    return Group(Text(f"\n{title}", style="bold"), Padding(table, (0, 0, 0, 2)), *below)


def _unit(count: float) -> tuple[str, float]:
    """The largest unit that `count` reaches."""
    return max(((n, d) for n, d in _COUNTS.items() if count >= d), key=lambda u: u[1], default=("", 1.0))


def _short(count: float) -> str:
    """A number in three or four figures.

    >>> _short(512), _short(10_616_832)
    ('512', '10.62 M')
    """
    unit, divisor = _unit(count)
    return f"{count / divisor:.2f} {unit}" if unit else f"{count:.0f}"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %"


def _range(sizes: Sequence[float]) -> str:
    """`sizes` is empty, or the least and the greatest."""
    return " to ".join(dict.fromkeys(f"{size:,.0f}" for size in sizes))
