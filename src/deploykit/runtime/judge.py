"""Judge a session: run the golden inputs, every declared dynamic axis and the labelled images; gate what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import Axis, Preprocess, RunConfig
from deploykit.data.preprocess import normalize
from deploykit.errors import DeploykitError, MissingComponentError, UnsupportedError
from deploykit.runtime import drift, gate, processors
from deploykit.runtime.axes import judge_axes
from deploykit.runtime.backends.base import CPU, Session, Tensor
from deploykit.runtime.batches import CHUNK, Answered, MismatchError, ask, check_names, paired, run_rows
from deploykit.runtime.claims import Claims
from deploykit.runtime.golden import ORIGINAL, Golden, feeds_of
from deploykit.runtime.numeric import Subject, numeric_gates, rounding_of
from deploykit.runtime.power import power_gates, shares
from deploykit.runtime.rollout import Rollout
from deploykit.verdict import Budget, GateResult, Judgement, Verdict, grade_of

#: The gate of measured outputs that needs no budget, and those of labelled images that have one.
FINITE, OF_IMAGES = "finite", frozenset({"untied_flips", "agreement", "accuracy_drop"})


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
        precision: Of the artifact, by what its file holds or by who asks, never by what the file says of itself.
        claims: What the file must say of itself.
        without_evaluation: Why they could not be had though they should have been; "" where there were never any.
    """

    golden: Golden
    budgets: Mapping[str, Budget]
    axes: Mapping[str, int] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    precision: str = "fp32"
    claims: Claims = field(default_factory=Claims)
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
        grade = grade_of(brief.precision, session.ran.precision)
        budget = brief.budgets.get(grade)
        if budget is None:
            raise UnsupportedError(f"{artifact}: no budget for {grade}; there are: {', '.join(brief.budgets)}")
        gates, metrics, skipped, reason = _measure(session, brief, budget, progress)
        reason = "; ".join(filter(None, (reason, *brief.claims.contradictions(session.metadata))))
        verdict = Verdict.FAIL if reason else Verdict.worst(result.verdict for result in gates)
        if verdict is not Verdict.FAIL and _is_unbounded(budget, gates):
            verdict, reason = Verdict.INCONCLUSIVE, f"nothing bounds its drift: the budget for {grade} is empty"
        elif verdict is Verdict.PASS and _is_constant(brief.golden):
            verdict, reason = Verdict.INCONCLUSIVE, _CONSTANT.format(brief.golden.count)
        computed = processors.here().name if run.device == CPU else None
        return Judgement(artifact, run, session.ran, gates, metrics, verdict, reason, skipped, now(), computed)


#: Why nothing is proven by answers that never differ.
_CONSTANT = (
    "the original answers all {} golden inputs alike: nothing shows that an artifact looks at its input, "
    "give others with --golden"
)


def _is_constant(golden: Golden) -> bool:
    """Tell whether no output of the original differs between golden inputs, of which there are several."""
    outputs = golden.references.get(ORIGINAL, {}).values()
    return golden.count > 1 and bool(outputs) and not any(len(array) > 1 and _varies(array) for array in outputs)


def _varies(array: Tensor) -> bool:
    return any(not np.array_equal(row, array[0], equal_nan=row.dtype.kind == "f") for row in array[1:])


def _is_unbounded(budget: Budget, gates: Sequence[GateResult]) -> bool:
    """Tell whether nothing says how far outputs may drift that are measured, not counted."""
    metrics = {result.metric for result in gates}
    bounded = any(bound is not None for bound in (budget.relative_max, budget.sqnr_db, budget.cosine))
    return not bounded and not metrics & OF_IMAGES and (FINITE in metrics or not metrics)


