"""Judge a session: run the golden inputs, every declared dynamic axis and the labelled images; gate what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import Axis, Preprocess, RunConfig, TensorSpec
from deploykit.data.preprocess import normalize
from deploykit.errors import DeploykitError, MissingComponentError, UnsupportedError
from deploykit.runtime import drift, gate
from deploykit.runtime.backends.base import Session, Tensor, Tensors
from deploykit.runtime.rollout import Rollout, Sized
from deploykit.verdict import Budget, GateKind, GateResult, Judgement, Verdict, grade_of

ORIGINAL, HUB = "original", "hub"
#: Sizes that a dynamic axis is run at; the traced one is left out, so that at least three remain.
AXIS_SIZES = (1, 3, 5, 8)
#: The same where a row is a diffusion model's, which takes seconds and a gigabyte.
FEW_SIZES = (1, 3)
CHUNK = 16
#: Where a file says what precision it was made in.
PRECISION_KEY = "deploykit.precision"
#: What the same row must keep at another batch size where the budget bounds no numeric metric.
DEFAULT_ROW_COSINE = 0.99


@dataclass(frozen=True)
class Golden:
    """Fixed inputs and what was computed from them, rows first: arrays [G, ...] by tensor name.

    Attributes:
        inputs: The inputs.
        references: Outputs of "original", and of "hub" (the simplified fp32 ONNX in ONNX Runtime) where known.
        sized: Inputs of other sizes of open axes, with the original's outputs.
        rollout: How outputs become the next inputs, where the model is asked again and again.
    """

    inputs: Tensors
    references: Mapping[str, Tensors]
    sized: tuple[Sized, ...] = ()
    rollout: Rollout | None = None

    @property
    def count(self) -> int:
        """Number of golden inputs."""
        return len(next(iter(self.inputs.values())))

    @property
    def chunk(self) -> int:
        """Rows to run at a time: one of a diffusion model, whose attention compares every pixel with every other."""
        return CHUNK if self.rollout is None else 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes to run an open batch at, the one that it was traced at apart."""
        return AXIS_SIZES if self.rollout is None else FEW_SIZES


@dataclass(frozen=True)
class Evaluation:
    """Labelled images, prepared, with the reference's answers.

    Attributes:
        crops: uint8 [N, height, width, 3].
        answers: The original's top-1 answers to them, and the labels.
        recipe: How crops become inputs.
    """

    crops: NDArray[np.uint8]
    answers: drift.Answers
    recipe: Preprocess


@dataclass(frozen=True)
class Brief:
    """What to judge by.

    Attributes:
        golden: Always judged.
        budgets: By grade; see `deploykit.verdict.GRADES`.
        axes: Declared dynamic axes by name, with the size that each was traced at.
        evaluation: Labelled images; None leaves the task gates out.
        precision: Of the artifact; "" takes what its file says, or fp32.
        without_evaluation: Why they could not be had though they should have been; "" where there were never any.
    """

    golden: Golden
    budgets: Mapping[str, Budget]
    axes: Mapping[str, int] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    precision: str = ""
    without_evaluation: str = ""


def now() -> str:
    """Return the time in UTC, to the second, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def not_run(artifact: str, run: RunConfig, reason: str) -> Judgement:
    """Return the judgement of something that can't run here."""
    return Judgement(artifact, run, None, (), {}, Verdict.NOT_RUN, reason, (reason,), now())


def judge(
    artifact: str,
    run: RunConfig,
    open_session: Callable[[], Session],
    brief: Brief,
    progress: Callable[[int, int], None] | None = None,
) -> Judgement:
    """Open a session, run everything in `brief` through it and gate the results.

    A component that is missing makes the judgement NOT_RUN; whatever else breaks makes it FAIL, since a check that
    crashed has not passed.

    Args:
        artifact: Its name.
        run: How it was asked to run.
        open_session: Opens it so.
        brief: What to judge by.
        progress: Called with images done and images in all.

    Raises:
        BadInputError: The artifact's file can't be read.
        UnsupportedError: The runtime refuses the model.
    """
    try:
        session = open_session()
    except MissingComponentError as error:
        return not_run(artifact, run, error.message)
    with session:
        grade = grade_of(brief.precision or session.metadata.get(PRECISION_KEY, "fp32"), session.ran.precision)
        budget = brief.budgets.get(grade)
        if budget is None:
            raise UnsupportedError(f"{artifact}: no budget for {grade}; there are: {', '.join(brief.budgets)}")
        gates, metrics, skipped, reason = _measure(session, brief, budget, progress)
        verdict = Verdict.worst(result.verdict for result in gates)
        verdict = Verdict.FAIL if reason else verdict
        return Judgement(artifact, run, session.ran, gates, metrics, verdict, reason, skipped, now())


