"""The tables of a plan, drawn from its JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.text import Text

from bplightning.planning.measured_table import measured
from bplightning.planning.schema import WHOLE, Plan, PlannedGroup, PlannedRole, Problem
from bplightning.reporting.table_format import per_cent, section, short, span, titled_table, unit_of

_WITH_NAMES = ("head of the task", "others", "pooler", "position bias")
"""Kinds of parameters that need the names of their modules to be understood."""

_FREE = {"heads": "head, row, column and element", "units": "unit, row, column and element"}
"""Granularities that divide every weight of a group."""


def render(plan: Plan) -> Group:
    """Draw a plan.

    Args:
        plan: A plan, as `bplightning.planning.plan.plan` makes it.

    Returns:
        Renderable for a `rich.console.Console`, for usual models no wider than 80 columns.
    """
    parts: list[RenderableType] = [_heading(plan), _roles(plan), _layers(plan), _not_pruned(plan)]
    if plan["tied"]:
        parts.append(section("Tied together", [tie["what"] for tie in plan["tied"]]))
    obstacles = [group["obstacle"] for group in plan["groups"] if group["obstacle"]]
    if obstacles:
        first = obstacles[0] if len(obstacles) == 1 else f"{obstacles[0]} (The same for {len(obstacles) - 1} others.)"
        parts.append(section("Compaction cannot shrink these yet; their zeros stay", [first]))
    if plan["estimates"]:
        parts.append(_estimates(plan))
    elif not plan["problems"]:
        parts.append(section("At the target", ["this strategy masks nothing: the model stays unchanged"]))
    if plan["measured"]:
        parts.append(measured(plan, plan["measured"]))
    if (engine := plan["engine"]) is not None:
        title = f"For {engine['name']}: {'fits' if engine['holds'] else 'does not fit'}"
        parts.append(section(title, [engine["message"]], style="bold" if engine["holds"] else "bold red"))
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
            f"{model['class_name']} ({model['type']}), {short(every)} parameters: {short(linear)} encoder linear "
            f"weights ({per_cent(linear, every)}), {short(model['embeddings'])} in embeddings "
            f"({per_cent(model['embeddings'], every)})."
        ),
    )


def _roles(plan: Plan) -> RenderableType:
    refused = {problem["role"] for problem in plan["problems"]}
    rows = []
    for role in plan["roles"]:
        partly = 0 < role["masked_weights"] < role["weights"]
        share = f" ({per_cent(role['masked_weights'], role['weights'])})" if partly else ""
        rows.append(
            (
                role["role"],
                str(role["groups"]),
                f"{role['size']:,} {role['kind']}",
                short(role["weights"]),
                (", ".join(role["granularity"]) or ("refused" if role["role"] in refused else "nothing")) + share,
                f"{role['entries']:,} x {span(role['entry_weights'])}" if role["masks"] else "",
            )
        )
    columns = ("role", "<groups", "<in them", "<weights", "pruned by", "<entries x weights")
    return titled_table("What is pruned", columns, rows, _pruned_caption(plan))


def _pruned_caption(plan: Plan) -> str:
    prunable = plan["prunable"]
    scores = f"{prunable['scores']:,} scores" if prunable["scores"] else "no scores"
    return (
        f"under masks: {short(prunable['weights'])} weights, {100 * prunable['of_encoder_linear']:.1f} % of encoder "
        f"linear weights, {100 * prunable['of_all_parameters']:.1f} % of all parameters; an entry of a mask keeps or "
        f"drops all its weights; training also learns {scores}"
    )


def _layers(plan: Plan) -> RenderableType:
    """One row for each run of equal layers."""
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
    return titled_table("In each layer", ("layer", "heads", "FFN units", "<prunable weights"), rows)


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
    return "\n".join(heads), experts or " + ".join(map(str, units)), short(weights)


def _not_pruned(plan: Plan) -> RenderableType:
    every = plan["model"]["parameters"]["all"]
    rows = []
    bare = plan["model"]["parameters"]["encoder_linear"] - plan["prunable"]["weights"]
    if bare:
        rows.append(("prunable, but without a mask", short(bare), per_cent(bare, every), ""))
    for part in plan["not_pruned"]:
        names = [name.rpartition(".")[0].rpartition("*.")[2] for name in part["names"] if part["what"] in _WITH_NAMES]
        names = list(dict.fromkeys(names))
        which = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        rows.append((part["what"], short(part["parameters"]), per_cent(part["parameters"], every), which))
    return titled_table("What is not pruned", ("", "<parameters", "<of all", "which"), rows)


def _estimates(plan: Plan) -> RenderableType:
    estimates = plan["estimates"]
    assert estimates is not None
    scheduled = estimates["density_from"] == "schedule"
    exact = all(each in WHOLE for role in plan["roles"] for each in role["granularity"])
    if scheduled:
        by_role = ", ".join(f"{role} {100 * kept:.1f} %" for role, kept in estimates["at"][0]["by_role"].items())
        caption = f"The schedule ends at this density; by role: {by_role}. "
    else:
        caption = "How much is kept follows from training, not from the schedule: these are examples. "
    if not exact:
        caption += (
            "At best, everything pruned is removed as whole heads and units; zeros inside those that stay make nothing "
            "smaller. "
        )
    where = "below" if plan["measured"] else "with --measure"
    caption += f"Speed-up: ratio of FLOPs; {where} it is measured."
    dense, works = plan["model"]["parameters"], estimates["dense_flops"]
    units = {shape: unit_of(count) for shape, count in works.items()}

    def flops(counts: Mapping[str, int]) -> Iterator[str]:
        return (f"{counts[shape] / divisor:.2f}" for shape, (_, divisor) in units.items())

    rows = [("dense", short(dense["encoder_linear"]), short(dense["all"]), *flops(works), "1.00x")]
    for point in estimates["at"]:
        linear, every = point["parameters"]["encoder_linear"], point["parameters"]["all"]
        rows.append(
            (
                f"{100 * point['density']:.1f} %",
                f"{short(linear)} ({per_cent(linear, dense['encoder_linear'])})",
                f"{short(every)} ({per_cent(every, dense['all'])})",
                *flops(point["flops"]),
                f"{max(point['speedup'].values()):.2f}x",
            )
        )
    headings = (f"<{unit}FLOP {shape}" for shape, (unit, _) in units.items())
    columns = ("<kept", "<encoder linear", "<all parameters", *headings, "<speed-up")
    title = "At the target" if scheduled else "Examples"
    return titled_table(title if exact else f"{title}, at best", columns, rows, caption)


def _problems(plan: Plan) -> RenderableType:
    """Problems by role, with blocks that would fit; the strategy's message for the first group of each."""
    lines = []
    by_role = groupby(sorted(plan["problems"], key=lambda p: p["role"] or ""), key=lambda p: p["role"])
    for role, problems in by_role:
        lines.append(_problem(next((each for each in plan["roles"] if each["role"] == role), None), list(problems)))
    return section("Problems: `fit` would refuse this", lines, style="bold red")


def _problem(role: PlannedRole | None, problems: Sequence[Problem]) -> str:
    first = problems[0]
    if role is None:
        return first["message"]
    shapes = dict.fromkeys(f"{rows}x{columns}" for each in problems for rows, columns in each["shapes"])
    rows, columns = (" ".join(map(str, sizes)) for sizes in (first["rows"], first["columns"]))
    fitting = f"rows and columns: {rows}" if rows == columns else f"rows: {rows}; columns: {columns}"
    others = f" (The same for {len(problems) - 1} others.)" if len(problems) > 1 else ""
    return (
        f"{role['role']}: refused in {len(problems)} of {role['groups']} groups, with weights of {', '.join(shapes)}\n"
        f"{first['message']}{others}\n"
        f"Blocks that divide all of these weights have {fitting}. Always possible: {_FREE[role['kind']]}."
    )
