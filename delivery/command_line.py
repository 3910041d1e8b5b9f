"""How a command line ends: with an exit code, and what went wrong in one line."""

import typer


def run(app: typer.Typer, name: str, *errors: type[Exception]) -> int:
    """Run a command; return its exit code. An error of these kinds is said after the name, and is 1."""
    try:
        app()
    except SystemExit as end:  # of a command line that was wrong, too
        return end.code if isinstance(end.code, int) else 0
    except errors as error:
        typer.echo(f"{name}: {error}", err=True)
        return 1
    return 0
