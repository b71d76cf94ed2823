"""A Report as a table for the terminal, and as the lines below it that say what went wrong and where."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from deploykit.artifact import RunConfig
from deploykit.manifest import Manifest
from deploykit.runtime.power import DETECTED, RESOLVED, TOLD
from deploykit.texts import one_line
from deploykit.verdict import PHASES, GateKind, GateResult, Judgement, Report, Timing, Verdict

MARKS = {
    Verdict.PASS: ("✔ pass", "green"),
    Verdict.FAIL: ("✘ fail", "bold red"),
    Verdict.INCONCLUSIVE: ("? unsure", "yellow"),
    Verdict.NOT_RUN: ("– not run", "dim"),
}
#: What stands for a verdict where there is no artifact to judge.
REFUSED = ("✘ refused", "bold red")
#: Short names of backends, for narrow terminals.
SHORT = {"onnxruntime": "ort", "openvino": "ov", "tensorrt": "trt", "tensorrt_rtx": "rtx"}
#: Columns that names of artifacts leave to the rest of a table of 80.
NAME_WIDTH = 16
#: Where queueing the work takes this share of the work's own time, the host is what limits it.
HOST_BOUND = 0.9
#: By how many decibels the median input lies off all of them taken together where both are told.
APART = 3.0
#: From this many decibels on nobody asks which input drifts most.
CLOSE = 60.0
#: How many modules a line names.
NAMED = 6
#: What a repair may buy: metric, lead, factor, digits, unit.
BOUGHT = (("sqnr_db", "", 1, 1, " dB"), ("cosine", "worst cosine ", 1, 4, ""), ("agreement", "", 100, 2, " %"))
#: Digits that a number is shown in, and all that it can have.
DIGITS, ALL_DIGITS = 4, 17
#: What stands in a table where the machine was busy.
UNSURE = "unsure"
#: What a gate is called in a sentence, and its unit.
UNITS = {
    "sqnr_db": "dB",
    "step_sqnr_db": "dB",
    "latent_psnr_db": "dB",
    "channels_sqnr_db": "dB",
    RESOLVED: "%",
    DETECTED: "%",
    "agreement": "%",
    "equal": "%",
    "accuracy_drop": "pp",
    "latency_ms": "ms",
    "speedup": "×",
}


def table(report: Report, sizes: Mapping[str, int]) -> Table:
    """Return one row per artifact and RunConfig, narrow enough for 80 columns.

    Args:
        report: What was found out.
        sizes: Bytes of each artifact, by name.
    """
    model, names = names_of(report)
    names = _narrow(names)
    grid = _grid(" · ".join(filter(None, (model, conditions(report)))))
    # Nothing is timed on emulated processors: the column would be empty.
    speed = "" if any(judgement.site for judgement in report.judgements) else f"ms (× {_baseline(report)})"
    for title in ("artifact", "size", "run as", "drift", "agreement", speed, "verdict"):
        right = title in {"size", "drift", "agreement", speed}
        grid.add_column(title, justify="right" if right else "left", no_wrap=True)
    timings = {_key(timing.candidate, timing.run): timing for timing in report.timings}
    for timing in report.timings:
        if timing.speedup is None:
            grid.add_row(timing.candidate, "", _short_run(timing.run), "", "", latency_text(timing), "")
    previous = ""
    for judgement in report.judgements:
        is_new, previous = judgement.artifact != previous, judgement.artifact
        size = megabytes(sizes[judgement.artifact]) if is_new and judgement.artifact in sizes else ""
        words, style = MARKS[judgement.verdict]
        latency = latency_text(timings.get(_key(judgement.artifact, judgement.run)))
        cells = (size, run_text(judgement), drift_text(judgement), agreement_text(judgement), latency)
        grid.add_row(names[judgement.artifact] if is_new else "", *cells, Text(words, style))
    for refusal in report.refused:
        grid.add_row(names[refusal.artifact], *[""] * 5, Text(*REFUSED))
    return grid


def _grid(title: str) -> Table:
    return Table(
        box=SIMPLE_HEAD, show_edge=False, padding=0, pad_edge=False, title=title, title_justify="left", title_style=""
    )


def provenance(manifest: Manifest) -> dict[str, str]:
    """Return what a bundle was made of, when and where, and the command that makes it again, by label."""
    source = manifest.source
    return {
        "original": f"{source.id} · {source.parameters / 1e6:.2f} M parameters · weights {source.weights_sha256[:12]}",
        "made": one_line(f"{manifest.created} by deploykit {manifest.deploykit} on {manifest.machine.cpu}"),
        "command": one_line(manifest.command),
    }


def short_names(names: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Return the part before the first dot where all names share it, and each name without it."""
    distinct = list(dict.fromkeys(names))
    heads = {name.partition(".")[0] for name in distinct}
    if len(heads) != 1 or any("." not in name for name in distinct):
        return "artifacts", {name: name for name in distinct}
    return heads.pop(), {name: name.partition(".")[2] for name in distinct}


