"""Request to Plan: which nodes make the cells that were asked for, sharing what can be shared."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from deploykit.artifact import Axis
from deploykit.errors import BakedAxisError, Hint, UnsupportedError, UsageError
from deploykit.export import (
    adopt,
    calibrate,
    cast,
    injected_faults,
    opset,
    probe,
    ranges,
    reference,
    rewrite,
    simplify,
    store,
    trace,
)
from deploykit.export.calibrate import CalibrationOptions
from deploykit.export.quantize import cost, smooth
from deploykit.export.quantize import stage as quantize
from deploykit.export.request import Cell, ImagesRequest, Request, Sizes, images_options
from deploykit.export.stage import Item, Node, Plan
from deploykit.export.target import PackageOptions, Target, get_target, target_names
from deploykit.models.family import Family, get_family
from deploykit.models.interface import BATCH, Interface
from deploykit.models.original import Original
from deploykit.runtime.backends.base import get_backend

#: Ids of the shared nodes; the cells' nodes are called after their artifacts.
ORIGINAL, GOLDEN_IMAGES, GOLDEN = probe.ORIGINAL, probe.GOLDEN_IMAGES, probe.GOLDEN
GOLDEN_OUTPUTS, HUB_OUTPUTS, FAULTS = "golden-outputs", "hub-outputs", "injected-faults"
EVALUATION, ANSWERS = "evaluation-images", "evaluation-answers"
CALIBRATION, RANGES = probe.CALIBRATION, "ranges"


def original_item(original: Original) -> Item:
    """Return an original as the item that plans start from: its files stay where they are.

    Its identity is what opens it again, hashes of weights and network included: whatever a stage reads of it is hashed.
    """
    return Item("original", Path(), (), identity=original.locator)


def check_request(original: Original, request: Request) -> tuple[Family, Mapping[Cell, Target]]:
    """Return the family and each cell's target.

    Raises:
        UsageError: An unknown precision, target or axis, a cell that a target can't take, no calibration images, or
            contradicting shapes.
        UnsupportedError: A target has no use for a precision, or runs it rightly with fixed axes only.
        BakedAxisError: An axis is to stay open that the original has fixed.
    """
    family = get_family(original.family)
    known = [axis for axis in family.axes if axis in original.takes.axes]
    if not request.cells:
        raise UsageError("nothing to export: name a precision and a target", Hint("--fp32 --ort"))
    targets = {cell: _target(cell, request) for cell in request.cells}
    unknown = [axis for axis in request.dynamic if axis not in known]
    if unknown:
        raise UsageError(f"{family.title} has no axis {unknown[0]!r} to leave open; it has: {', '.join(known)}")
    if "batch" in request.dynamic and request.batch != 1:
        raise UsageError(f"--batch {request.batch} and --dynamic batch contradict one another: choose one")
    if original.fixed_batch is not None:
        _check_fixed_batch(original.id, original.fixed_batch, request)
    if request.opset is not None and request.opset < opset.OLDEST:
        raise UsageError(f"--opset {request.opset}: the oldest is {opset.OLDEST}")
    if request.batch < 1:
        raise UsageError(f"--batch {request.batch}: a batch has at least one row")
    _check_profiles(family, original.takes, request, targets.values())
    if request.capabilities and not any(target.capabilities for target in targets.values()):
        raise UsageError(
            f"--sm {_numbers(request.capabilities)}: no target of this export is built for chosen GPUs",
            Hint("--trt-rtx"),
        )
    return family, targets


def _check_profiles(family: Family, takes: Interface, request: Request, targets: Iterable[Target]) -> None:
    """Refuse profiles of axes that are not open, of sizes that the family doesn't take, or that no target makes use of."""
    for name, parts in request.profiles.items():
        if name not in request.dynamic:
            raise UsageError(f"{_told(name, *parts)}: the axis is not open", Hint(f"--dynamic {name}"))
        _check_parts(family, name, parts, takes.sizes)
    if request.profiles and not any(target.bounded for target in targets):
        raise UsageError("--profile: no target of this export is tuned for a range of sizes", Hint("--trt-rtx"))


