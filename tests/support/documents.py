"""Read the documents for tests: blocks of commands with the mark that says who runs them, links, and paths.

A mark is a comment in the line before a block: `<!-- run: KIND -->`, or `<!-- not run: WHY -->`.
"""

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.running import ROOT

KINDS = {
    "service": "tests/test_documents.py, against a running service",
    "checkout": "tests/test_documents.py, in a clone in which two models were released",
    "database": "tests/test_documents.py, against PostgreSQL with predictions in it",
    "wine": "tests/tools/cluster/test_own_model.py, in a clone with another data set",
    "wine cluster": "the same, in a cluster of its own; `make test-wine` runs it",
    "cluster": "tests/tools/cluster/test_document_commands.py, in the running cluster",
    "fork": "tests/test_fork.py, in a clone that gets other names",
    "install": "tests/tools/cluster/test_install.py, in order, on an empty cluster; `make test-install` runs it",
}
SHELL = {"bash", "console", "sh", "shell", "zsh"}
# The first word of a block without a language, when the block is commands and not a diagram.
PROGRAMS = {
    *("$", "amtool", "argocd", "bash", "cosign", "curl", "docker", "git", "helm", "kubectl", "kustomize", "make"),
    *("mlflow", "pg_dump", "pip", "podman", "promtool", "psql", "python", "sh", "sudo", ".venv/bin/python"),
}
INDENTED, NO_LANGUAGE = "indented", "none"
MARK = re.compile(r"<!-- (?:run: (?P<kind>[a-z ]+)|not run: (?P<why>.+)) -->")
FENCE = re.compile(r"(?P<indent> *)```(?P<language>[\w-]*)")


class Block(NamedTuple):
    """A block of commands: its place, its text, and who runs it, or why nobody does."""

    document: str
    line: int
    language: str
    text: str
    kind: str = ""
    why: str = ""

    @property
    def place(self) -> str:
        """Return its document and line."""
        return f"{self.document}:{self.line}"

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """Return each command with the output shown below it; without prompts, the whole block as one command."""
        if self.language != "console":
            return [(self.text, [])]
        examples = [example.partition("\n") for example in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]]
        return [(command, output.strip().splitlines()) for command, _, output in examples]


def paths() -> list[Path]:
    """Return every document."""
    named = (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "monitoring/RUNBOOK.md"))
    return [*named, *sorted((ROOT / "docs").rglob("*.md"))]


def name(path: Path) -> str:
    """Return the path of a document in the repository."""
    return str(path.relative_to(ROOT))


def blocks(kind: str | None = None) -> list[Block]:
    """Return the blocks of commands of all documents, in order; only those of a kind, if one is given."""
    found = [block for path in paths() for block in read_blocks(path.read_text(), name(path))]
    return [block for block in found if kind in {None, block.kind}]


def read_blocks(text: str, document: str) -> Iterator[Block]:
    """Yield the blocks of commands of a document, fenced or indented."""
    for number, language, lines in _code(text):
        if language in SHELL or (language in {INDENTED, NO_LANGUAGE} and _first_word(lines) in PROGRAMS):
            before = next((line for line in reversed(text.splitlines()[: number - 1]) if line.strip()), "")
            mark = MARK.fullmatch(before.strip())
            kind, why = (mark["kind"] or "", mark["why"] or "") if mark else ("", "")
            yield Block(document, number, language, "\n".join(lines), kind, why)


def prose(text: str) -> str:
    """Return a document without its blocks of code."""
    lines = text.splitlines()
    for number, language, code in _code(text):
        for index in range(number - 1, number + len(code) + (-1 if language == INDENTED else 1)):
            lines[index] = ""
    return "\n".join(lines)


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub generates them."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+?) *$", prose(text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


def run(command: Sequence[str], cwd: Path, environ: Mapping[str, str]) -> str:
    """Run a command and return its output. Raises AssertionError unless it exits with 0."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, f"{command[-1]}\nended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def check(
    block: Block, where: Path, environ: Mapping[str, str], *, port: int = 8000, prefix: Sequence[str] = ()
) -> None:
    """Run a block against a service on that port. Raises AssertionError unless its output is the one shown.

    `prefix` starts each command line, for instance to run it inside the cluster.
    """
    for command, shown in block.commands:
        here = command.replace("localhost:8000", f"localhost:{port}")
        printed = run([*prefix, "bash", "-euo", "pipefail", "-c", here], where, environ)
        absent = missing(shown, printed)
        assert not absent, f"{block.place} shows {absent}, but `{here}` printed:\n{printed}"


def missing(shown: Sequence[str], printed: str) -> list[str]:
    """Return the lines that a document shows and a command did not print in that order; `...` matches anything."""
    lines = iter(printed.splitlines())
    absent = []
    for line in shown:
        wanted = re.compile(".*".join(map(re.escape, line.strip().split("..."))))
        if not any(wanted.fullmatch(candidate.strip()) for candidate in lines):
            absent.append(line)
    return absent


def _code(text: str) -> Iterator[tuple[int, str, list[str]]]:
    """Yield the number of the first line, the language, and the lines of each block of code."""
    fence, language, begun, lines = "", "", 0, list[str]()
    before = ""
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if fence:
            if line.strip() == "```":
                yield begun, language, lines
                fence, lines = "", []
            else:
                lines.append(line.removeprefix(fence[:-3]))
        elif opened := FENCE.fullmatch(line):
            fence, language, begun = f"{opened['indent']}```", opened["language"] or NO_LANGUAGE, number
        elif line.startswith("    ") and (lines or not before.strip()):
            begun = begun if lines else number
            lines.append(line[4:])
        elif lines:
            yield begun, INDENTED, lines
            lines = []
        before = line


def _first_word(lines: Sequence[str]) -> str:
    return (lines[0].split() or [""])[0]
