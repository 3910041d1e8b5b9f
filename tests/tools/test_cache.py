"""What is kept is whole, or not there at all."""

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


def test_a_thing_is_made_once_and_again_only_when_its_key_changes() -> None:
    first = cache.keep("things", "a", cache.key("one"), _write("first"))
    assert cache.keep("things", "a", cache.key("one"), _write("again")) == first
    assert (first / "file").read_text() == "first"
    second = cache.keep("things", "a", cache.key("two"), _write("second"))
    assert (second / "file").read_text() == "second"
    assert not first.exists()


def test_another_thing_whose_name_begins_alike_stays() -> None:
    longer = cache.keep("things", "a-b", cache.key("one"), _write("longer"))
    cache.keep("things", "a", cache.key("one"), _write(""))
    cache.keep("things", "a", cache.key("two"), _write(""))
    assert longer.exists()


def test_what_was_interrupted_is_made_anew() -> None:
    def interrupted(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.keep("things", "a", cache.key("one"), interrupted)
    made = cache.keep("things", "a", cache.key("one"), _write("whole"))
    assert [file.name for file in made.iterdir()] == ["file"]


def test_what_two_want_at_once_is_made_by_one_and_the_other_waits_for_it() -> None:
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


def test_a_key_tells_names_from_contents_and_parts_from_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    keys = {cache.key("ab", "c"), cache.key("a", "bc"), cache.key(folder)}
    (folder / "a").write_text("b")
    keys.add(cache.key(folder))
    (folder / "a").rename(folder / "b")
    keys.add(cache.key(folder))
    assert len(keys) == 5
