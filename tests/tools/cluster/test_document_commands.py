"""The documents' commands for a cluster are run; tests/test_documents.py runs all other commands."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import documents
from tests.support.documents import Block
from tools.cluster import git_server, node

pytestmark = pytest.mark.cluster

BLOCKS = documents.blocks("cluster")


@pytest.fixture(scope="module")
def clone(placeholder: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001 - it is scaled
    """An operator's clone of the cluster's repository."""
    folder = tmp_path_factory.mktemp("documents") / "clone"
    subprocess.run(["git", "clone", "--quiet", str(git_server.repository()), str(folder)], check=True)
    return folder


@pytest.mark.parametrize("block", BLOCKS, ids=[block.place for block in BLOCKS])
def test_commands_for_a_cluster_print_what_the_document_shows(block: Block, clone: Path) -> None:
    environ = dict(node.environment())
    environ |= {"PATH": f"{Path(sys.executable).parent}:{environ['PATH']}", "NS": "iris-dev", "ROLLOUT": "two"}
    documents.check(block, clone, environ, prefix=node.nsenter(["env", f"--chdir={clone}"]))