def _measure(
    session: Session, brief: Brief, budget: Budget, progress: Callable[[int, int], None] | None
) -> tuple[tuple[GateResult, ...], dict[str, float], tuple[str, ...], str]:
    gates: list[GateResult] = []
    metrics: dict[str, float] = {}
    skipped: list[str] = []
    golden = brief.golden
    # Each check runs though one before it crashed: a baked axis breaks the golden inputs too, and must be called by its name.
    crashes = [
        _crash(lambda: _judge_golden(session, brief, budget, (gates, metrics))),
        _crash(lambda: gates.extend(judge_axes(session, golden, budget, brief.axes, skipped, least_sqnr(metrics)))),
    ]
    if budget.int8_share is not None:
        least = budget.int8_share
        crashes.append(_crash(lambda: gates.extend(_judge_share(session, golden, least, metrics, skipped))))
    if brief.evaluation is not None:
        evaluation = brief.evaluation
        crashes.append(_crash(lambda: _judge_task(session, evaluation, budget, (gates, metrics), progress)))
    elif brief.without_evaluation:
        skipped.append(f"task gates: {brief.without_evaluation}")
    return tuple(gates), metrics, tuple(skipped), next((text for text in crashes if text), "")


def least_sqnr(metrics: Mapping[str, float]) -> float:
    """Return the SQNR from the original of the output that has least, dB; inf where none was measured."""
    return min((value for key, value in metrics.items() if key.partition(":")[0] == "sqnr_db"), default=float("inf"))


def _crash(check: Callable[[], None]) -> str:
    """Run a check; return what broke it, or ""."""
    try:
        check()
    except MismatchError as error:
        return str(error)
    except DeploykitError as error:
        return f"the check crashed: {error.message}"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is put on record as a failure
        return f"the check crashed: {type(error).__name__}: {error}"
    return ""


def _judge_golden(
    session: Session, brief: Brief, budget: Budget, into: tuple[list[GateResult], dict[str, float]]
) -> None:
    """Run the golden inputs and compare what comes out; then what becomes of it, where it becomes inputs again."""
    golden = brief.golden
    if not golden.inputs or not any(golden.references.values()):
        raise ValueError("there are no golden inputs, or no outputs to compare with")
    first = session.inputs[0].shape[0]
    traced = brief.axes.get(first.name) if isinstance(first, Axis) else None
    answered = ask(session, golden.inputs, golden.rows(traced))
    problems = [*_compared(answered, golden, budget, into, is_coarse=budget is not brief.budgets.get("f32"))]
    if golden.faults:
        into[0].extend(power_gates(golden.faults, budget))
        into[1].update(shares(golden.faults, budget))
    if golden.rollout is not None:
        _judge_rollout(session, golden, golden.rollout, budget, into, answered)
    if problems:
        raise MismatchError("; ".join(dict.fromkeys(problems)))


def _compared(
    answered: Answered,
    golden: Golden,
    budget: Budget,
    into: tuple[list[GateResult], dict[str, float]],
    *,
    is_coarse: bool,
) -> Iterator[str]:
    """Compare every output with each reference's; yield what is in the way, which keeps none of the others from it."""
    gates, metrics = into
    rounding = rounding_of(golden.references, golden.rounding)
    for reference, expected in golden.references.items():
        try:
            check_names(expected, answered.pieces)
        except MismatchError as error:
            yield str(error)
        for name, array in expected.items():
            is_first, is_only = name == next(iter(expected)), len(expected) == 1
            subject = Subject(reference, name, is_first, is_only, rounding.get(name, 0.0), is_coarse)
            try:
                if name in answered.pieces:
                    gates += numeric_gates(*paired(name, array, answered.like(name, array)), budget, subject, metrics)
            except MismatchError as error:
                yield str(error)


def _judge_rollout(
    session: Session,
    golden: Golden,
    rollout: Rollout,
    budget: Budget,
    into: tuple[list[GateResult], dict[str, float]],
    answered: Answered,
) -> None:
    """Compare each step by itself, given what the original was given, and then what all steps lead to."""
    gates, metrics = into
    (name, expected), *_ = golden.references[ORIGINAL].items()
    found = answered.like(name, expected)
    about = drift.mean_answer(expected)
    steps = [drift.sqnr_db(expected[rows], found[rows], about) for rows in map(rollout.rows, range(rollout.steps))]
    latents = rollout.play(lambda feeds: run_rows(session, feeds, golden.rows(None))[name], golden.inputs)
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