def _check_parts(family: Family, name: str, parts: tuple[Sizes, ...], own: Mapping[str, int]) -> None:
    """Refuse parts of an axis that the family doesn't take, that leave sizes out between them, or that end too early."""
    rule = family.axes[name]
    for sizes in parts:
        least, usual, most = sizes
        is_known = rule.min <= least <= usual <= most <= rule.max and not any((n - rule.min) % rule.step for n in sizes)
        if not is_known:
            raise UsageError(
                f"{_told(name, sizes)}: {family.title} takes {name} {rule.min} to {rule.max} in steps of {rule.step}, "
                "and a profile is the least, the usual and the largest size"
            )
    whole = sorted(parts)
    for below, above in itertools.pairwise(whole):
        if above[0] > below[2] + rule.step:
            raise UsageError(
                f"{_told(name, below, above)}: {name} {below[2] + rule.step} to {above[0] - rule.step} would be in neither"
            )
    judged = (own[name],) if rule.tried else (rule.min, rule.traced)
    if whole[0][0] > judged[0] or max(most for _, _, most in whole) < judged[-1]:
        raise UsageError(
            f"{_told(name, *parts)}: artifacts are judged at {' and '.join(map(str, judged))} too: let it reach so far"
        )


def _told(name: str, *parts: Sizes) -> str:
    return " ".join(f"--profile {name}={_numbers(sizes)}" for sizes in parts)


def _numbers(values: Iterable[int]) -> str:
    return ",".join(map(str, values))


def _tried(family: Family, request: Request, axis: str) -> tuple[int, ...]:
    """Return the sizes of an axis that inputs are made for beside the usual one, the ends of its profiles among them."""
    tried = family.axes[axis].tried
    ends = (size for sizes in request.profiles.get(axis, ()) for size in (sizes[0], sizes[2]))
    return tuple(dict.fromkeys((*tried, *ends))) if tried else ()


def at_once(family: Family, request: Request) -> int:
    """Return how many rows graphs are traced at, which is how many the original is asked at once."""
    return family.axes[BATCH].traced if BATCH in request.dynamic else request.batch


def axes_of(original: Original, request: Request, target: Target) -> Mapping[str, Axis]:
    """Return the axes that are open in a target's artifact, with their bounds; what is usual is the original's own size."""
    family, usual = get_family(original.family), original.takes.sizes
    rules = {name: family.axes[name] for name in request.dynamic}
    bounds = {name: (rule.min, usual.get(name, rule.min), rule.max) for name, rule in rules.items()}
    if target.bounded:
        bounds |= {
            name: (min(sizes[0] for sizes in parts), parts[0][1], max(sizes[2] for sizes in parts))
            for name, parts in request.profiles.items()
        }
    return {name: Axis(name, *bounds[name], rules[name].step) for name in rules}


def ranges_of(family: Family, request: Request, target: Target) -> Mapping[str, tuple[Axis, ...]]:
    """Return the parts of those axes that a target's artifact is tuned for in several."""
    several = {name: parts for name, parts in request.profiles.items() if target.bounded and len(parts) > 1}
    return {
        name: tuple(Axis(name, *sizes, family.axes[name].step) for sizes in parts) for name, parts in several.items()
    }


def capabilities_of(cell: Cell, request: Request, target: Target) -> tuple[int, ...]:
    """Return what a cell is built for.

    Raises:
        UnsupportedError: One that was asked for doesn't run this precision.
    """
    able = target.capabilities.get(cell.precision, ())
    for wanted in request.capabilities if able else ():
        if wanted not in able:
            raise UnsupportedError(
                f"{target.title} builds no {cell.precision} for SM {wanted}; it does for SM {_numbers(able)}"
            )
    return request.capabilities if able and request.capabilities else able


