"""The report draws what was measured: its numbers and marks are the story's, its page stands alone."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from tests.support.running import ROOT
from tools.drill import report
from tools.drill.recording import Act, Mark, Sample, Story
from tools.drill.timeline import ERROR_LIMIT, P95_LIMIT, begin, timeline

T = 1_800_000_000.0
VOID = {"meta", "br", "hr", "img", "link", "input"}
METRICS = ("server-errors", "latency-p95", "router-errors", "router-latency-p95")
ATTACK = "<script>alert(1)</script>"
Verdict = Literal["released", "promoted", "taken back"]


def test_the_headline_says_what_happened() -> None:
    assert report.headline(story()) == (
        "2 releases shipped, 1 taken back by itself; 60 of 22,800 requests of users were bad."
    )
    good, taken = story().acts[1:]
    calm = Story("", (sample(0),), (good,))
    assert report.headline(calm) == "1 release shipped, none taken back; none of 38 requests of users was bad."
    assert report.headline(Story("", (), (taken, taken))) == (
        "No releases shipped, 2 taken back by themselves; no requests of users were counted."
    )


def test_the_page_tells_of_every_act(tmp_path: Path) -> None:
    page = Page(written(story(), tmp_path))
    for number, act in enumerate(story().acts, 1):
        assert f"{number}. {act.title}" in page.text
        assert act.reason in page.text
        assert all(mark.text in page.text for mark in act.marks)
    assert [text for tag, text in page.badges if tag == "badge taken-back"] == ["taken back"] * 2
    assert [text for tag, text in page.badges if tag == "badge promoted"] == ["promoted"] * 2
    assert [text for tag, text in page.badges if tag == "badge released"] == ["released"] * 2
    assert "17 gate measurements: 9 good, 4 bad, 4 without data" in page.text
    assert "60 (0.26%)" in page.text
    for command, _ in report.NEXT:
        assert command in page.text


def test_a_release_alone_is_a_picture_of_its_own_time(tmp_path: Path) -> None:
    taken = story().acts[-1]
    assert len({mark.at for mark in taken.marks}) > 1
    for name, changed in (
        ("one", story()),
        ("same", story()),
        ("other", story()._replace(samples=story().samples[::2])),
    ):
        report.picture(changed, taken, tmp_path / name)
    one, same, other = ((tmp_path / name).read_bytes() for name in ("one.png", "same.png", "other.png"))
    assert one.startswith(b"\x89PNG")
    assert one == same
    assert one != other


def test_durations_that_only_some_acts_have_are_columns_for_all(tmp_path: Path) -> None:
    page = Page(written(story(), tmp_path))
    header = page.text[page.text.index("All of them") : page.text.index("Try next")]
    assert header.count("from the commit to synced") == 1
    assert header.count("from the abort to reverted") == 1
    assert header.count("\N{EN DASH}") == 2  # the two that were not taken back


def test_the_page_is_one_file_and_well_formed(tmp_path: Path) -> None:
    page = Page(written(story(), tmp_path))
    assert not page.open
    assert "script" not in page.tags
    assert all(value.startswith("#") for name, value in page.attributes if name in {"src", "href", "xlink:href"})
    spaces = {value for name, value in page.attributes if "://" in value and not name.startswith("xmlns")}
    assert not spaces
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)\)", page.source))
    assert "@import" not in page.source


@pytest.mark.parametrize(
    "text", [ATTACK, "a & b < c", "$\\frac{", "\x1b[31mred\x00", "\udcff", "\u202eevil", "_x"]
)
def test_texts_of_others_are_only_text(text: str, tmp_path: Path) -> None:
    mark = Mark(T + 5, "abort", text, good=False)
    act = Act(text, "taken back", text, (mark, Mark(T + 50, "gate", text)), {text: 1.0}, 10, 1)
    path = written(Story(text, (sample(0, {text: 3}), sample(60, {text: 3})), (act,)), tmp_path)
    page = Page(path)
    assert not page.open
    assert "script" not in page.tags
    assert not set(page.source) & set("\x1b\x00\u202e")


def test_a_second_without_numbers_is_a_gap(tmp_path: Path) -> None:
    nothing = [sample(second)._replace(stable_errors=None, stable_p95=None) for second in range(30)]
    written(Story("", tuple(nothing), ()), tmp_path)
    nothing[10] = sample(10)  # one alone between gaps is a dot
    nothing[20:22] = [sample(20), sample(21)]
    errors = timeline(Story("", tuple(nothing), ())).axes[3]
    line, dots = errors.lines[:2]
    assert np.flatnonzero(~np.isnan(np.asarray(line.get_ydata(), dtype=float))).tolist() == [10, 20, 21]
    assert list(np.asarray(dots.get_xdata())) == [10]


def test_names_above_the_panels_are_not_written_over_each_other() -> None:
    figure = timeline(story())
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 6 + sum(mark.kind not in {"gate", "weight"} for act in story().acts for mark in act.marks)
    assert not [one for number, one in enumerate(boxes) for other in boxes[:number] if one.overlaps(other)]
    assert all(figure.bbox.contains(*corner) for box in boxes for corner in box.corners())


def test_without_samples_or_acts_the_page_says_so(tmp_path: Path) -> None:
    page = Page(written(Story("Nothing", (), ()), tmp_path))
    assert not page.open
    assert "Nothing was released." in page.text
    assert "No samples were taken" in page.text
    assert "svg" not in page.tags
    assert begin(Story("Nothing", (), ())) == 0
    empty = Act("Stuck", "released", "nobody knows", (), {}, 0, 0)
    assert "nobody knows" in Page(written(Story("", (sample(0),), (empty,)), tmp_path)).text


def test_the_limits_in_the_picture_are_those_of_the_gate() -> None:
    gate = (ROOT / "manifests/iris/analysistemplate-slo.yaml").read_text()
    limits = {float(limit) for limit in re.findall(r"failureCondition: .* > ([0-9.]+)", gate)}
    unserved = 0.001  # is in no picture
    assert limits == {ERROR_LIMIT / 100, P95_LIMIT, unserved}


def test_the_same_story_gives_the_same_file(tmp_path: Path) -> None:
    first = written(story(), tmp_path).read_bytes()
    assert written(story(), tmp_path).read_bytes() == first


def written(told: Story, folder: Path) -> Path:
    path = folder / "report.html"
    report.write(told, path)
    return path


def story() -> Story:
    """Ten minutes: two good releases, and one whose canary fails a request in each of its sixty seconds."""
    acts = (
        act(5, "The first model", "released", "there was none before it", {}),
        act(205, "A better model", "promoted", "every measurement was good", {}),
        act(
            405,
            "A bad model",
            "taken back",
            "errors: 0.31 > 0.01\n  4 were bad",
            {"from the abort to reverted": 9.5},
        ),
    )
    failing = range(440, 500)
    samples = [
        sample(at, {"2": 34, "3": 3}, bad=1)._replace(canary_errors=0.31, canary_p95=0.9)
        if at in failing
        else sample(at)
        for at in range(600)
    ]
    return Story("Drill", tuple(samples), acts)


def act(at: float, title: str, verdict: Verdict, reason: str, seconds: dict[str, float]) -> Act:
    good = verdict != "taken back"
    marks = [Mark(T + at, "commit", f"{title} is committed"), Mark(T + at + 8, "sync", f"{title} is synced")]
    marks += [Mark(T + at + 15, "gate", "golden: 30 of 30", good=True), Mark(T + at + 18, "weight", "10 %")]
    for number, verdict_then in enumerate((None, True, True, good)):
        marks += [Mark(T + at + 35 + 20 * number, "gate", f"{name} of {title}", verdict_then) for name in METRICS]
    if good:
        marks.append(Mark(T + at + 100, "promoted", f"{title} is stable", good=True))
    else:
        marks += [Mark(T + at + 96, "abort", "gate failed", good=False), Mark(T + at + 100, "revert", "as before")]
    return Act(
        title, verdict, reason, tuple(marks), {"from the commit to synced": 8.0} | seconds, 3800, 0 if good else 60
    )


def sample(at: float, answers: dict[str, int] | None = None, bad: int = 0) -> Sample:
    return Sample(T + at, 10, 0.0, None, 0.02, None, answers or {"1": 38}, bad)


class Page(HTMLParser):
    """What is in the file: its text as people see it, its tags and attributes, and the tags left open."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.text = ""
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.badges: list[tuple[str, str]] = []
        self.open: list[str] = []
        self._badge = ""
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        self._badge = next(
            (value or "" for name, value in attrs if name == "class" and "badge" in (value or "")), ""
        )

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._badge:
            self.badges.append((self._badge, data))
            self._badge = ""