def names_of(report: Report) -> tuple[str, dict[str, str]]:
    """Return what `short_names` does of all that a report is about."""
    judged = (judgement.artifact for judgement in report.judgements)
    return short_names([*judged, *(refusal.artifact for refusal in report.refused)])


def _narrow(names: Mapping[str, str]) -> dict[str, str]:
    """Return names with short ones for the runtimes in them, where one would make the table too wide."""
    if max(map(len, names.values()), default=0) <= NAME_WIDTH:
        return dict(names)
    return {full: ".".join(SHORT.get(word, word) for word in name.split(".")) for full, name in names.items()}


def conditions(report: Report) -> str:
    """Return what the numbers of a report rest on: images, rounds, threads, the class of the processor."""
    images = max((int(judgement.metrics.get("images", 0)) for judgement in report.judgements), default=0)
    golden = max((gate.n for judgement in report.judgements for gate in judgement.gates[:1]), default=0)
    words = [f"{golden} golden inputs"] if golden else []
    words += [f"{images:,} labelled images"] if images else []
    if report.timings:
        timing = report.timings[-1]
        words.append(f"batch {timing.batch}, {timing.run.threads} threads, n≥{min(t.n for t in report.timings):,}")
    words += [f"on {' and '.join(classes)}"] if (classes := processors_of(report)) else []
    return " · ".join(words)


def processors_of(report: Report) -> tuple[str, ...]:
    """Return the classes of processors that its verdicts hold for, each once."""
    return tuple(dict.fromkeys(one_line(one.processor) for one in report.judgements if one.processor))


def timing_table(report: Report) -> Table:
    """Return one row per timed candidate: percentiles, count, and speed against the original with its interval."""
    model, names = short_names([t.candidate for t in report.timings if t.speedup is not None])
    grid = _grid(" · ".join(filter(None, (model, conditions(report)))))
    grid.add_column("candidate")
    grid.add_column("run as", no_wrap=True)
    for title in ("median ms", "p90", "p99", "n", f"× {_baseline(report)} (95 %)"):
        grid.add_column(title, justify="right", no_wrap=True)
    for timing in report.timings:
        ratio = timing.speedup
        speed = f"{ratio.median:.2f} ({ratio.lower:.2f}–{ratio.upper:.2f})" if ratio is not None else ""
        speed = UNSURE if ratio is not None and ratio.doubts else speed
        run = _short_run(timing.run)
        run += "" if timing.run.precision == timing.ran.precision else f"={timing.ran.precision}"
        figures = (timing.median_ms, timing.p90_ms, timing.p99_ms)
        grid.add_row(
            names.get(timing.candidate, timing.candidate),
            run,
            *(f"{figure:.2f}" for figure in figures),
            f"{timing.n:,}",
            speed,
        )
    return grid


