"""One vocabulary: no text of the repository uses a word for which the field has a better one."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running import ROOT

# What not to write, as a regular expression, and what to write instead. A space also matches a line break.
GLOSSARY = {
    r"(?:take|takes|taken|taking|took)(?: \w+)? back": "rolled back, rollback, abort (the Rollout), revert (git)",
    r"went back": "rolled back; returned to",
    r"brought by": "released by",
    r"why it left": "why it ended",
    r"told": "notified, alerted, reported",
    r"(?:tell|tells|telling) of": "reports",
    r"the new one": "the canary, the new version",
    r"the one before": "the stable version, the previous version",
    r"users who come from": "traffic from, requests from",
    r"(?:users|all|nobody) (?:have|has|had) it": "serves 10 % of traffic",
    r"% of (?:the|its|all) users": "% of the traffic",
    r"sends? users back": "sets the canary's weight to 0",
    r"list of parts": "SBOM",
    r"(?:is|are|was|were|be|been|being) away": "unavailable",
    r"shares? of (?:the|its|all) users": "weight",
    r"set aside": "quarantined",
    r"facts (?:of|about) (?:a|the|its) model": "model metadata",
    r"last words": "last log lines",
    r"for a look": "for inspection",
    r"held by (?:a test|the tests?|\S?tests)": "tested by, verified by",
    r"(?:to|could|can) be had": "was not available",
    r"(?<!there\s)is no (?!longer|more)\w+": "is not a",
    r"AwayError": "ClusterUnavailable, DatabaseUnavailable",
}
SPACE = r"(?:[ *|]|\n[ \t]*#?)+"
PATTERNS = {
    re.compile(rf"(?<![\w-])(?:{words.replace(' ', SPACE)})(?!\w)", re.IGNORECASE): instead
    for words, instead in GLOSSARY.items()
}
# Texts that others wrote or that programs generate, pictures, and this file.
NOT_OURS = re.compile(r"LICENSE|(?:.*/)?(?:requirements\.txt|go\.sum|go\.mod)|.*\.png|tests/test_language\.py")


def test_no_text_uses_a_word_that_the_glossary_replaces() -> None:
    found = [problem for name in _tracked() for problem in problems(name, (ROOT / name).read_text())]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It was taken\n# back.\n", "a.py:1: 'taken # back' -> rolled back"),
        ("\n\nArgo CD is told of it.", "a.py:3: 'told' -> notified"),
        ("a test; held by `tests/`", "a.py:1: 'held by `tests' -> tested by"),
        ("except AwayError:", "a.py:1: 'AwayError' -> ClusterUnavailable"),
    ],
)
def test_a_word_is_found_with_its_place_and_its_replacement(text: str, expected: str) -> None:
    assert problems("a.py", text)[0].startswith(expected)


@pytest.mark.parametrize(
    "text", ["It is rolled back.", "JournalSetAside", "There is no data.", "untold", "is no longer"]
)
def test_other_words_are_not_found(text: str) -> None:
    assert problems("a.py", text) == []


def problems(name: str, text: str) -> list[str]:
    """Return a line for each word of a text that the glossary replaces: its place, and what to write instead."""
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {' '.join(match[0].split())!r} -> {instead}"
        for pattern, instead in PATTERNS.items()
        for match in pattern.finditer(text)
    ]


def _tracked() -> Iterator[str]:
    """Yield the files that git knows, and that are ours."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    yield from (
        name for name in listed.split("\0") if name and Path(ROOT, name).is_file() and not NOT_OURS.fullmatch(name)
    )
