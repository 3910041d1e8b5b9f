"""A PostgreSQL server starts below a folder of any name, or says at once why it cannot."""

from pathlib import Path

import pytest

from tests.support.running import query
from tools.errors import ToolError
from tools.postgres import Postgres


def test_a_server_starts_in_a_folder_with_an_odd_name(tmp_path: Path) -> None:
    folder = tmp_path / "l'\u00e9t\u00e9, 100%20? #1;&(a)"
    with Postgres(folder) as server:
        assert query(server.url, "SHOW data_directory") == [(f"{folder}/data",)]


@pytest.mark.parametrize("name", ["$HOME", "`pwd`", 'a"b', "a\\b"])
def test_a_folder_that_a_shell_would_change_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ToolError, match=r"its path contains one of .*; move this checkout, or set DATABASE_URL"):
        Postgres(tmp_path / name).start()
    assert list(tmp_path.iterdir()) == []
