"""The documents are true: their commands run, and their links and paths exist."""

import json
import os
import re
import shlex
from pathlib import Path

import psycopg2
import pytest

from tests.support import clone, documents
from tests.support.documents import Block
from tests.support.running import ROOT, RunningService, environment, query
from tools.drill import scenarios
from tools.postgres import Postgres, programs

VARYING = {"request_id", "latency_ms", "version", "model_version"}  # different in each run
DOCUMENTS = documents.paths()
NAMES = [documents.name(path) for path in DOCUMENTS]
CURLS = [
    (command, "\n".join(output)) for block in documents.blocks("service") for command, output in block.commands
]
FOLDERS = sorted(path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in {".local", "model"})
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
PATH = re.compile(rf"(?<![\w/.:-])((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./*-]*[\w/*])")
EVERY_DOCUMENT = pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)


def each_document_with(kind: str) -> pytest.MarkDecorator:
    """Parametrize a test with the blocks of a kind, document by document."""
    found = documents.blocks(kind)
    names = list(dict.fromkeys(block.document for block in found))
    each = [[block for block in found if block.document == name] for name in names]
    return pytest.mark.parametrize("blocks", each, ids=names)


@EVERY_DOCUMENT
def test_every_block_of_commands_is_run_by_a_test_or_says_why_not(path: Path) -> None:
    assert unmarked(path.read_text()) == []


def test_a_block_without_a_valid_mark_is_found() -> None:
    text = (
        "<!-- run: checkout -->\n```sh\nmake help\n```\n\n<!-- not run: it needs an account -->\n\n    helm list\n"
    )
    assert unmarked(text) == []
    assert unmarked(text.replace("<!-- run: checkout -->", "")) == ["make help"]
    assert unmarked(text.replace("checkout", "somewhere")) == ["make help"]
    assert unmarked(text.replace("it needs an account", "no")) == ["helm list"]
    assert unmarked("```\nkubectl get pods\n```\n") == ["kubectl get pods"]
    assert unmarked("A picture:\n\n    commit -> sync -> canary\n") == []


def test_the_scenarios_that_documents_name_exist_and_the_drill_plays_them() -> None:
    said = {
        scenario
        for block in documents.blocks()
        for names in re.findall(r"the drill plays it: ([\w, -]+)", block.why)
        for scenario in names.split(", ")
    }
    assert said
    assert said <= scenarios.SCENARIOS.keys()


def test_documents_show_predictions_errors_and_the_log() -> None:
    assert len(CURLS) >= 7


@pytest.mark.parametrize(("command", "output"), CURLS, ids=[command[:60] for command, _ in CURLS])
def test_a_curl_of_a_document_gets_the_answer_that_the_document_shows(
    service: RunningService, command: str, output: str
) -> None:
    program, *arguments = shlex.split(command.replace("localhost:8000", f"127.0.0.1:{service.port}"))
    assert program == "curl"
    options = ("--silent", "--show-error", "--write-out", "\n%{http_code}")
    printed = documents.run([program, *arguments, *options], ROOT, os.environ)
    body, _, status = printed.rpartition("\n")
    assert (status == "200") == ("detail" not in output)
    if output:
        assert alike(json.loads(output), json.loads(body)), body


@each_document_with("checkout")
def test_commands_for_a_clone_print_what_the_document_shows(
    blocks: list[Block], model: Path, tmp_path: Path
) -> None:
    where = clone.make(tmp_path)
    clone.release_two(where, model)
    for block in blocks:
        documents.check(block, where, clone.environ())


