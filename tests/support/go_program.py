"""Build a program of the tests from one Go file."""

from pathlib import Path

from tools import cache, programs


def go_program(file: Path, name: str) -> Path:
    """Return the program built from a Go file, which may import the modules of tools/modules/NAME."""

    def make(out: Path) -> None:
        programs.go(name, "build", f"-o={out}/", *programs.flags(name), str(file))

    return cache.keep("programs", file.stem, cache.key(file, programs.key(name)), make) / file.stem
