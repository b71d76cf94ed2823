"""Bundles judged on sites: the flow, with an emulator that runs everything on this processor as it is."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from pathlib import Path

import numpy as np
import pytest
from tests.bundles import reseal, write_bundle
from tests.emulators import write_qemu

from deploykit import serde
from deploykit.artifact import RunConfig
from deploykit.errors import BadInputError, MissingComponentError, UsageError
from deploykit.runtime import processors
from deploykit.runtime.features import answered
from deploykit.runtime.report import html, terminal
from deploykit.runtime.report.records import report_record
from deploykit.runtime.sites import table
from deploykit.runtime.sites.table import SITES, Site
from deploykit.verdict import Report, Verdict
from deploykit.workflow.options import VerifyOptions
from deploykit.workflow.verify import verify

OWN = next(site for site in SITES if site.architecture.is_own)
CLASS = next(one for one in processors.CLASSES if one.is_of(platform.machine(), answered()))
#: What this machine's processor answers to be, under a name of its own.
HERE = Site("here", CLASS.name, OWN.architecture, "any", "this machine's")
ON = VerifyOptions(on=("here",))


@pytest.fixture(autouse=True)
def emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let there be a site of this very processor, and an emulator that emulates nothing."""
    monkeypatch.setattr(table, "SITES", (*SITES, HERE))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    return write_qemu(tmp_path / "bin", OWN.architecture.emulator)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def changed_runs(root: Path, *runs: RunConfig) -> Path:
    """Let a bundle's artifact be run in other ways."""

    def change(manifest: dict[str, object]) -> None:
        artifact = manifest["artifacts"][0]  # type: ignore[index]
        artifact["runs"] = [
            {**artifact["runs"][0], "backend": run.backend, "device": run.device, "precision": run.precision}
            for run in runs
        ]

    reseal(root, change)
    return root