def gpu_table(report: Report) -> Table:
    """Return one row per candidate that ran on a GPU: its parts in milliseconds, and the clocks it was timed at."""
    _, names = short_names([t.candidate for t in report.timings if t.speedup is not None])
    grid = _grid("on the GPU, median ms")
    grid.add_column("candidate")
    for title in (*PHASES, "SM MHz"):
        grid.add_column(title, justify="right", no_wrap=True)
    grid.add_column("")
    for timing in report.timings:
        if timing.gpu is None:
            continue
        parts = [getattr(timing.gpu, f"{name}_ms") for name in PHASES]
        clocks = timing.gpu.clocks
        remarks = ["the GPU waits for the host"] if timing.gpu.enqueue_ms > HOST_BOUND * timing.gpu.compute_ms else []
        remarks += [f"slowed by {', '.join(clocks.limited_by)}"] if clocks and clocks.limited_by else []
        grid.add_row(
            names.get(timing.candidate, timing.candidate),
            *(f"{part:.3f}" for part in parts),
            f"{clocks.sm_mhz}" if clocks else "not told",
            "; ".join(remarks),
        )
    return grid


def _baseline(report: Report) -> str:
    """Return the short name of what the original runs in."""
    backends = [timing.run.backend for timing in report.timings if timing.speedup is None]
    return SHORT.get(backends[0], backends[0]) if backends else "original"


def _short_run(run: RunConfig) -> str:
    return f"{SHORT.get(run.backend, run.backend)} {run.device} {run.precision}"


def _key(name: str, run: RunConfig) -> tuple[str, str]:
    return name, replace(run, threads=None).label


def megabytes(size: int) -> str:
    """Return a size for people: "5.6 MB"."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def run_text(judgement: Judgement) -> str:
    """Return how it ran: "ov cpu auto=bf16"; on an emulated processor "ov arm64 auto=f16"."""
    run, ran = judgement.run, judgement.ran
    precision = run.precision if ran is None or ran.precision == run.precision else f"{run.precision}={ran.precision}"
    return f"{SHORT.get(run.backend, run.backend)} {judgement.site or run.device} {precision}"


def drift_text(judgement: Judgement) -> str:
    """Return the SQNR against the original, of several outputs the least: "118 dB"."""
    found = _drift(judgement)
    return "" if found is None else decibels(found[0])


def _drift(judgement: Judgement) -> tuple[float, str] | None:
    """Return the SQNR of the output that drifts most, and what the names of its numbers end with; None where none is told."""
    values = [
        (value, key.removeprefix("sqnr_db"))
        for key, value in judgement.metrics.items()
        if key.partition(":")[0] == "sqnr_db"
    ]
    return min(values, key=lambda one: -math.inf if math.isnan(one[0]) else one[0], default=None)


def decibels(value: float) -> str:
    """Return a ratio for people: "118 dB", "equal" where nothing differs."""
    return f"{value:.0f} dB" if math.isfinite(value) else ("equal" if value > 0 else str(value))


def spread_text(judgement: Judgement) -> str:
    """Return the drift of the median and of the worst input: "median 20 dB, worst -3 dB"; "" where they aren't told."""
    found = _drift(judgement)
    names = ("sqnr_db_median", "sqnr_db_worst")
    told = [judgement.metrics.get(f"{name}{found[1]}") for name in names] if found is not None else []
    if not told or None in told:
        return ""
    return ", ".join(
        f"{word} {decibels(value)}" for word, value in zip(("median", "worst"), told, strict=True) if value is not None
    )


def spreads(report: Report) -> Iterator[str]:
    """Yield a line for each artifact whose median input drifts otherwise than all inputs taken together: few weigh most."""
    for judgement in report.judgements:
        found = _drift(judgement)
        median = judgement.metrics.get(f"sqnr_db_median{found[1]}") if found is not None else None
        if found is None or median is None or found[0] >= CLOSE:
            continue
        if abs(median - found[0]) >= APART:
            where = f"{judgement.artifact} ({run_text(judgement)})"
            yield f"inputs  {where}: {decibels(found[0])} over all of them, {spread_text(judgement)}"


def agreement_text(judgement: Judgement) -> str:
    """Return the share of equal top-1 answers, how far the last latents agree, or that the verdict is numeric only."""
    metrics = judgement.metrics
    if "latent_psnr_db" in metrics:
        return f"latents {metrics['latent_psnr_db']:.0f} dB"
    if "agreement" not in metrics:
        return "numeric" if metrics else ""
    return "no flip" if metrics["flips"] == 0 else f"{100 * metrics['agreement']:.2f} %"


