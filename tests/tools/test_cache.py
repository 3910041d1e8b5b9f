"""A folder in the cache is complete, or it is not there."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tools import cache


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _write(text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "file").write_text(text)

    return make


def test_a_folder_is_made_once_for_each_key() -> None:
    first = cache.keep("things", "a", cache.key("one"), _write("first"))
    assert cache.keep("things", "a", cache.key("one"), _write("again")) == first
    assert (first / "file").read_text() == "first"
    second = cache.keep("things", "a", cache.key("two"), _write("second"))
    assert (second / "file").read_text() == "second"
    assert not first.exists()


def test_a_folder_whose_name_begins_with_the_same_word_is_kept() -> None:
    longer = cache.keep("things", "a-b", cache.key("one"), _write("longer"))
    cache.keep("things", "a", cache.key("one"), _write(""))
    cache.keep("things", "a", cache.key("two"), _write(""))
    assert longer.exists()


def test_an_interrupted_folder_is_made_from_the_start() -> None:
    def interrupted(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.keep("things", "a", cache.key("one"), interrupted)
    made = cache.keep("things", "a", cache.key("one"), _write("whole"))
    assert [file.name for file in made.iterdir()] == ["file"]


def test_a_second_caller_waits_for_the_first_to_make_the_folder() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def make(folder: Path) -> None:
        (folder / "half").touch()
        begun.set()
        go_on.wait(60)
        (folder / "whole").touch()

    with ThreadPoolExecutor() as pool:
        first = pool.submit(cache.keep, "things", "a", cache.key("one"), make)
        begun.wait(60)
        second = pool.submit(cache.keep, "things", "a", cache.key("one"), _write("second"))
        try:
            with pytest.raises(TimeoutError):
                second.result(0.5)
        finally:
            go_on.set()
        assert first.result() == second.result()
    assert {file.name for file in first.result().iterdir()} == {"half", "whole"}


def test_different_names_contents_and_parts_have_different_keys(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    keys = {cache.key("ab", "c"), cache.key("a", "bc"), cache.key(folder)}
    (folder / "a").write_text("b")
    keys.add(cache.key(folder))
    (folder / "a").rename(folder / "b")
    keys.add(cache.key(folder))
    assert len(keys) == 5
