"""`python -m tools.cluster`: a real Kubernetes on this machine, up and down, and what can be asked of it."""

import os
import sys
from typing import Annotated

import typer

from tools import command_line, programs
from tools.cluster import doctor as examination
from tools.cluster import node
from tools.cluster import up as steps
from tools.errors import ToolError
from tools.progress import console, step

app = typer.Typer(help="A real Kubernetes on this machine.", pretty_exceptions_enable=False, no_args_is_help=True)


@app.command()
def up() -> None:
    """Start the cluster and its platform; a second time, bring it up to date."""
    with node.exclusive():
        steps.up()


@app.command()
def down() -> None:
    """End the cluster, however it was left, and leave nothing but the cache of programs and images."""
    with node.exclusive(), step("down"):
        node.stop()
    console.print("next: make up")


@app.command()
def status() -> None:
    """Show what runs and what it uses."""
    console.print(f"{steps.measured(seconds=10)}, over 10 s")
    typer.echo(node.run("kubectl", "get", "pods", "--all-namespaces"), nl=False)


@app.command(context_settings={"allow_interspersed_args": False})
def exec(command: Annotated[list[str], typer.Argument(metavar="COMMAND...")]) -> None:  # noqa: A001 - its name
    """Run a command inside the cluster's machine, where kubectl, argocd and the rest are on PATH and set up."""
    sys.stdout.flush()
    argv = node.nsenter(command)
    os.execvpe(argv[0], argv, dict(node.environment()))  # noqa: S606 - its place is taken, signals and all


@app.command()
def logs(name: Annotated[str, typer.Argument(help="which; all are listed without")] = "") -> None:
    """Print the log of a part of the machine; those of pods come from `kubectl logs`."""
    files = {file.stem: file for file in sorted((node.state() / "log").glob("*.log"))}
    if not name:
        typer.echo("\n".join(files))
    elif name in files:
        typer.echo(files[name].read_text(errors="replace"), nl=False)
    else:
        raise ToolError(
            f"there is no log {name!r}, but {', '.join(files) or 'none at all: no cluster was started'}"
        )


@app.command()
def kubeconfig() -> None:
    """Print a kubeconfig for programs on this host; it holds the key of the cluster's administrator."""
    node.nsenter([])
    config = (node.state() / "root" / node.KUBECONFIG.removeprefix("/")).read_text()
    typer.echo(config.replace(f"https://{node.IP}:6443", "https://127.0.0.1:6443"), nl=False)


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="a folder of tools/modules, or prebuilt; all without")] = "",
) -> None:
    """Build the programs that are not in the cache yet, and print the folders in which they are."""
    for one in [name] if name else (*programs.CLUSTER_PROGRAMS, *programs.HOST_PROGRAMS):
        with step(f"programs: {one}") as say:
            typer.echo(programs.folder(one, say))
    if not name:
        console.print("next: make up")


@app.command()
def doctor() -> None:
    """Check what the cluster needs of this machine, and name for each problem the command that fixes it."""
    if not examination.show():
        raise typer.Exit(1)


if __name__ == "__main__":
    sys.exit(command_line.run(app, "cluster"))