@each_document_with("database")
def test_a_log_restored_by_the_documents_commands_is_complete_and_accepts_new_rows(
    blocks: list[Block], model: Path, database: str, postgres: Postgres, tmp_path: Path
) -> None:
    def log(url: str) -> list[str]:
        return [row for (row,) in query(url, "SELECT request_id FROM predictions ORDER BY id")]

    restored = postgres.url.replace("/postgres?", f"/{tmp_path.name}?")
    variables = {"DATABASE_URL": database, "NEW_DATABASE_URL": restored}
    with RunningService(model, database, tmp_path / "first") as service:
        asked = [service.predict().json()["request_id"] for _ in range(3)]
        service.wait_shipped()
    admin = psycopg2.connect(postgres.url)
    admin.autocommit = True
    try:
        admin.cursor().execute(f'CREATE DATABASE "{tmp_path.name}"')
        for block in blocks:
            documents.check(block, tmp_path, environment(PATH=f"{programs()}:{os.environ['PATH']}", **variables))
        assert log(restored) == asked
        # Without a database a prediction waits in the journal, and is shipped to the next address.
        nowhere = "postgresql://127.0.0.1:1/iris"
        with RunningService(model, nowhere, tmp_path / "first", drain_seconds="0") as service:
            asked.append(service.predict().json()["request_id"])
        with RunningService(model, restored, tmp_path / "first") as service:
            asked.append(service.predict().json()["request_id"])
            service.wait_shipped()
        assert log(restored) == asked
    finally:
        admin.cursor().execute(f'DROP DATABASE IF EXISTS "{tmp_path.name}" WITH (FORCE)')
        admin.close()


@EVERY_DOCUMENT
def test_each_make_target_of_a_document_exists(path: Path) -> None:
    targets = set(re.findall(r"(?:`|^\$ (?:sudo )?)make ([a-z-]+)", path.read_text(), re.MULTILINE))
    assert targets <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@EVERY_DOCUMENT
def test_each_link_has_a_target(path: Path) -> None:
    assert [link for link in LINK.findall(documents.prose(path.read_text())) if not resolves(link, path)] == []


def test_a_link_without_a_target_is_found() -> None:
    runbook = ROOT / "monitoring/RUNBOOK.md"
    assert resolves("#rolloutaborted", runbook)
    assert resolves("../README.md#quick-start", runbook)
    assert not resolves("#rolloutabortet", runbook)
    assert not resolves("README.md", runbook)
    assert not resolves("../README.md#no-such-heading", runbook)


@EVERY_DOCUMENT
def test_each_path_of_the_repository_that_a_document_names_exists(path: Path) -> None:
    assert [named for named in PATH.findall(documents.prose(path.read_text())) if not exists(named)] == []


@EVERY_DOCUMENT
def test_no_line_of_prose_is_longer_than_120_characters(path: Path) -> None:
    lines = documents.prose(path.read_text()).splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_a_path_that_does_not_exist_is_found() -> None:
    said = "`tools/drill/traffic.py`, manifests/iris/, overlays/ENV/release, docs/NO.md and https://example.org/docs/NO"
    found = PATH.findall(said)
    assert found == ["tools/drill/traffic.py", "manifests/iris/", "overlays/ENV/release", "docs/NO.md"]
    assert [named for named in found if not exists(named)] == ["docs/NO.md"]


def unmarked(text: str) -> list[str]:
    """Return the blocks of commands that no test runs and that do not say why in at least three words."""
    return [
        block.text
        for block in documents.read_blocks(text, "")
        if block.kind not in documents.KINDS and len(block.why.split()) < 3
    ]


def alike(said: object, got: object) -> bool:
    """Return whether an answer is the one that a document shows, apart from values that vary."""
    if isinstance(said, dict) and isinstance(got, dict):
        return said.keys() == got.keys() and all(alike(said[key], got[key]) for key in said.keys() - VARYING)
    if isinstance(said, list) and isinstance(got, list):
        return len(said) == len(got) and all(map(alike, said, got))
    return bool(said == pytest.approx(got)) if isinstance(said, float) else said == got


def resolves(link: str, document: Path) -> bool:
    """Return whether a link is an address of the web, or a file of the repository and a heading in it."""
    if re.match(r"https?:|mailto:", link):
        return True
    file, _, anchor = link.partition("#")
    target = document.parent / file if file else document
    return target.exists() and (not anchor or anchor in documents.anchors(target.read_text()))


def exists(named: str) -> bool:
    """Return whether a path is in the repository; a folder in capitals, like an asterisk, matches any."""
    pattern = re.sub(r"(?<=/)[A-Z]+(?=/|$)", "*", named.rstrip("/"))
    return any(ROOT.glob(pattern))
