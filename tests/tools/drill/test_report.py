"""The report shows what was recorded: its numbers and events are the recording's, and its page is one file."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.support.running import ROOT
from tools.drill import report
from tools.drill.recording import (
    Event,
    Measurement,
    Recording,
    Release,
    Sample,
    Verdict,
    describe,
    ignore_failures_before,
)
from tools.drill.timeline import span, timeline

T = 1_800_000_000.0
VOID = {"meta", "br", "hr", "img", "link", "input"}
METRICS = ("server-errors", "latency-p95", "router-errors", "router-latency-p95")
ATTACK = "<script>alert(1)</script>"


def test_headline_counts_releases_and_requests() -> None:
    assert report.headline(recording()) == (
        "2 releases succeeded, 1 rolled back automatically; 60 of 22,800 requests failed."
    )
    good, bad = recording().releases[1:]
    calm = Recording("", (sample(0),), (good,))
    assert report.headline(calm) == "1 release succeeded, none rolled back; none of 38 requests failed."
    assert report.headline(Recording("", (), (bad, bad))) == (
        "No releases succeeded, 2 rolled back automatically; no requests were counted."
    )


def test_headline_does_not_count_failures_from_before_the_first_release_serves() -> None:
    good = recording().releases[1]
    nothing_runs, route_is_new, serving = sample(0, {"1": 0}, failed=40), sample(1, {"1": 5}, failed=30), sample(2)
    samples = ignore_failures_before(T + 1.5, (nothing_runs, route_is_new, serving, sample(3, failed=1)))
    assert report.headline(Recording("", samples, (good,))) == (
        "1 release succeeded, none rolled back; 1 of 82 requests failed."
    )


def test_page_shows_every_release(tmp_path: Path) -> None:
    page = Page(written(recording(), tmp_path))
    for number, release in enumerate(recording().releases, 1):
        assert f"{number}. {release.title}" in page.text
        assert release.reason in page.text
        assert all(describe(event) in page.text for event in release.events)
    assert [text for tag, text in page.badges if tag == "badge rolled-back"] == ["rolled back"] * 2
    assert [text for tag, text in page.badges if tag == "badge promoted"] == ["promoted"] * 2
    assert [text for tag, text in page.badges if tag == "badge released"] == ["released"] * 2
    assert "17 gate measurements: 9 passed, 4 failed, 4 without data" in page.text
    assert "60 (0.26%)" in page.text
    for command, _ in report.NEXT:
        assert command in page.text


def test_picture_of_a_release_shows_its_own_time(tmp_path: Path) -> None:
    bad = recording().releases[-1]
    assert len({event.at for event in bad.events}) > 1
    for name, changed in (
        ("one", recording()),
        ("same", recording()),
        ("other", recording()._replace(samples=recording().samples[::2])),
    ):
        report.picture(changed, bad, tmp_path / name)
    one, same, other = ((tmp_path / name).read_bytes() for name in ("one.png", "same.png", "other.png"))
    assert one.startswith(b"\x89PNG")
    assert one == same
    assert one != other


def test_durations_that_only_some_releases_have_are_columns_for_all(tmp_path: Path) -> None:
    page = Page(written(recording(), tmp_path))
    header = page.text[page.text.index("All releases") : page.text.index("Try next")]
    assert header.count("commit to synced") == 1
    assert header.count("abort to revert in git") == 1
    assert header.count("\N{EN DASH}") == 2  # the two that were not rolled back


def test_page_is_one_well_formed_file(tmp_path: Path) -> None:
    page = Page(written(recording(), tmp_path))
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
def test_texts_from_commits_and_logs_are_escaped(text: str, tmp_path: Path) -> None:
    events = (
        Event(T + 5, "revert", commit=text, subject=text),
        Event(T + 50, "gate", measurements=(Measurement(text, text),)),
        Event(T + 60, "promoted", model_version=text),
    )
    release = Release(text, "rolled back", text, events, {text: 1.0}, 10, 1)
    path = written(Recording(text, (sample(0, {text: 3}), sample(60, {text: 3})), (release,)), tmp_path)
    page = Page(path)
    assert not page.open
    assert "script" not in page.tags
    assert not set(page.source) & set("\x1b\x00\u202e")


def test_second_without_numbers_is_a_gap(tmp_path: Path) -> None:
    samples = [sample(second)._replace(stable_errors=None, stable_p95=None) for second in range(30)]
    written(Recording("", tuple(samples), ()), tmp_path)
    samples[10] = sample(10)  # a single value between gaps is a dot
    samples[20:22] = [sample(20), sample(21)]
    errors = timeline(Recording("", tuple(samples), ())).axes[3]
    line, dots = errors.lines[:2]
    assert np.flatnonzero(~np.isnan(np.asarray(line.get_ydata(), dtype=float))).tolist() == [10, 20, 21]
    assert list(np.asarray(dots.get_xdata())) == [T + 10]


def test_labels_above_the_panels_do_not_overlap() -> None:
    figure = timeline(recording())
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    events = [event for release in recording().releases for event in release.events]
    assert len(boxes) == 6 + sum(event.kind not in {"gate", "weight"} for event in events)
    assert not [one for number, one in enumerate(boxes) for other in boxes[:number] if one.overlaps(other)]
    assert all(figure.bbox.contains(*corner) for box in boxes for corner in box.corners())


def test_page_without_samples_or_releases_says_so(tmp_path: Path) -> None:
    nothing = Recording("Nothing", (), ())
    page = Page(written(nothing, tmp_path))
    assert not page.open
    assert "Nothing was released." in page.text
    assert "No samples were taken" in page.text
    assert "svg" not in page.tags
    assert span(nothing) == (0, 0)
    empty = Release("Stuck", "released", "nobody knows", (), {}, 0, 0)
    assert "nobody knows" in Page(written(Recording("", (sample(0),), (empty,)), tmp_path)).text


def test_limits_in_the_timeline_are_the_gates() -> None:
    gate = (ROOT / "manifests/iris/analysistemplate-slo.yaml").read_text()
    limits = {float(limit) for limit in re.findall(r"failureCondition: .* > ([0-9.]+)", gate)}
    errors, latency = (
        next(line for line in axes.lines if str(line.get_label()).startswith("gate limit"))
        for axes in timeline(recording()).axes[3:5]
    )
    (percent, _), (seconds, _) = (np.asarray(line.get_ydata(), dtype=float) for line in (errors, latency))
    unserved = 0.001  # the timeline has no panel for it
    assert limits == {percent / 100, seconds, unserved}
    assert errors.get_label() == f"gate limit, {percent:g} %"
    assert latency.get_label() == f"gate limit, {seconds:g} s"


def test_the_same_recording_gives_the_same_file(tmp_path: Path) -> None:
    first = written(recording(), tmp_path).read_bytes()
    assert written(recording(), tmp_path).read_bytes() == first


def written(wanted: Recording, folder: Path) -> Path:
    path = folder / "report.html"
    report.write(wanted, path)
    return path


def recording() -> Recording:
    """Ten minutes: two good releases, and one whose canary fails a request in each of its sixty seconds."""
    releases = (
        release(5, "The first model", "released", "there is no stable version", {}),
        release(205, "A better model", "promoted", "every measurement passed", {}),
        release(
            405,
            "A bad model",
            "rolled back",
            "errors: 0.31 > 0.01\n  4 failed",
            {"abort to revert in git": 9.5},
        ),
    )
    failing = range(440, 500)
    samples = [
        sample(at, {"2": 34, "3": 3}, failed=1)._replace(canary_errors=0.31, canary_p95=0.9)
        if at in failing
        else sample(at)
        for at in range(600)
    ]
    return Recording("Drill", tuple(samples), releases)


def release(at: float, title: str, verdict: Verdict, reason: str, seconds: dict[str, float]) -> Release:
    good, commit = verdict != "rolled back", f"{at:010.0f}"
    events = [
        Event(T + at, "commit", commit=commit, subject=f"prod: {title}"),
        Event(T + at + 8, "sync", commit=commit),
        Event(T + at + 15, "gate", measurements=(Measurement("golden", "Successful"),)),
        Event(T + at + 18, "weight", weight=10),
    ]
    last = (
        Measurement("router-errors", "Successful", 0.0) if good else Measurement("router-errors", "Failed", 0.31)
    )
    none, passed = Measurement("router-errors", "Inconclusive"), Measurement("router-errors", "Successful", 0.0)
    for number, measurement in enumerate((none, passed, passed, last)):
        for metric in METRICS:
            measured = (measurement._replace(metric=metric),)
            events.append(Event(T + at + 35 + 20 * number, "gate", measurements=measured))
    if good:
        events.append(Event(T + at + 100, "promoted", model_version=title))
    else:
        events.append(Event(T + at + 96, "abort"))
        events.append(Event(T + at + 100, "revert", commit=commit, subject=f"prod: revert {title}"))
    durations = {"commit to synced": 8.0} | seconds
    return Release(title, verdict, reason, tuple(events), durations, 3800, 0 if good else 60)


def sample(at: float, answers: dict[str, int] | None = None, failed: int = 0) -> Sample:
    return Sample(T + at, 10, 0.0, None, 0.02, None, answers or {"1": 38}, failed)


class Page(HTMLParser):
    """The file's visible text, its tags and attributes, and the tags left open."""

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