def latency_text(timing: Timing | None) -> str:
    """Return the median and how many times faster than the original: "1.91  (2.6×)"; no ratio where it is unsure."""
    if timing is None:
        return ""
    ratio = f"({timing.speedup.median:.1f}×)" if timing.speedup is not None else ""
    ratio = UNSURE if timing.doubts or (timing.speedup is not None and timing.speedup.doubts) else ratio
    return f"{timing.median_ms:.2f}{ratio:>8}"


def complaints(report: Report) -> Iterator[str]:
    """Yield a line for each gate that did not pass and each check that was not run."""
    for judgement in report.judgements:
        where = f"{judgement.artifact} ({run_text(judgement)})"
        if judgement.reason and judgement.verdict is not Verdict.NOT_RUN:
            mark = MARKS[Verdict.INCONCLUSIVE if judgement.verdict is Verdict.PASS else judgement.verdict][0][0]
            yield f"{mark} {where}: {judgement.reason}"
        yield from (f"{mark} {where}: {text}" for mark, text in _missed(judgement.gates))
        for reason in judgement.not_run:
            yield f"– {where}: not run: {reason}"
    yield from (f"note: {note}" for note in report.notes)
    for refusal in report.refused:
        yield f"✘ {refusal.artifact}: " + refusal.reason.replace("\n", "\n    ")
        yield from (f"    use {hint.action}   {hint.effect}".rstrip() for hint in refusal.hints)
    for reason in report.untimed:
        yield f"– {reason}"
    yield from unsure(report)
    for gate in report.latency:
        if gate.verdict is not Verdict.PASS:
            yield f"{MARKS[gate.verdict][0][0]} {gate.reference}: {gate_text(gate)}"


def _missed(gates: Iterable[GateResult]) -> Iterator[tuple[str, str]]:
    """Yield the mark and the text of each gate that did not pass: once for all references of the same numbers.

    A reason that several gates share is told with the last of them.
    """
    references: dict[GateResult, list[str]] = {}
    for gate in gates:
        if gate.verdict is not Verdict.PASS:
            alike = next((one for one in references if _is_alike(one, gate)), gate)
            references.setdefault(alike, []).append(gate.reference)
    last = {gate.reason: gate for gate in references}
    for gate, names in references.items():
        told = gate if last[gate.reason] is gate else replace(gate, reason="")
        yield MARKS[gate.verdict][0][0], gate_text(replace(told, reference=" and ".join(names)))


def _is_alike(one: GateResult, other: GateResult) -> bool:
    """Tell whether two gates differ by nothing that is read but what they compare with."""
    return one.verdict is other.verdict and gate_text(replace(one, reference="")) == gate_text(
        replace(other, reference="")
    )


def unsure(report: Report) -> Iterator[str]:
    """Yield a line for each timing that something speaks against."""
    for timing in report.timings:
        found = (timing.speedup.doubts if timing.speedup is not None else None) or timing.doubts
        if found:
            yield f"? {timing.candidate} ({_short_run(timing.run)}): timing is unsure: {'; '.join(found)}"


def shipping(report: Report) -> Iterator[str]:
    """Yield a line that says what to ship, and one for each other artifact: why not that."""
    found = report.recommendation
    if found is None:
        return
    names = short_names([*([found.artifact] if found.artifact else []), *(one.artifact for one in found.others)])[1]
    where = found.elsewhere or f"on {found.processor}"
    if found.artifact is None or found.run is None:
        yield f"ship    nothing: {found.reason} ({where})"
        return
    yield f"ship    {names[found.artifact]} ({_short_run(found.run)}): {found.reason} ({where})"
    told = {found.artifact}
    for one in found.others:
        if one.artifact not in told:
            told.add(one.artifact)
            yield one_line(f"        {names[one.artifact]} ({_short_run(one.run)}): {one.reason}")


def power(report: Report) -> Iterator[str]:
    """Yield a line that says what the gates of each artifact would have caught, where that was measured."""
    _, names = names_of(report)
    told: dict[str, str] = {}
    for judgement in report.judgements:
        shares = [judgement.metrics.get(name, math.nan) for name in TOLD]
        if judgement.artifact not in told and all(map(math.isfinite, shares)):
            small, gross = (f"{share:.0%}".replace("%", " %") for share in shares)
            told[judgement.artifact] = f"{names.get(judgement.artifact, judgement.artifact)} {small} and {gross}"
    if told:
        first, second = TOLD.values()
        yield f"power   of {first} and {second} the gates catch: {'; '.join(told.values())}"


