"""A cache outside the checkout: each folder is stored under a digest of what it was made from."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path


def root() -> Path:
    """Return the cache's folder: $XDG_CACHE_HOME/iris-gitops, or ~/.cache/iris-gitops."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iris-gitops"


def key(*parts: str | Path) -> str:
    """Return a short digest of strings, and of the names and contents of files and folders."""
    digest = hashlib.sha256()
    for part in parts:
        for piece in _pieces(part):
            digest.update(hashlib.sha256(piece).digest())
    return digest.hexdigest()[:16]


def place(kind: str, name: str, made_from: str) -> Path:
    """Return the path of the folder with that kind, name and key, whether it exists or not."""
    return root() / kind / f"{name}-{made_from}"


def keep(kind: str, name: str, made_from: str, make: Callable[[Path], None]) -> Path:
    """Return the folder with that kind, name and key; if it is missing, call `make` to fill it.

    The folder appears only when it is complete, even if `make` is interrupted. Other processes that want the same
    folder wait for it. Folders with the same name and another key are removed.
    """
    folder = place(kind, name, made_from)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed, or the process ends
            if not folder.exists():
                _fill(folder, name, make)
    return folder


def _fill(folder: Path, name: str, make: Callable[[Path], None]) -> None:
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    make(unfinished)
    for old in folder.parent.glob(f"{name}-{'[0-9a-f]' * 16}"):
        shutil.rmtree(old)
    unfinished.rename(folder)


def _pieces(part: str | Path) -> Iterable[bytes]:
    if isinstance(part, str):
        yield part.encode()
    elif part.is_file():
        yield part.read_bytes()
    else:
        for file in sorted(file for file in part.rglob("*") if file.is_file()):
            yield file.relative_to(part).as_posix().encode()
            yield file.read_bytes()