def _measure(
    session: Session, brief: Brief, budget: Budget, progress: Callable[[int, int], None] | None
) -> tuple[tuple[GateResult, ...], dict[str, float], tuple[str, ...], str]:
    gates: list[GateResult] = []
    metrics: dict[str, float] = {}
    skipped: list[str] = []
    outputs: dict[str, Tensor] = {}
    # Each check runs though one before it crashed: a baked axis breaks the golden inputs too, and must be called by its name.
    crashes = [
        _crash(lambda: _judge_golden(session, brief.golden, budget, (gates, metrics), outputs)),
        _crash(lambda: gates.extend(_judge_axes(session, brief, budget, skipped))),
    ]
    if brief.golden.rollout is not None:
        rollout = brief.golden.rollout
        crashes.append(
            _crash(lambda: _judge_rollout(session, brief.golden, rollout, budget, (gates, metrics), outputs))
        )
    if budget.int8_share is not None:
        least = budget.int8_share
        crashes.append(_crash(lambda: gates.extend(_judge_share(session, brief.golden, least, metrics, skipped))))
    if brief.evaluation is not None:
        evaluation = brief.evaluation
        crashes.append(_crash(lambda: _judge_task(session, evaluation, budget, (gates, metrics), progress)))
    elif brief.without_evaluation:
        skipped.append(f"task gates: {brief.without_evaluation}")
    return tuple(gates), metrics, tuple(skipped), next((text for text in crashes if text), "")


def _crash(check: Callable[[], None]) -> str:
    """Run a check; return what broke it, or ""."""
    try:
        check()
    except DeploykitError as error:
        return f"the check crashed: {error.message}"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is put on record as a failure
        return f"the check crashed: {type(error).__name__}: {error}"
    return ""


def run_rows(session: Session, inputs: Tensors, chunk: int = CHUNK) -> dict[str, Tensor]:
    """Run any number of rows through a session of static or dynamic batch.

    The last chunk of a static batch is filled up by repeating its last row; what comes of that is cut off.

    Args:
        session: Its inputs' first dimension is the batch.
        inputs: Arrays [N, ...] by name, N at least 1.
        chunk: Rows at a time where the batch is dynamic.

    Returns:
        Arrays [N, ...] by name.
    """
    batch = session.inputs[0].shape[0]
    size = min(chunk, batch.max) if isinstance(batch, Axis) else batch
    total = len(next(iter(inputs.values())))
    pieces: list[dict[str, Tensor]] = []
    for start in range(0, total, size):
        rows = {name: array[start : start + size] for name, array in inputs.items()}
        count = len(next(iter(rows.values())))
        if not isinstance(batch, Axis) and count < size:
            rows = {name: np.concatenate([a, np.repeat(a[-1:], size - count, axis=0)]) for name, a in rows.items()}
        pieces.append({name: array[:count] for name, array in session.infer(rows).items()})
    return {spec.name: np.concatenate([piece[spec.name] for piece in pieces]) for spec in session.outputs}


def _judge_golden(
    session: Session,
    golden: Golden,
    budget: Budget,
    into: tuple[list[GateResult], dict[str, float]],
    outputs: dict[str, Tensor],
) -> None:
    """Run the golden inputs and leave their outputs in `outputs`."""
    if not golden.inputs or not any(golden.references.values()):
        raise ValueError("there are no golden inputs, or no outputs to compare with")
    gates, metrics = into
    outputs |= run_rows(session, golden.inputs, golden.chunk)
    for reference, expected in golden.references.items():
        for name, array in expected.items():
            if name not in outputs:
                raise ValueError(f"output {name!r} is missing; found: {', '.join(outputs)}")
            gates += _numeric_gates(array, outputs[name], budget, reference, metrics)


def _numeric_gates(
    expected: Tensor, found: Tensor, budget: Budget, reference: str, metrics: dict[str, float]
) -> Iterator[GateResult]:
    n = len(expected)
    yield gate.numeric_gate(
        "finite", float(drift.is_finite(found)), 1.0, higher_is_better=True, reference=reference, n=n
    )
    measured = {
        "relative_max": (drift.relative_max(expected, found), budget.relative_max, False),
        "sqnr_db": (drift.sqnr_db(expected, found), budget.sqnr_db, True),
        "cosine": (drift.cosine_min(expected, found), budget.cosine, True),
    }
    for metric, (value, bound, higher) in measured.items():
        metrics[metric if reference == ORIGINAL else f"{metric}_from_{reference}"] = value
        if bound is not None:
            yield gate.numeric_gate(metric, value, bound, higher_is_better=higher, reference=reference, n=n)


