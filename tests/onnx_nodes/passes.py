"""The models that come with ONNX, one for each way of using an operator, through all that we do to graphs.

What ran in ONNX Runtime before must run and agree after each pass, or be refused by an error of ours.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from deploykit.artifact import FileRecord
from deploykit.calibration.ranges import RANGES
from deploykit.errors import DeploykitError
from deploykit.export import adopt, cast, equal, onnx_files, provenance, ranges, rewrite, simplify
from deploykit.export.stage import Item, Workspace
from deploykit.runtime.backends import onnxruntime_files

#: Passes in the order in which they are done, each on what the one before made.
PASSES: Final = ("adopt", "simplify", "rewrite", "cast")
#: Rewrites in the order in which families name them.
REWRITES: Final = (
    *("global-pools", "channel-norms", "fold-scales", "regroup-norms", "fold-shifts", "pointwise-convs"),
    *("direct-transposes", "early-selections", "identity-gathers"),
)
#: Relative to the largest value of an output: what float32 rounds, and what float16 does in one operator.
EXACT: Final = 1e-5
HALF: Final = 1e-2
#: Exit codes of errors that say what a graph has that we can't take.
CLEAR: Final = frozenset({2, 5, 7, 8})

#: Models that are refused, by why.
REFUSALS: Final = Path(__file__).parent / "refusals.json"
#: What refusals say, and what that comes to.
REASONS: Final = (
    ("is NaN on calibration image", "ranges: a tensor holds NaN"),
    ("ranges are measured in graphs of opset", "ranges: opset below 10"),
    ("needs opset", "cast: opset too old"),
    ("the graph is already", "cast: half already"),
    ("holds graphs of its own", "cast: a node holds graphs of its own"),
    ("the type of what", "cast: a type is unknown"),
    ("no tensor", "an input or output is no tensor"),
    ("ONNX Runtime can't run", "cast: ONNX Runtime has no kernel in half"),
    ("breaks ONNX's rules", "adopt: ONNX's checker refuses it"),
)

Values = Sequence[Any]


@dataclass(frozen=True)
class Case:
    """A model with inputs.

    Attributes:
        name: As ONNX has it.
        model: The model.
        feeds: By name: arrays, or lists where the model takes sequences.
    """

    name: str
    model: onnx.ModelProto
    feeds: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """What became of a case.

    Attributes:
        name: Of the case.
        kind: "agrees"; "refused"; "skipped", where ONNX Runtime doesn't run it or doesn't repeat itself; "failed".
        at: The pass.
        told: Why.
    """

    name: str
    kind: str
    at: str = ""
    told: str = ""


class DisagreeError(Exception):
    """An output is not what it was."""


def reason_of(result: Result) -> str:
    """Return why a case is refused, without names and numbers."""
    found = [reason for words, reason in REASONS if words in result.told]
    return found[0] if found else f"{result.at}: {result.told}"


def known_refusals() -> dict[str, str]:
    """Return the cases that are known to be refused, each with why."""
    listed = json.loads(REFUSALS.read_text(encoding="utf-8"))
    return {name: reason for reason, names in listed.items() for name in names}


@cache
def cases() -> tuple[Case, ...]:
    """Return the node models of the onnx package."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    return tuple(
        Case(one.name.removesuffix("_cpu"), one.model, _feeds(one.model, one.data_sets[0][0]))
        for one in sorted(found, key=lambda one: str(one.name))
        if one.data_sets
    )


def _feeds(model: onnx.ModelProto, inputs: Values) -> dict[str, Any]:
    names = [value.name for value in model.graph.input]
    values = (np.asarray(value) if isinstance(value, np.generic) else value for value in inputs)
    return dict(zip(names, values, strict=False))