def _target(cell: Cell, request: Request) -> Target:
    """Return a cell's target. Raises what `check_request` does."""
    if cell.precision not in PRECISIONS:
        raise UsageError(f"unknown precision {cell.precision!r}; there are: {', '.join(PRECISIONS)}")
    if cell.target not in target_names():
        raise UsageError(f"unknown target {cell.target!r}; there are: {', '.join(target_names())}")
    target = get_target(cell.target)
    if cell.precision in target.refuses:
        others = [name for name in target_names() if cell.precision in get_target(name).runs]
        hints = (Hint(f"--cell {cell.precision}:{name}", get_target(name).title) for name in others)
        raise UnsupportedError(f"no {cell.precision} for {target.title}: {target.refuses[cell.precision]}", *hints)
    if cell.precision not in target.runs:
        raise UsageError(f"target {cell.target!r} takes {', '.join(target.runs)}, not {cell.precision!r}")
    if request.dynamic and cell.precision in target.static:
        raise UnsupportedError(
            f"{target.title} computes {cell.precision} wrongly where an axis is open, without a word",
            Hint("--batch N", "instead of --dynamic"),
        )
    raised = cast.RAISED_OPSET.get(cell.precision, 0) if target.typed else 0
    if request.opset is not None and request.opset < raised:
        raise UnsupportedError(
            f"{cell.precision} for {target.title} needs opset {raised}, not {request.opset}", Hint(f"--opset {raised}")
        )
    if cell.precision in CALIBRATED and not (request.calibration or request.prompts or request.table):
        raise UsageError(
            f"{cell.precision} needs images to measure activations on, such as the model will see",
            Hint("--calib DIR", "a folder of about 300; they need no labels"),
        )
    return target


def _check_fixed_batch(name: str, fixed: int, request: Request) -> None:
    told = f"the batch of {name} is fixed to {fixed}"
    if "batch" in request.dynamic:
        raise BakedAxisError(f"{told}: it can't be left open")
    if request.batch != fixed:
        raise UsageError(told, Hint(f"--batch {fixed}"))


def make_plan(original: Original, request: Request, golden_count: int) -> Plan:
    """Return the plan whose last nodes are the cells' artifacts.

    Raises:
        UsageError: See `check_request`.
    """
    family, targets = check_request(original, request)
    graphs = _graphs(original, family, request)
    hub = graphs[-1].id
    asked = probe.Asked(
        golden_count,
        {axis: _tried(family, request, axis) for axis in request.dynamic},
        None if request.golden is None else images_options(request.golden, original),
        at_once(family, request),
    )
    asking = probe.get_probe(original.takes.probe)
    running = reference.OutputsOptions(asked.at_once, is_open=BATCH in request.dynamic)
    nodes = [
        *asking.nodes(original, asked),
        Node(GOLDEN_OUTPUTS, asking.outputs(original), running, {"original": ORIGINAL, "golden": GOLDEN}),
        *graphs,
        Node(HUB_OUTPUTS, reference.HUB_OUTPUTS, running, {"graph": hub, "golden": GOLDEN}),
        Node(FAULTS, injected_faults.STAGE, running, {"graph": hub, "golden": GOLDEN, "outputs": HUB_OUTPUTS}),
    ]
    if request.evaluation is not None:
        # Where golden inputs are some of these images, all come first: then all that can't be decoded are told at once.
        shared = request.golden is not None and request.golden.images == request.evaluation.images
        nodes.insert(0 if shared else len(nodes), _images_node(EVALUATION, request.evaluation, original))
    setting = Setting(original, family, request, hub)
    for cell, target in targets.items():
        chain = PRECISIONS[cell.precision](setting, cell, target)
        known = {node.id for node in nodes}
        nodes += [node for node in chain.nodes if node.id not in known]
        options = PackageOptions(
            stem=stem_of(original, cell),
            precision=cell.precision,
            labels=original.labels,
            preprocess=original.preprocess,
            axes=axes_of(original, request, target),
            ranges=ranges_of(family, request, target),
            capabilities=capabilities_of(cell, request, target),
            place=get_backend(target.builds_on.backend).place(target.builds_on) if target.builds_on else "",
        )
        nodes.append(Node(artifact_name(original, cell), target.stage, options, {"graph": chain.graph}))
    if request.evaluation is not None:
        inputs = {"original": ORIGINAL, "images": EVALUATION}
        nodes.append(
            Node(ANSWERS, reference.answers_stage(original), reference.AnswersOptions(original.recipe), inputs)
        )
    return Plan({ORIGINAL: original_item(original)}, tuple(nodes))


