"""What a measurement concludes: Verdict, Budget, GateResult, Judgement, Timing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from deploykit.artifact import RunConfig
from deploykit.errors import Hint, UnsupportedError, worst_exit_code
from deploykit.recommendation import Recommendation
from deploykit.serde import LATER

#: The code of a verdict that could not be reached.
INCONCLUSIVE_EXIT = 6


class Verdict(str, Enum):
    """The four endings of a check. There is no fifth: a check that crashed has failed."""

    PASS = "pass"  # noqa: S105 - a verdict, no password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NOT_RUN = "not_run"

    @classmethod
    def worst(cls, verdicts: Iterable[Verdict]) -> Verdict:
        """Return the gravest one; of nothing at all, NOT_RUN."""
        order = (cls.FAIL, cls.INCONCLUSIVE, cls.PASS, cls.NOT_RUN)
        return min(verdicts, key=order.index, default=cls.NOT_RUN)

    @classmethod
    def of_interval(cls, lower: float, upper: float, bound: float, *, higher_is_better: bool) -> Verdict:
        """Return PASS or FAIL where a confidence interval lies on one side of a bound, INCONCLUSIVE where it straddles it."""
        if lower >= bound if higher_is_better else upper <= bound:
            return cls.PASS
        if upper < bound if higher_is_better else lower > bound:
            return cls.FAIL
        return cls.INCONCLUSIVE


class GateKind(str, Enum):
    """What a gate guards, and with that the exit code of its failure."""

    DRIFT = "drift"
    LATENCY = "latency"
    AXIS = "axis"
    EXECUTION = "execution"

    @property
    def exit_code(self) -> int:
        """The code that the command line ends with when such a gate fails."""
        return {GateKind.DRIFT: 3, GateKind.LATENCY: 4, GateKind.AXIS: 8, GateKind.EXECUTION: 8}[self]


@dataclass(frozen=True)
class Budget:
    """How far an artifact may drift. None: not gated.

    Attributes:
        relative_max: Largest max|a-b| / max|a| over the golden inputs.
        sqnr_db: Least signal to quantization noise ratio over the golden inputs, dB.
        cosine: Least cosine similarity of one golden output.
        untied_flips: Most top-1 changes where the reference's margin is no tie.
        agreement: Least share of equal top-1 answers, 0..1.
        accuracy_drop: Largest loss of top-1 accuracy, 0..1.
        int8_share: Least share of the multiply-adds that the runtime must run in 8 bits, 0..1.
        latent_psnr_db: Least peak signal to noise ratio of what a model's own outputs lead to, dB.
    """

    relative_max: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    untied_flips: int | None = None
    agreement: float | None = None
    accuracy_drop: float | None = None
    int8_share: float | None = field(default=None, metadata=LATER)
    latent_psnr_db: float | None = field(default=None, metadata=LATER)


#: What artifacts are made in and what runtimes compute in, from fine to coarse, under the names of their budgets.
GRADES: Final = ("f32", "f16", "int8-weights", "bf16", "int8", "fp8")
#: Precisions of artifacts to grades, where the names differ.
GRADE_OF: Final[Mapping[str, str]] = {"fp32": "f32", "fp16": "f16"}


def grade_of(precision: str, ran: str) -> str:
    """Return the name of the budget that an artifact is held to: the coarser of what it is made in and what it ran in.

    Args:
        precision: Of the artifact, such as "fp16".
        ran: That a session computes in, such as "bf16".
    """
    made = GRADE_OF.get(precision, precision)
    return max(made, ran, key=GRADES.index) if {made, ran} <= set(GRADES) else ran


@dataclass(frozen=True)
class Executed:
    """A layer as a runtime ran it.

    Attributes:
        name: In the runtime's own graph.
        operator: In the runtime's own words.
        precision: That it multiplies in: "int8", "f32", ...
        macs: Its multiply-adds.
    """

    name: str
    operator: str
    precision: str
    macs: int


#: What layers multiply in, in 8 bits.
EIGHT_BITS: Final = frozenset({"int8", "fp8"})


def int8_share(layers: Iterable[Executed]) -> float:
    """Return the share of the multiply-adds that ran in 8 bits; of no layers at all, 0."""
    layers = tuple(layers)
    total = sum(layer.macs for layer in layers)
    return sum(layer.macs for layer in layers if layer.precision in EIGHT_BITS) / total if total else 0.0


@dataclass(frozen=True)
class GateResult:
    """One bound, what was measured against it, and what follows.

    Attributes:
        kind: What it guards.
        metric: Name of the measured quantity, such as "relative_max" or "agreement".
        reference: What it was compared with: "original", "hub", or of an axis "itself" at the traced size. Of a latency gate,
            the candidate that was timed.
        value: The measured value.
        lower: Lower confidence bound (equal to `value` where there is no sampling error).
        upper: Upper confidence bound.
        bound: The budget.
        higher_is_better: Whether `bound` is a least value.
        n: Samples behind `value`.
        verdict: The conclusion.
        reason: Why, where the numbers don't say it.
        output: Which output it is about, where there are several.
    """

    kind: GateKind
    metric: str
    reference: str
    value: float
    lower: float
    upper: float
    bound: float
    higher_is_better: bool
    n: int
    verdict: Verdict
    reason: str = ""
    output: str | None = field(default=None, metadata=LATER)


@dataclass(frozen=True)
class Ran:
    """Where and how a session really ran, in the runtime's own words."""

    backend: str
    version: str
    device: str
    precision: str
    threads: int | None