def test_each_artifact_is_judged_in_each_way_on_each_site(made: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    report = verify(made, ON, lambda *step: steps.append(step))
    assert [(one.verdict, one.site, one.run.backend) for one in report.judgements] == [
        (Verdict.PASS, "here", "onnxruntime"),
        (Verdict.PASS, "here", "openvino"),
    ]
    plain = verify(made)
    for emulated, own in zip(report.judgements, plain.judgements, strict=True):
        assert own.site is None
        assert emulated.gates == own.gates
        assert emulated.metrics == own.metrics
        assert emulated.ran == own.ran
    assert steps[0] == ("net.fp32.ort on here", 0, 4)
    assert ("net.fp32.ort on here", 4, 4) in steps
    assert report.exit_code(strict=True, must_run=True) == 0


def test_a_row_names_its_site_in_table_json_and_page(made: Path) -> None:
    report = verify(made, ON)
    cells = [terminal.run_text(one) for one in report.judgements]
    assert cells == ["ort here f32", "ov here f32"]
    assert [one["site"] for one in report_record(report)["judgements"]] == ["here", "here"]
    assert json.dumps(report_record(report))
    page = html.page(report, html.Extras({}, {}))
    assert "ort here f32" in page
    assert "golden inputs alone are judged: neither labelled images nor latency" in page
    assert report.notes[-1].startswith("on emulated processors golden inputs alone")


def test_drift_is_found_there_and_is_exit_3(made: Path) -> None:
    path = made / "golden/original.npz"
    with np.load(path) as loaded:
        wrong = {name: array + 0.5 for name, array in loaded.items()}
    np.savez(path, **wrong)
    reseal(made, lambda manifest: None)
    report = verify(made, ON)
    assert {one.verdict for one in report.judgements} == {Verdict.FAIL}
    assert report.exit_code(strict=True) == 3


@pytest.mark.parametrize(("limit", "stops"), [(1.0, "in its start"), (1e-3, "at once")])
def test_what_takes_too_long_is_not_run(made: Path, emulator: Path, limit: float, stops: str) -> None:
    write_qemu(emulator.parent, emulator.name, body="exec sleep 600")
    report = verify(made, dataclasses.replace(ON, on_limit_s=limit))
    assert [one.reason for one in report.judgements] == [f"over {limit:g} s on here"] * 2, stops
    assert {one.verdict for one in report.judgements} == {Verdict.NOT_RUN}
    assert {one.site for one in report.judgements} == {"here"}
    assert report.exit_code(strict=True, must_run=True) == 6
    assert report.not_run[0] == f"net.fp32.ort (onnxruntime cpu f32 on here): over {limit:g} s on here"


def test_what_is_no_processor_is_not_run(made: Path) -> None:
    changed_runs(made, RunConfig("onnxruntime", "cuda:0", "f32"), RunConfig("onnxruntime", "cpu", "f32"))
    first, second = verify(made, ON).judgements
    assert (first.verdict, first.reason) == (Verdict.NOT_RUN, "it runs on cuda:0, and sites are processors alone")
    assert second.verdict is Verdict.PASS


@pytest.mark.skipif(
    not CLASS.saturates, reason="products are added exactly on this processor: it is right for any class"
)
def test_what_is_made_for_another_class_is_not_run(made: Path) -> None:
    reseal(made, lambda manifest: manifest["artifacts"][0].update(processors=["amx"]))
    found = verify(made, ON).judgements
    assert {one.verdict for one in found} == {Verdict.NOT_RUN}
    assert found[0].reason.startswith(f"made for amx: on {CLASS.name}")
    assert found[0].processor is None


def test_a_verdict_that_differs_from_the_record_is_told_with_its_site(made: Path) -> None:
    plain = serde.to_json(verify(made).judgements)
    reseal(made, lambda manifest: manifest.update(judgements=[{**one, "processor": "amx"} for one in plain]))
    assert f"judged on amx before, on {CLASS.name} at site here: the verdicts are the same" in verify(made, ON).notes


def test_what_computes_as_another_machine_would_is_left_out(made: Path) -> None:
    changed_runs(made, RunConfig("emulator", "cpu", "auto"), RunConfig("onnxruntime", "cpu", "f32"))
    assert [one.run.backend for one in verify(made, ON).judgements] == ["onnxruntime"]


def test_what_a_runtime_refuses_there_is_not_run(made: Path) -> None:
    changed_runs(made, RunConfig("openvino", "cpu", "f16"))
    (found,) = verify(made, ON).judgements
    assert found.verdict is Verdict.NOT_RUN
    assert "f16" in found.reason


def test_an_emulator_that_crashes_there_is_not_run(made: Path, emulator: Path) -> None:
    crash = 'n=$(cat "$0.n" 2>/dev/null || echo 0); echo $((n + 1)) > "$0.n"; shift 2; '
    crash += 'exec "$1" -c "import deploykit.runtime.worker as w, os; w._Host._open = lambda *_: os._exit(9); w.main()"'
    write_qemu(emulator.parent, emulator.name, body=crash)
    found = verify(made, ON).judgements
    assert {one.verdict for one in found} == {Verdict.NOT_RUN}
    assert "the runtime crashed on" in found[0].reason


def test_a_damaged_file_is_bad_input_there_too(made: Path) -> None:
    (made / "net.fp32.onnx").write_bytes(b"no model")
    reseal(made, lambda manifest: None)
    with pytest.raises(BadInputError):
        verify(made, ON)


def test_a_processor_that_is_not_the_one_promised_is_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = next(site for site in SITES if site.architecture == OWN.architecture and site.processor != CLASS.name)
    monkeypatch.setattr(table, "SITES", (other,))
    found = verify(made, VerifyOptions(on=(other.name,))).judgements
    assert {one.verdict for one in found} == {Verdict.NOT_RUN}
    assert f"promises a processor of class {other.processor}" in found[0].reason


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (VerifyOptions(on=("here",), data="images"), "data is for this machine"),
        (VerifyOptions(on=("here",), device="cuda"), "device is for this machine"),
        (VerifyOptions(on=("avx3",)), "'avx3' is no site that I know"),
    ],
)
def test_what_is_not_done_there_is_refused_before_anything_runs(made: Path, options: VerifyOptions, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        verify(made, options)


def test_a_site_that_is_not_ready_is_exit_5_with_what_makes_it_so(made: Path, emulator: Path) -> None:
    write_qemu(emulator.parent, emulator.name, "7.2.0")
    with pytest.raises(MissingComponentError, match=r"is QEMU 7\.2"):
        verify(made, ON)
    emulator.unlink()
    foreign = next(site for site in SITES if not site.architecture.is_own)
    write_qemu(emulator.parent, foreign.architecture.emulator)
    with pytest.raises(MissingComponentError, match="no Python and no libraries") as caught:
        verify(made, VerifyOptions(on=(foreign.name,)))
    assert caught.value.hints


def test_a_bare_file_is_judged_there_beside_its_original(made: Path) -> None:
    report: Report = verify(made / "net.fp32.onnx", VerifyOptions(reference="tiny-convnext", on=("here",)))
    assert {one.site for one in report.judgements} == {"here"}
    assert {one.verdict for one in report.judgements} == {Verdict.FAIL}, "it is another network"
    assert "images" not in report.judgements[0].metrics
