"""A report as a page: what is on it, that texts stay texts, and that nothing would be fetched."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st
from tests.support import gate, judgement

from deploykit.recommendation import Recommendation
from deploykit.runtime.report import html
from deploykit.verdict import Report, Verdict

#: What HTML calls elements without an end.
VOID = {"meta", "img", "br"}


class Read(HTMLParser):
    """Reads a page: its texts, its elements, and whether they nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def page(report: Report, **extras: object) -> str:
    return html.page(report, html.Extras(**{"facts": {}, "sizes": {}, **extras}))  # type: ignore[arg-type]


def test_a_failed_gate_is_told_with_its_numbers_and_opened() -> None:
    failed = replace(
        gate(verdict=Verdict.FAIL, value=0.912),
        metric="agreement",
        lower=0.9,
        upper=0.92,
        bound=0.97,
        higher_is_better=True,
    )
    report = Report("b", (judgement(Verdict.FAIL, failed),))
    read = Read(page(report, sizes={"net.fp32.ort": 5_600_000}))
    for text in ("91.2 %", "90 % to 92 %", "≥ 97 %", "✘ fail", "5.6 MB", "net"):
        assert text in read.texts, text
    assert ("details", {"open": None}) in read.elements
    assert any("agreement 91.2 %" in text for text in read.texts), "the complaint"


def test_what_was_not_run_is_never_green() -> None:
    report = Report("b", (replace(judgement(Verdict.NOT_RUN, reason="no driver"), ran=None, metrics={}),))
    read = Read(page(report))
    assert "– not run" in read.texts
    assert all((attrs.get("class") or "").split()[-1:] != ["pass"] for _, attrs in read.elements)
    assert any("no driver" in text for text in read.texts)


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zs", "Zl", "Zp")), min_size=1))
def test_texts_stay_texts(text: str) -> None:
    failed = replace(gate(verdict=Verdict.FAIL), reason=text)
    report = Report("b", (judgement(Verdict.FAIL, failed),))
    plain = {tag for tag, _ in Read(page(report)).elements}
    read = Read(page(report, facts={"command": text}, unpictured=[text]))
    assert {tag for tag, _ in read.elements} <= plain | {"dl", "dt", "dd", "p", "h2"}
    assert read.texts.count(text) >= 2


def test_nothing_is_fetched_and_pictures_lie_inside() -> None:
    picture = html.Picture("original", b"\x89PNG", "")
    made = page(Report("b", (judgement(Verdict.PASS),)), pictures=[picture])
    assert re.findall(r"https?:|//|<script|url\(", made) == []
    images = [attrs for tag, attrs in Read(made).elements if tag == "img"]
    assert images == [{"alt": "pictures of original", "src": "data:image/png;base64,iVBORw=="}]


def test_a_report_about_nothing_is_a_page_too() -> None:
    read = Read(page(Report("deploy/x")))
    assert read.texts.count("x") == 1
    assert "– not run" in read.texts


def test_the_median_and_the_worst_input_stand_beside_the_drift_of_all() -> None:
    metrics = {"sqnr_db": 1.2, "sqnr_db_median": 20.4, "sqnr_db_worst": -3.1}
    read = Read(page(Report("b", (replace(judgement(Verdict.PASS, gate()), metrics=metrics),))))
    assert "median 20 dB, worst -3 dB" in read.texts


def test_the_class_that_verdicts_hold_for_and_what_to_ship_are_told() -> None:
    run = judgement(Verdict.PASS).run
    advice = Recommendation("net.fp32.ort", run, "avx2", ("avx2",), "", "the one that passed", ())
    report = Report("b", (replace(judgement(Verdict.PASS, gate()), processor="avx2"),), recommendation=advice)
    read = Read(page(report))
    assert any(text.endswith("on avx2") for text in read.texts)
    assert any(" · avx2" in text for text in read.texts), "beside where it ran"
    assert "What to ship" in read.texts
    assert any("the one that passed (on avx2)" in text for text in read.texts)
