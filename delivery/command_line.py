"""Run a command line: report an error in one line, and return an exit code."""

import typer


def run(app: typer.Typer, name: str, *errors: type[Exception]) -> int:
    """Run a command; return its exit code. Errors of the given types are printed after the name; the code is 1."""
    try:
        app()
    except SystemExit as end:  # also of a usage error
        return end.code if isinstance(end.code, int) else 0
    except errors as error:
        typer.echo(f"{name}: {error}", err=True)
        return 1
    return 0