def quantize_id(cell: Cell) -> str:
    """Return the id of the node that quantizes a cell's graph."""
    return f"quantize-{cell.kind}-{cell.target}"


def hub_of(plan: Plan) -> str:
    """Return the id of the node whose graph every precision and target starts from."""
    return next(node.inputs["graph"] for node in plan.nodes if node.id == HUB_OUTPUTS)


@dataclass(frozen=True)
class Setting:
    """What the way from the hub graph to a precision may depend on, beside its cell; `hub` is the node of the graph."""

    original: Original
    family: Family
    request: Request
    hub: str


@dataclass(frozen=True)
class Chain:
    """The way from the hub graph to a precision: nodes, some of which other cells share, and the node of the last graph."""

    graph: str
    nodes: tuple[Node, ...] = ()


def _as_it_is(setting: Setting, _cell: Cell, _target: Target) -> Chain:
    return Chain(setting.hub)


def _half(setting: Setting, cell: Cell, target: Target) -> Chain:
    """Cast by the ranges of the calibration images, where there are any, else of the golden inputs."""
    measured, without = _ranges(setting), target.without.get(cell.precision, ())
    options = cast.CastOptions(cell.precision, setting.family.islands, without)
    name = f"cast-{cell.precision}" + (f"-{target.name}" if without else "")
    node = Node(name, cast.STAGE, options, {"graph": setting.hub, "ranges": measured[-1].id})
    return Chain(node.id, (*measured, node))


def _bfloat16(setting: Setting, cell: Cell, target: Target) -> Chain:
    """Cast where the graph says what layers compute in; else store the weights, and leave that to the run."""
    return (_half if target.typed else _stored)(setting, cell, target)


def _quantized(setting: Setting, cell: Cell, target: Target) -> Chain:
    """Smooth where that pays, the family has strengths to try and there are images to try them on, then quantize."""
    placement = target.placements[cell.precision]
    placement = replace(placement, pairs=placement.pairs and not cell.processors)
    measured, recipe = _ranges(setting), setting.family.int8
    nodes, graph = list(measured), setting.hub
    if cell.precision in SMOOTHED and recipe.strengths and setting.request.calibration is not None:
        smoothed = _smoothed(setting, target, quantize.QuantizeOptions(recipe, placement))
        nodes, graph = [*nodes, *smoothed], smoothed[0].id
    else:
        placement = replace(placement, joint=False)
    options = quantize.QuantizeOptions(recipe, placement, setting.request.kept.get(cell, ()))
    seen = nodes[-1].id
    node = Node(quantize_id(cell), quantize.STAGE, options, {"graph": graph, "ranges": seen})
    rest = placement.rest
    if rest is None:
        return Chain(node.id, (*nodes, node))
    casting = cast.CastOptions(rest, setting.family.islands)
    half = Node(f"cast-{node.id}", cast.STAGE, casting, {"graph": node.id, "ranges": seen})
    return Chain(half.id, (*nodes, node, half))


def _smoothed(setting: Setting, target: Target, options: quantize.QuantizeOptions) -> tuple[Node, Node]:
    """Return the node that smooths the hub graph and the one that measures what came of it."""
    original = setting.original
    rows = cost.RowsOptions(original.input_name, original.recipe, cost.IMAGES)
    inputs = {"graph": setting.hub, "ranges": RANGES, "golden": GOLDEN, "images": CALIBRATION}
    chosen = smooth.SmoothOptions(setting.family.int8.strengths, options, rows)
    node = Node(f"smooth-{target.name}", smooth.STAGE, chosen, inputs)
    measuring = ranges.RangesOptions(original.input_name, original.recipe)
    return node, Node(f"ranges-{target.name}", ranges.FROM_IMAGES, measuring, {"graph": node.id, "images": CALIBRATION})


def _stored(setting: Setting, cell: Cell, _target: Target) -> Chain:
    node = Node(f"store-{cell.precision}", store.STAGE, store.StoreOptions(cell.precision), {"graph": setting.hub})
    return Chain(node.id, (node,))