def play(path: Path, feeds: Mapping[str, Any]) -> list[Any]:
    """Run a file in ONNX Runtime as it is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    made: list[Any] = session.run(None, dict(feeds))
    return made


def pass_through(case: Case, folder: Path) -> Result:
    """Take a case through all passes, as far as it gets."""
    source = folder / "before.onnx"
    source.write_bytes(case.model.SerializeToString())
    try:
        expected, again = play(source, case.feeds), play(source, case.feeds)
        compare(expected, again, 0.0)
    except DisagreeError as error:
        return Result(case.name, "skipped", told=f"differs from run to run: {error}")
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's own
        return Result(case.name, "skipped", told=f"ONNX Runtime: {error}"[:200])
    here, at = source, ""
    try:
        for at in PASSES:
            made = folder / at
            made.mkdir()
            _PASSES[at](here, made, case)
            here = made / onnx_files.MODEL
            _judge(at, case, here, source, expected)
    except DeploykitError as error:
        clear = error.exit_code in CLEAR
        return Result(case.name, "refused" if clear else "failed", at, f"{error.exit_code} {error.message}")
    except Exception as error:  # noqa: BLE001 - what is looked for
        return Result(case.name, "failed", at, f"{type(error).__name__}: {error}"[:300])
    return Result(case.name, "agrees")


def _judge(at: str, case: Case, here: Path, source: Path, expected: Values) -> None:
    try:
        _compare_after(at, case, here, source, expected)
    except onnxruntime_files.foreign() as error:
        if at != "cast":
            raise
        raise onnxruntime_files.failed(here, "its inputs", error) from error  # a kernel that has no half


def _compare_after(at: str, case: Case, here: Path, source: Path, expected: Values) -> None:
    if at != "cast":
        compare(expected, play(here, case.feeds), EXACT)
        return
    # What half makes of the inputs is no fault of the cast: the model before is given the same.
    rounded = {name: _rounded(value) for name, value in case.feeds.items()}
    compare(play(source, rounded), play(here, rounded), HALF)


def _rounded(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype == np.float32:
        with np.errstate(all="ignore"):
            return value.astype(np.float16).astype(np.float32)
    return value


def _adopt(source: Path, folder: Path, _case: Case) -> None:
    model = adopt.adopted(source, folder, {})
    provenance.write(folder / onnx_files.MODULES, provenance.complete(model.graph, {}))


def _simplify(source: Path, folder: Path, _case: Case) -> None:
    before = onnx_files.load(source)
    after, _ = simplify.simplified(source, folder, simplify.SimplifyOptions())
    equal.check_interface(before, after, "simplifying")
    modules = provenance.complete(after.graph, provenance.read(source.parent / onnx_files.MODULES))
    onnx_files.strip(after)
    onnx_files.save(after, folder / onnx_files.MODEL)
    provenance.write(folder / onnx_files.MODULES, modules)


def _rewrite(source: Path, folder: Path, _case: Case) -> None:
    known = provenance.read(source.parent / onnx_files.MODULES)
    after, done = rewrite._write(source, REWRITES, known, folder)
    equal.check_interface(onnx_files.load(source), after, "rewriting")
    provenance.write(folder / onnx_files.MODULES, provenance.complete(after.graph, done.modules))


def _cast(source: Path, folder: Path, case: Case) -> None:
    graph = _item("graph", source.parent, onnx_files.MODEL, onnx_files.MODULES)
    place = folder.parent / "ranges"
    place.mkdir()
    seen = ranges.measure(source, [case.feeds], place)
    ranges.table_of(seen, graph.digest, "0" * 64, 1).save(place / RANGES)
    given = {"graph": graph, "ranges": _item("ranges", place, RANGES)}
    cast.STAGE.run(given, cast.CastOptions("fp16"), Workspace(folder, lambda _done, _total: None))


def _item(kind: str, root: Path, *names: str) -> Item:
    return Item(kind, root, tuple(FileRecord.of(root, name) for name in names))


_PASSES: Final = {"adopt": _adopt, "simplify": _simplify, "rewrite": _rewrite, "cast": _cast}


def compare(expected: Any, found: Any, tolerance: float, where: str = "output") -> None:
    """Compare outputs whole: types, shapes, every value; NaN where NaN was.

    Raises:
        DisagreeError: They differ by more than `tolerance` of the largest value.
    """
    if isinstance(expected, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(expected) != len(found):
            raise DisagreeError(f"{where}: {len(expected)} entries before")
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            compare(one, other, tolerance, f"{where}[{index}]")
        return
    if isinstance(expected, dict) or expected is None:
        if str(expected) != str(found):
            raise DisagreeError(f"{where}: {found!r}, was {expected!r}")
        return
    _compare_arrays(np.asarray(expected), np.asarray(found), tolerance, where)


def _compare_arrays(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any], tolerance: float, where: str) -> None:
    if (expected.dtype, expected.shape) != (found.dtype, found.shape):
        raise DisagreeError(f"{where}: {found.dtype} {found.shape}, was {expected.dtype} {expected.shape}")
    if expected.dtype.kind not in "fc" or expected.dtype.itemsize == 1:
        if not np.array_equal(expected, found):
            raise DisagreeError(f"{where}: {np.count_nonzero(expected != found)} of {expected.size} values differ")
        return
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    before, after = expected.astype(wide), found.astype(wide)
    finite = np.isfinite(before)
    if not np.array_equal(before[~finite], after[~finite], equal_nan=True) or not np.isfinite(after[finite]).all():
        raise DisagreeError(f"{where}: NaN or infinity at other places")
    peak = np.abs(before[finite]).max(initial=0.0)
    worst = np.abs(before[finite] - after[finite]).max(initial=0.0)
    if worst > tolerance * peak:
        raise DisagreeError(f"{where}: apart by {worst / peak if peak else np.inf:.1e} of the largest value")
