"""`python -m cluster`: a real Kubernetes on this machine, up and down, and what can be asked of it."""

import os
import sys
from typing import Annotated

import typer

from cluster import doctor as examination
from cluster import machine, programs
from cluster import up as steps
from cluster.steps import ClusterError, console, step
from local import command_line
from local.engine import ImageError
from local.packages import PackageError

app = typer.Typer(help="A real Kubernetes on this machine.", pretty_exceptions_enable=False, no_args_is_help=True)


@app.command()
def up() -> None:
    """Start the cluster and its platform; a second time, bring it up to date."""
    with machine.alone():
        steps.up()


@app.command()
def down() -> None:
    """End the cluster, however it was left, and leave nothing but the cache of programs and images."""
    with machine.alone(), step("down"):
        machine.stop()
    console.print("next: make up")


@app.command()
def status() -> None:
    """Show what runs and what it uses."""
    console.print(f"{steps.measured(seconds=10)}, over 10 s")
    typer.echo(machine.run("kubectl", "get", "pods", "--all-namespaces"), nl=False)


@app.command(context_settings={"allow_interspersed_args": False})
def exec(command: Annotated[list[str], typer.Argument(metavar="COMMAND...")]) -> None:  # noqa: A001 - its name
    """Run a command inside the cluster's machine, where kubectl, argocd and the rest are on PATH and set up."""
    sys.stdout.flush()
    argv = machine.inside(command)
    os.execvpe(argv[0], argv, dict(machine.environment()))  # noqa: S606 - its place is taken, signals and all


@app.command()
def logs(name: Annotated[str, typer.Argument(help="which; all are listed without")] = "") -> None:
    """Print the log of a part of the machine; those of pods come from `kubectl logs`."""
    files = {file.stem: file for file in sorted((machine.state() / "log").glob("*.log"))}
    if not name:
        typer.echo("\n".join(files))
    elif name in files:
        typer.echo(files[name].read_text(errors="replace"), nl=False)
    else:
        raise ClusterError(
            f"there is no log {name!r}, but {', '.join(files) or 'none at all: no cluster was started'}"
        )


@app.command()
def kubeconfig() -> None:
    """Print a kubeconfig for programs on this host; it holds the key of the cluster's administrator."""
    machine.inside([])
    config = (machine.state() / "root" / machine.KUBECONFIG.removeprefix("/")).read_text()
    typer.echo(config.replace(f"https://{machine.NODE}:6443", "https://127.0.0.1:6443"), nl=False)


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="a folder of cluster/modules, or prebuilt; all without")] = "",
) -> None:
    """Build the programs that are not in the cache yet, and print the folders in which they are."""
    for one in [name] if name else (*programs.NAMES, *programs.DESK):
        with step(f"programs: {one}") as say:
            typer.echo(programs.folder(one, say))
    if not name:
        console.print("next: make up")


@app.command()
def doctor() -> None:
    """Check what the cluster needs of this machine, and name for each problem the command that fixes it."""
    if not examination.show():
        raise typer.Exit(1)


def main() -> int:
    """Run a command; return its exit code."""
    return command_line.run(app, "cluster", ClusterError, ImageError, PackageError)


if __name__ == "__main__":
    sys.exit(main())