def _ranges(setting: Setting) -> tuple[Node, ...]:
    """Return the nodes that measure activations, the last of which makes the table."""
    original, request = setting.original, setting.request
    if request.table is not None:
        return (Node(RANGES, ranges.FROM_TABLE, request.table, {"graph": setting.hub}),)
    if request.prompts is not None:
        walked = probe.get_probe(original.takes.probe).walked(original, request.prompts, setting.hub)
        inputs = {"graph": setting.hub, "golden": walked.id}
        return walked, Node(RANGES, ranges.FROM_GOLDEN, reference.NoOptions(), inputs)
    if request.calibration is None:
        inputs = {"graph": setting.hub, "golden": GOLDEN}
        return (Node(RANGES, ranges.FROM_GOLDEN, reference.NoOptions(), inputs),)
    options = ranges.RangesOptions(original.input_name, original.recipe)
    judged = {"evaluation": EVALUATION} if request.evaluation is not None else {}
    stage = calibrate.calibration_stage(with_evaluation=bool(judged))
    images = Node(CALIBRATION, stage, CalibrationOptions.of(request.calibration, original.recipe), judged)
    return images, Node(RANGES, ranges.FROM_IMAGES, options, {"graph": setting.hub, "images": CALIBRATION})


#: Precisions that can be asked for, and the way from the hub graph to each.
PRECISIONS: Mapping[str, Callable[[Setting, Cell, Target], Chain]] = {
    "fp32": _as_it_is,
    "fp16": _half,
    "int8": _quantized,
    "fp8": _quantized,
    "int8-weights": _stored,
    "bf16": _bfloat16,
}
#: Those that need calibration images, and those that make use of them.
CALIBRATED = frozenset({"int8", "fp8"})
MEASURED = CALIBRATED | {"fp16"}
#: Those that networks are smoothed for: floats stand channels of different sizes by themselves.
SMOOTHED = frozenset({"int8"})
#: Those that a layer may be returned from where it costs too much accuracy.
REPAIRABLE = frozenset({"int8", "fp8"})


def _graphs(original: Original, family: Family, request: Request) -> list[Node]:
    first = FIRST[original.form](family, request)
    simplified = Node("simplify", simplify.STAGE, simplify.SimplifyOptions(), {"graph": first.id, "golden": GOLDEN})
    nodes = [first, simplified]
    if family.rewrites:
        rewriting = rewrite.RewriteOptions(family.rewrites)
        nodes.append(Node("rewrite", rewrite.STAGE, rewriting, {"graph": nodes[-1].id, "golden": GOLDEN}))
    if request.opset is not None:
        wanted = opset.OpsetOptions(request.opset)
        nodes.append(Node("opset", opset.STAGE, wanted, {"graph": nodes[-1].id, "golden": GOLDEN}))
    return nodes


def _traced(family: Family, request: Request) -> Node:
    wanted = family.opset if request.opset is None else min(family.opset, max(request.opset, opset.EXPORTED))
    options = trace.TraceOptions(request.batch, request.dynamic, wanted)
    return Node("trace", trace.STAGE, options, {"original": ORIGINAL})


def _adopted(_family: Family, request: Request) -> Node:
    return Node("adopt", adopt.STAGE, adopt.AdoptOptions(request.batch, request.dynamic), {"original": ORIGINAL})


#: The node that makes the first graph, by the original's form.
FIRST: Mapping[str, Callable[[Family, Request], Node]] = {"module": _traced, "diffusers": _traced, "graph": _adopted}


def stem_of(original: Original, cell: Cell) -> str:
    """Return the stem of an artifact's files; the target's endings follow it."""
    return f"{original.id}.{cell.kind}"


def artifact_name(original: Original, cell: Cell) -> str:
    """Return the name of a cell's artifact: model, precision and target."""
    return f"{original.id}.{cell.kind}.{cell.target}"


def _images_node(name: str, request: ImagesRequest, original: Original) -> Node:
    return Node(name, reference.IMAGES, images_options(request, original), {})