def repairs(report: Report) -> Iterator[str]:
    """Yield a line or two for each artifact that was repaired, or could not be."""
    _, names = names_of(report)
    for repair in report.repairs:
        name = names.get(repair.artifact, repair.artifact)
        if repair.given_up:
            yield f"repair  {name}: no layer was returned to float: {repair.given_up}"
            if repair.elsewhere and repair.elsewhere != repair.given_up:
                yield f"        {repair.elsewhere}"
            continue
        macs = sum(entry.macs_share for entry in repair.returned)
        measured = [(run_text(j), j.run.label, j.metrics) for j in report.judgements if j.artifact == repair.artifact]
        if repair.after is not None:
            measured = [(f"its graph in {label}", label, metrics) for label, metrics in repair.after.items()]
        changes = "; ".join(f"{run} {_changes(repair.before.get(label, {}), after)}" for run, label, after in measured)
        modules = [entry.module or entry.node for entry in repair.returned]
        rest = f" and {len(modules) - NAMED} more" if len(modules) > NAMED else ""
        count = f"{len(modules)} {'layer' if len(modules) == 1 else 'layers'}"
        yield f"repair  {name}: {count} returned to float, {100 * macs:.1f} % of the multiply-adds; {changes}"
        yield f"        {', '.join(modules[:NAMED])}{rest}"


def _changes(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Return what a repair bought in one RunConfig: "27.1 to 28.2 dB, cosine 0.9688 to 0.9959"."""
    words = [
        f"{lead}{before[key] * scale:.{digits}f} to {after[key] * scale:.{digits}f}{unit}"
        for key, lead, scale, digits, unit in BOUGHT
        if key in before and key in after
    ]
    return ", ".join(words)


def gate_text(gate: GateResult) -> str:
    """Return a gate's numbers as a sentence, with bound, interval, unit and n."""
    side = "at least" if gate.higher_is_better else "at most"
    spread = "" if gate.lower == gate.upper else f" ({value_text(gate, gate.lower)} to {value_text(gate, gate.upper)})"
    against = "" if gate.kind is GateKind.LATENCY else f" from {gate.reference}"
    text = f"{metric_text(gate)} {value_text(gate, gate.value)}{spread}{against}, n={gate.n:,}; "
    text += f"the gate asks for {side} {value_text(gate, gate.bound)}"
    return f"{text}; {gate.reason}" if gate.reason else text


def metric_text(gate: GateResult) -> str:
    """Return what a gate is about, with the output where there are several: "sqnr_db of boxes"."""
    return gate.metric if gate.output is None else f"{gate.metric} of {gate.output}"


def value_text(gate: GateResult, value: float) -> str:
    """Return a value of a gate's metric with its unit: "97.5 %", in as many digits as tell it from the bound."""
    unit = UNITS.get(gate.metric, "")
    scale = 100 if unit in {"%", "pp"} else 1
    measured = [scale * one for one in (gate.value, gate.lower, gate.upper) if one != gate.bound]
    bound, digits = scale * gate.bound + 0.0, DIGITS
    while digits < ALL_DIGITS and any(f"{one:.{digits}g}" == f"{bound:.{digits}g}" for one in measured):
        digits += 1
    return f"{scale * value + 0.0:.{digits}g} {unit}".strip()  # never "-0"


def summary(report: Report) -> str:
    """Return the closing count: "3 passed, 0 not run"."""
    counts = [f"{report.count(Verdict.PASS)} passed"]
    for verdict, word in ((Verdict.FAIL, "failed"), (Verdict.INCONCLUSIVE, "inconclusive")):
        if report.count(verdict):
            counts.append(f"{report.count(verdict)} {word}")
    counts += [f"{len(report.refused)} refused"] if report.refused else []
    return ", ".join([*counts, f"{len(report.not_run)} not run"])