def _judge_rollout(
    session: Session,
    golden: Golden,
    rollout: Rollout,
    budget: Budget,
    into: tuple[list[GateResult], dict[str, float]],
    outputs: Tensors,
) -> None:
    """Compare each step by itself, given what the original was given, and then what all steps lead to."""
    gates, metrics = into
    (name, expected), *_ = golden.references[ORIGINAL].items()
    steps = [drift.sqnr_db(expected[rows], outputs[name][rows]) for rows in map(rollout.rows, range(rollout.steps))]
    latents = rollout.play(lambda feeds: run_rows(session, feeds, golden.chunk)[name], golden.inputs)
    metrics |= {f"sqnr_db_step_{number}": value for number, value in enumerate(steps, start=1)}
    metrics["latent_psnr_db"] = drift.psnr_db(rollout.latents, latents)
    measured = {
        "step_sqnr_db": (float(np.min(steps)), budget.sqnr_db, len(expected)),
        "latent_psnr_db": (metrics["latent_psnr_db"], budget.latent_psnr_db, len(latents)),
    }
    for metric, (value, bound, n) in measured.items():
        if bound is not None:
            gates.append(gate.numeric_gate(metric, value, bound, higher_is_better=True, reference=ORIGINAL, n=n))


def _judge_share(
    session: Session, golden: Golden, least: float, metrics: dict[str, float], skipped: list[str]
) -> Iterator[GateResult]:
    """Ask the runtime in how many bits it multiplies: accuracy can't see a layer that silently runs in float."""
    try:
        layers = session.executed(feeds_of(session.inputs, golden, 1))
    except UnsupportedError as error:
        skipped.append(f"int8 share: {error.message}")
        return
    result = gate.share_gate(layers, least)
    metrics["int8_share"] = result.value
    yield result


def _judge_axes(session: Session, brief: Brief, budget: Budget, skipped: list[str]) -> Iterator[GateResult]:
    """Run every axis that the graph or the bundle calls dynamic at sizes other than the traced one."""
    rows = {dim.name for spec in session.inputs for dim in spec.shape[:1] if isinstance(dim, Axis)}
    sized = [one for one in brief.golden.sized if one.axis in brief.axes]
    of_sizes = {one.axis for one in sized}
    for axis in sorted({axis.name for spec in session.inputs for axis in spec.axes} | set(brief.axes)):
        if axis in of_sizes:
            fitting = [one for one in sized if one.axis == axis and _takes(session, axis, one.size)]
            yield from (_judge_size(session, budget, one, brief.golden.chunk) for one in fitting)
        elif axis in rows or axis in brief.axes:
            for size in _sizes(session, axis, brief.golden.sizes):
                if size != brief.axes.get(axis):
                    yield _judge_axis(session, brief, budget, axis, size)
        else:
            skipped.append(f"axis {axis!r}: there are no golden inputs of other sizes")


def _takes(session: Session, axis: str, size: int) -> bool:
    """Tell whether a size lies in the bounds that a session gives an axis, as far as it gives any."""
    return all(dim.accepts(size) for spec in session.inputs for dim in spec.axes if dim.name == axis)