@dataclass(frozen=True)
class Judgement:
    """The verdict on one artifact in one RunConfig on one class of processors.

    Attributes:
        artifact: Name of the artifact.
        run: As it was asked to run.
        ran: As it ran; None where it did not.
        gates: Every gate that was judged.
        metrics: Every number measured, gated or not.
        verdict: The gravest gate.
        reason: Why it was not run, crashed, or drifts though its graph does not.
        not_run: Checks that could not be made here, each with its reason.
        measured_at: UTC, ISO 8601.
        processor: Class of the processor that computed it, of `deploykit.runtime.processors`; None where none did, or where it
            isn't on record.
        site: Name of the virtual site whose emulated processor ran it; None where this machine did.
    """

    artifact: str
    run: RunConfig
    ran: Ran | None
    gates: tuple[GateResult, ...]
    metrics: Mapping[str, float]
    verdict: Verdict
    reason: str
    not_run: tuple[str, ...]
    measured_at: str
    processor: str | None = field(default=None, metadata=LATER)
    site: str | None = field(default=None, metadata=LATER)

    @property
    def label(self) -> str:
        """How and where it ran: "onnxruntime cpu f32 on arm64"."""
        return self.run.label if self.site is None else f"{self.run.label} on {self.site}"


@dataclass(frozen=True)
class Ratio:
    """A paired ratio over rounds.

    Attributes:
        median: Of the rounds' ratios.
        lower: Lower end of the 95 % confidence interval of that median.
        upper: Upper end.
        rounds: How many.
        doubts: Why it is unsure, so that it is neither shown nor judged; None where nothing speaks against it.
    """

    median: float
    lower: float
    upper: float
    rounds: int
    doubts: tuple[str, ...] | None = field(default=None, metadata=LATER)


#: Parts of an inference on a GPU, in the order of `GpuTiming`: inputs up, the work itself, results down, and what the host
#: took to queue the work.
PHASES: Final = ("upload", "compute", "download", "enqueue")


@dataclass(frozen=True)
class Clocks:
    """What a GPU ran at while it was timed.

    Attributes:
        sm_mhz: Of its multiprocessors.
        memory_mhz: Of its memory.
        limited_by: What kept the clocks down, in the words of NVIDIA's management library; () where nothing did.
    """

    sm_mhz: int
    memory_mhz: int
    limited_by: tuple[str, ...]


@dataclass(frozen=True)
class GpuTiming:
    """The parts of an inference on a GPU, timed by events in its stream; medians in milliseconds.

    Attributes:
        upload_ms: Inputs to the GPU.
        compute_ms: The work itself, inputs and outputs in the GPU's memory.
        download_ms: Outputs from the GPU.
        enqueue_ms: What the host took to queue the work. More than `compute_ms`: the GPU waits for the host.
        n: Timed inferences.
        clocks: Read right after the last of them; None where nothing could tell.
    """

    upload_ms: float
    compute_ms: float
    download_ms: float
    enqueue_ms: float
    n: int
    clocks: Clocks | None


@dataclass(frozen=True)
class Timing:
    """Latency of one candidate, one inference at a time.

    Attributes:
        candidate: Artifact name, or "original" for the original.
        run: As it was asked to run.
        ran: As it ran.
        batch: Rows per inference.
        median_ms: Milliseconds per inference, over all timed inferences.
        median_lower_ms: Lower end of the 95 % confidence interval of the rounds' medians.
        median_upper_ms: Upper end.
        p90_ms: Milliseconds.
        p99_ms: Milliseconds.
        min_ms: Milliseconds.
        n: Timed inferences.
        rounds: Bursts that they came in.
        warmup: Inferences before the first timed one.
        speedup: Time of the original over time of this, paired by round; None for the original.
        measured_at: UTC, ISO 8601.
        gpu: Its parts, where it ran on a GPU that tells them.
        doubts: Why it is unsure, such as a busy machine; None where nothing speaks against it.
    """

    candidate: str
    run: RunConfig
    ran: Ran
    batch: int
    median_ms: float
    median_lower_ms: float
    median_upper_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    n: int
    rounds: int
    warmup: int
    speedup: Ratio | None
    measured_at: str
    gpu: GpuTiming | None = field(default=None, metadata=LATER)
    doubts: tuple[str, ...] | None = field(default=None, metadata=LATER)


