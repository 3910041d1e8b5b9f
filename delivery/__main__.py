"""`python -m delivery`: ship a release by commit, promote it, take it back, tell what ran when and why it left."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from delivery import changes, command_line
from delivery.changes import Change
from delivery.event import LARGEST, read
from delivery.explanation import aborted, unapplied
from delivery.history import history as told
from delivery.kubernetes import ClusterUnavailable
from delivery.release import ReleaseError, read_model
from delivery.repository import Repository
from delivery.status import lines
from delivery.watch import watch_release

app = typer.Typer(
    help="Ship a model by commit, and take it back.", pretty_exceptions_enable=False, no_args_is_help=True
)
Environment = Literal["dev", "prod"]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be committed, and change nothing")]
Override = Annotated[bool, typer.Option("--override", help="also a release that was rejected before")]


@app.command()
def release(
    digest: Annotated[str, typer.Argument(help="sha256:... of the image that was pushed")],
    model: Annotated[Path, typer.Option(help="the model folder that is in the image")] = Path("model"),
    override: Override = False,  # noqa: FBT002 - a flag
    dry_run: DryRun = False,  # noqa: FBT002
) -> None:
    """Ship an image to dev."""
    repository = Repository(Path())
    wanted = read_model(model, digest)
    _commit(repository, changes.release(repository, "dev", wanted, override=override), dry_run=dry_run)


@app.command()
def promote(
    digest: Annotated[str, typer.Option(help="only if dev runs this one; another is refused")] = "",
    override: Override = False,  # noqa: FBT002
    dry_run: DryRun = False,  # noqa: FBT002
) -> None:
    """Ship to prod what runs in dev."""
    repository = Repository(Path())
    _commit(repository, changes.promote(repository, digest, override=override), dry_run=dry_run)


@app.command()
def revert(
    environment: Annotated[Environment | None, typer.Argument(help="without --event")] = None,
    digest: Annotated[str, typer.Option(help="only if this one runs; another is left alone")] = "",
    reason: Annotated[str, typer.Option(help="the commit's body; without, what the cluster says")] = "",
    event: Annotated[
        typer.FileBinaryRead | None, typer.Option(help="the message of an abort; - for stdin")
    ] = None,
    unconfirmed: Annotated[  # noqa: FBT002
        bool, typer.Option("--unconfirmed", help="believe the message where the cluster cannot be asked")
    ] = False,
    dry_run: DryRun = False,  # noqa: FBT002
) -> None:
    """Bring back the release before the one that runs, and remember that one as rejected.

    Exit codes: 0 done or nothing to do, 1 refused, 3 the cluster does not say what the message says, 4 it cannot
    be asked.
    """
    repository, stable, told_by_cluster = Repository(Path()), "", ""
    if event and (environment or digest):
        raise typer.BadParameter("a message names environment and digest itself: give it alone")
    if event:
        environment, digest = read(event.read(LARGEST))
    if environment is None:
        raise typer.BadParameter("which environment? `dev` or `prod`, or --event with a message")
    runs = changes.current(repository, environment)
    try:
        abort = aborted(repository, environment)
        if abort and runs and abort.digest == runs.digest:
            stable, told_by_cluster = abort.stable, abort.text
        elif event and runs and runs.digest == digest:
            typer.echo(f"nothing to do: the cluster does not say that it took {digest[:19]} back in {environment}")
            raise typer.Exit(3)
        elif not event and (refused := unapplied(environment)):
            told_by_cluster = refused.text
    except ClusterUnavailable as error:
        if event and not unconfirmed:
            raise
        told_by_cluster = f"Taken back. The cluster could not be asked why: {error}" if event else ""
    reason = reason.strip() or told_by_cluster or "Taken back by hand."
    _commit(repository, changes.revert(repository, environment, reason, digest, stable), dry_run=dry_run)


@app.command()
def why(environment: Environment) -> None:
    """Explain why a release was taken back or not applied: what was measured, what users met, what to do next."""
    repository = Repository(Path())
    runs = changes.current(repository, environment)
    rejection = next((stay for stay in told(repository, environment) if stay.rejected), None)
    try:
        abort, refused = aborted(repository, environment), unapplied(environment)
    except ClusterUnavailable as error:
        if not rejection:
            raise
        typer.echo(f"the cluster cannot be asked ({error}); this is the last that git tells of", err=True)
        abort = refused = None
    if abort and runs and abort.digest == runs.digest:
        again = f"python -m delivery revert {environment} --digest={abort.digest}"
        typer.echo(f"{abort.text}\nnext: git is reverted by itself; if not: {again}")
    elif refused:
        typer.echo(f"{refused.text}\nnext: python -m delivery revert {environment}")
    elif rejection:
        typer.echo(f"{rejection.left}\nnext: python -m delivery status {environment}")
    else:
        typer.echo(f"nothing was ever taken back in {environment}\nnext: python -m delivery status {environment}")


@app.command()
def status(environment: Environment) -> None:
    """Show what git asks for in an environment, what Argo CD has made of it, and where the rollout is."""
    for line in lines(Repository(Path()), environment):
        typer.echo(line)
    typer.echo(f"next: kubectl argo rollouts get rollout iris --namespace=iris-{environment} --watch")


@app.command()
def watch(
    environment: Environment,
    digest: Annotated[str, typer.Option(help="the release; without, the one that git says runs")] = "",
    minutes: Annotated[float, typer.Option(help="how long, at most")] = 40.0,
) -> None:
    """Wait until a release has all users, or none.

    Exit codes: 0 promoted, 1 taken back, not applied, or neither in that time, 4 the cluster cannot be asked.
    """
    repository = Repository(Path())
    digest = digest or changes.running(repository, environment).digest
    try:
        promoted = watch_release(repository, environment, digest, minutes * 60, typer.echo)
    except TimeoutError as error:
        raise ReleaseError(str(error)) from error
    typer.echo(f"next: python -m delivery {'status' if promoted else 'why'} {environment}")
    raise typer.Exit(0 if promoted else 1)


@app.command()
def history(environment: Environment) -> None:
    """Tell which model ran in an environment from when to when, who brought it, and why it left."""
    table = Table("model", "digest", "from", "until", "brought by", "why it left")
    for stay in told(Repository(Path()), environment):
        table.add_row(
            str(stay.release.facts["version"]),
            stay.release.digest[:19],
            f"{stay.since:%Y-%m-%d %H:%M}",
            f"{stay.until:%Y-%m-%d %H:%M}" if stay.until else "now",
            stay.brought_by.partition(" <")[0],
            stay.in_short,
        )
    console = Console()
    if not console.is_terminal:
        console.width = 140  # there is no window that it would have to fit
    console.print(table)
    typer.echo(f"next: python -m delivery why {environment}")


def _commit(repository: Repository, change: Change | None, *, dry_run: bool) -> None:
    if change is None:
        typer.echo("nothing to do: git says so already, or has moved on")
        return
    if dry_run:
        typer.echo(f"would commit in {change.folder}:\n\n{change.message}")
        return
    repository.refuse_changes()
    sha = repository.commit(change.folder, change.files, change.message)
    typer.echo(f"{sha[:10]} {change.message.splitlines()[0]}\nnext: git push")


def main() -> int:
    """Run a command; return its exit code."""
    try:
        return command_line.run(app, "delivery", ReleaseError)
    except ClusterUnavailable as error:
        typer.echo(f"delivery: the cluster cannot be asked: {error}; is kubectl set up for it?", err=True)
        return 4


if __name__ == "__main__":
    sys.exit(main())
