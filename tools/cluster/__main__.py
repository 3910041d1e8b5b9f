"""`python -m tools.cluster`: start, stop and inspect a real Kubernetes on this host."""

import os
import sys
from typing import Annotated

import typer

from tools import command_line, programs
from tools.cluster import doctor as checks
from tools.cluster import node
from tools.cluster import up as steps
from tools.errors import ToolError
from tools.progress import console, step

app = typer.Typer(help="A real Kubernetes on this host.", pretty_exceptions_enable=False, no_args_is_help=True)


@app.command()
def up() -> None:
    """Start the cluster and its platform, or update a running one."""
    with node.exclusive():
        steps.up()


@app.command()
def down() -> None:
    """Stop the cluster in any state and remove everything except the cache of programs and images."""
    with node.exclusive(), step("down"):
        node.stop()
    console.print("next: make up")


@app.command()
def status() -> None:
    """Show the pods and the resources that the cluster uses."""
    console.print(f"{steps.measured(seconds=10)}, over 10 s")
    typer.echo(node.run("kubectl", "get", "pods", "--all-namespaces"), nl=False)


@app.command(context_settings={"allow_interspersed_args": False})
def exec(command: Annotated[list[str], typer.Argument(metavar="COMMAND...")]) -> None:  # noqa: A001 - its name
    """Run a command on the node, where kubectl, argocd and other programs are on PATH and configured."""
    sys.stdout.flush()
    argv = node.nsenter(command)
    os.execvpe(argv[0], argv, dict(node.environment()))  # noqa: S606 - replaces this process, so signals reach it


@app.command()
def logs(name: Annotated[str, typer.Argument(help="a component; all are listed by default")] = "") -> None:
    """Print the log of a component of the node; `kubectl logs` prints those of pods."""
    files = {file.stem: file for file in sorted((node.state() / "log").glob("*.log"))}
    if not name:
        typer.echo("\n".join(files))
    elif name in files:
        typer.echo(files[name].read_text(errors="replace"), nl=False)
    else:
        raise ToolError(
            f"no log is named {name!r}; there are: {', '.join(files) or 'none, because no cluster ran'}"
        )


@app.command()
def kubeconfig() -> None:
    """Print a kubeconfig for clients on this host; it contains the cluster administrator's key."""
    node.require_running()
    config = (node.state() / "root" / node.KUBECONFIG.removeprefix("/")).read_text()
    typer.echo(config.replace(f"https://{node.IP}:6443", "https://127.0.0.1:6443"), nl=False)


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="a folder of tools/modules, or prebuilt; all by default")] = "",
) -> None:
    """Build the programs that are not cached yet, and print the folders that contain them."""
    for one in [name] if name else (*programs.CLUSTER_PROGRAMS, *programs.HOST_PROGRAMS):
        with step(f"programs: {one}") as say:
            typer.echo(programs.folder(one, say))
    if not name:
        console.print("next: make up")


@app.command()
def doctor() -> None:
    """Check the requirements of the cluster on this host, and show how to fix each problem."""
    if not checks.show():
        raise typer.Exit(1)


if __name__ == "__main__":
    sys.exit(command_line.run(app, "cluster"))