@dataclass(frozen=True)
class Returned:
    """A layer that went back to the higher precision.

    Attributes:
        module: Path of the nn.Module that it comes from.
        node: First output of its node.
        error_share: Its share of the squared error that all layers cost one by one, 0..1.
        macs_share: Its share of the multiply-adds of all layers that could be rounded, 0..1.
    """

    module: str
    node: str
    error_share: float
    macs_share: float


@dataclass(frozen=True)
class Repair:
    """What was done so that an artifact passes.

    Attributes:
        artifact: Its name.
        rounds: How often it was built anew.
        returned: Layers that went back, in that order.
        before: Every number measured before, by RunConfig label; those after are in the judgements.
        elsewhere: What another runtime makes of the same graph; "" where none was asked.
        given_up: Why no more was returned though it does not pass; "" where it does.
        after: Every number measured after, by RunConfig label, where the artifact can't run here: these and those before are
            of the graph that it is built from. None where the artifact itself was measured.
    """

    artifact: str
    rounds: int
    returned: tuple[Returned, ...]
    before: Mapping[str, Mapping[str, float]]
    elsewhere: str
    given_up: str
    after: Mapping[str, Mapping[str, float]] | None = field(default=None, metadata=LATER)


@dataclass(frozen=True)
class Refusal:
    """An artifact that was asked for and can't be made.

    Attributes:
        artifact: The name that it would have.
        precision: That was asked for.
        target: That was asked for.
        reason: The whole message of who refused it.
        hints: What to do about it.
    """

    artifact: str
    precision: str
    target: str
    reason: str
    hints: tuple[Hint, ...] = ()


@dataclass(frozen=True)
class Report:
    """What was found out about a bundle or an artifact.

    Attributes:
        subject: Path of what was judged.
        judgements: One per artifact and RunConfig.
        timings: One per candidate, the original among them.
        latency: Latency gates that were asked for.
        untimed: What could not be timed here, each with its reason.
        repairs: What was done so that artifacts pass.
        refused: What was asked for and can't be made.
        notes: What one has to know to read it.
        recommendation: Which of several artifacts to ship; None where there is no choice.
    """

    subject: str
    judgements: tuple[Judgement, ...] = ()
    timings: tuple[Timing, ...] = ()
    latency: tuple[GateResult, ...] = ()
    untimed: tuple[str, ...] = ()
    repairs: tuple[Repair, ...] = ()
    refused: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()
    recommendation: Recommendation | None = None

    @property
    def verdict(self) -> Verdict:
        """The gravest verdict of all; what can't be made has failed."""
        refused = (Verdict.FAIL for _ in self.refused)
        return Verdict.worst(
            [*(j.verdict for j in self.judgements), *(gate.verdict for gate in self.latency), *refused]
        )

    def count(self, verdict: Verdict) -> int:
        """Return how many judgements ended so."""
        return sum(judgement.verdict is verdict for judgement in self.judgements)

    @property
    def not_run(self) -> tuple[str, ...]:
        """Every check that could not be made here, with its reason."""
        judged = [f"{j.artifact} ({j.label}): {reason}" for j in self.judgements for reason in j.not_run]
        return (*judged, *self.untimed)

    def exit_code(self, *, strict: bool, must_run: bool = False) -> int:
        """Return the code that the command line ends with.

        Args:
            strict: Whether a check that was not run counts as inconclusive.
            must_run: Whether it is inconclusive, too, where nothing at all was run.
        """
        codes = [0, *(UnsupportedError.exit_code for _ in self.refused)]
        for judgement in self.judgements:
            failed = [gate.kind.exit_code for gate in judgement.gates if gate.verdict is Verdict.FAIL]
            if judgement.verdict is Verdict.FAIL:
                codes += failed or [GateKind.DRIFT.exit_code]
        codes += [gate.kind.exit_code for gate in self.latency if gate.verdict is Verdict.FAIL]
        verdicts = [j.verdict for j in self.judgements] + [gate.verdict for gate in self.latency]
        incomplete = self.not_run or not verdicts or Verdict.NOT_RUN in verdicts
        idle = all(verdict is Verdict.NOT_RUN for verdict in verdicts)
        if Verdict.INCONCLUSIVE in verdicts or (strict and incomplete) or (must_run and idle):
            codes.append(INCONCLUSIVE_EXIT)
        return worst_exit_code(codes)