def _sizes(session: Session, axis: str, wanted: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes to try: those wanted that the session's bounds allow, else its least and its largest."""
    bounds = [dim for spec in session.inputs for dim in spec.axes if dim.name == axis]
    allowed = tuple(size for size in wanted if all(dim.accepts(size) for dim in bounds))
    return allowed or tuple(sorted({bounds[0].min, bounds[0].max}))


def _judge_axis(session: Session, brief: Brief, budget: Budget, axis: str, size: int) -> GateResult:
    """Run `size` golden rows at once: each must come out as it does at the traced size. Drift is no matter here."""
    rows = {name: np.resize(array, (size, *array.shape[1:])) for name, array in brief.golden.inputs.items()}
    measure, bound, higher = _row_gate(budget)
    problem, value, same = "", float("nan"), False
    try:
        expected = _at_traced_size(session, brief.golden, size, brief.axes.get(axis, 1))
        found = session.infer(rows)[session.outputs[0].name]
        same = np.array_equal(expected, found, equal_nan=True)
        value = measure(expected, found)
    except (DeploykitError, ValueError, RuntimeError) as error:
        problem = f"axis {axis!r} is baked: size {size} fails with: {str(error).splitlines()[0][:200]}"
    passed = same or (value >= bound if higher else value <= bound)
    if not passed and not problem:
        problem = f"axis {axis!r} is baked: at size {size} the outputs differ from those at the traced size"
    return GateResult(
        kind=GateKind.AXIS,
        metric=f"{axis}={size}",
        reference="itself",
        value=value,
        lower=value,
        upper=value,
        bound=bound,
        higher_is_better=higher,
        n=size,
        verdict=Verdict.PASS if passed else Verdict.FAIL,
        reason=problem,
    )


def _judge_size(session: Session, budget: Budget, one: Sized, chunk: int) -> GateResult:
    """Run inputs of another size: what comes out must be what the original makes of them, within its drift."""
    measure, bound, higher = _row_gate(budget)
    problem, value = "", float("nan")
    try:
        (name, expected), *_ = one.outputs.items()
        value = measure(expected, run_rows(session, one.inputs, chunk)[name])
    except (DeploykitError, ValueError, RuntimeError) as error:
        problem = f"axis {one.axis!r} is baked: size {one.size} fails with: {str(error).splitlines()[0][:200]}"
    passed = value >= bound if higher else value <= bound
    if not passed and not problem:
        problem = f"at size {one.size} of axis {one.axis!r} the outputs are not the original's"
    return GateResult(
        kind=GateKind.AXIS,
        metric=f"{one.axis}={one.size}",
        reference=ORIGINAL,
        value=value,
        lower=value,
        upper=value,
        bound=bound,
        higher_is_better=higher,
        n=len(next(iter(one.inputs.values()))),
        verdict=Verdict.PASS if passed else Verdict.FAIL,
        reason=problem,
    )


def _at_traced_size(session: Session, golden: Golden, size: int, traced: int) -> Tensor:
    """Return the first output for the first `size` golden rows, repeated as needed, run `traced` at a time."""
    name, pieces = session.outputs[0].name, []
    for start in range(0, size, traced):
        feeds = {key: np.resize(a, (start + traced, *a.shape[1:]))[start:] for key, a in golden.inputs.items()}
        pieces.append(session.infer(feeds)[name])
    return np.concatenate(pieces)[:size]


def _row_gate(budget: Budget) -> tuple[Callable[[Tensor, Tensor], float], float, bool]:
    """Return the metric that rows of other batch sizes are held to, its bound, and whether higher is better."""
    if budget.sqnr_db is not None:
        return drift.sqnr_db, budget.sqnr_db, True
    if budget.relative_max is not None:
        return drift.relative_max, budget.relative_max, False
    return drift.cosine_min, budget.cosine if budget.cosine is not None else DEFAULT_ROW_COSINE, True


def _judge_task(
    session: Session,
    evaluation: Evaluation,
    budget: Budget,
    into: tuple[list[GateResult], dict[str, float]],
    progress: Callable[[int, int], None] | None,
) -> None:
    gates, metrics = into
    if len(evaluation.crops) == 0:
        raise ValueError("there are no labelled images")
    counts = drift.classify(evaluation.answers, logits_of(session, evaluation.crops, evaluation.recipe, progress))
    metrics |= {
        "images": float(counts.n),
        "agreement": counts.agreement,
        "flips": float(counts.flips),
        "untied_flips": float(counts.untied_flips),
        "top1": counts.correct_candidate / counts.n if counts.n else float("nan"),
        "top1_reference": counts.correct_reference / counts.n if counts.n else float("nan"),
        "accuracy_drop": counts.accuracy_drop,
    }
    if budget.untied_flips is not None:
        gates.append(
            gate.numeric_gate(
                "untied_flips",
                counts.untied_flips,
                budget.untied_flips,
                higher_is_better=False,
                reference=ORIGINAL,
                n=counts.n,
            )
        )
    if budget.agreement is not None:
        gates.append(gate.agreement_gate(counts, budget.agreement))
    if budget.accuracy_drop is not None:
        gates.append(gate.accuracy_drop_gate(counts, budget.accuracy_drop))


def logits_of(
    session: Session,
    crops: NDArray[np.uint8],
    recipe: Preprocess,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Return the session's first output for every crop: float32 [N, classes]; N may be 0."""
    name, output, total = session.inputs[0].name, session.outputs[0], len(crops)
    if total == 0:
        return np.empty((0, *(dim for dim in output.shape[1:] if isinstance(dim, int))), np.float32)
    pieces = []
    for start in range(0, total, CHUNK):
        rows = normalize(crops[start : start + CHUNK], recipe)
        pieces.append(run_rows(session, {name: rows})[output.name])
        if progress is not None:
            progress(min(start + CHUNK, total), total)
    return np.concatenate(pieces).astype(np.float32)


def feeds_of(specs: tuple[TensorSpec, ...], golden: Golden, batch: int) -> dict[str, Tensor]:
    """Return golden inputs as one feed: the static batch, or `batch` rows where it is dynamic."""
    size = next((dim for spec in specs for dim in spec.shape[:1] if isinstance(dim, int)), batch)
    return {
        spec.name: np.resize(golden.inputs[spec.name], (size, *golden.inputs[spec.name].shape[1:])) for spec in specs
    }
