"""`python -m delivery`: release a model by commit, promote it, roll it back, and explain what happened."""

import sys
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import typer
from rich.console import Console
from rich.table import Table

from delivery import changes, command_line, kubernetes, manifests, status
from delivery.changes import Change
from delivery.event import LARGEST, read
from delivery.explanation import Abort, aborted, listed, unapplied
from delivery.history import history
from delivery.kubernetes import ClusterUnavailable
from delivery.release import ENVIRONMENTS, ReleaseError, read_model
from delivery.repository import Repository
from delivery.watch import watch_release

app = typer.Typer(
    help="Release a model by commit, promote it, and roll it back.",
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
Environment = Literal["dev", "prod"]
NOTHING_TO_DO = "nothing to do: git has this already, or has moved on to another release"
REVERT_BY_HAND = "find the commit that did it, and revert it: git revert COMMIT && git push"
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the commit, and change nothing")]
Override = Annotated[bool, typer.Option("--override", help="release a digest that was rejected before")]


@app.command()
def release(
    digest: Annotated[str, typer.Argument(help="sha256:... of the pushed image")],
    model: Annotated[Path, typer.Option(help="the model folder in the image")] = Path("model"),
    override: Override = False,  # noqa: FBT002 - a flag
    dry_run: DryRun = False,  # noqa: FBT002
) -> None:
    """Release an image to dev."""
    repository = Repository(Path())
    wanted = read_model(model, digest)
    _commit(repository, changes.release(repository, "dev", wanted, override=override), dry_run=dry_run)


@app.command()
def promote(
    digest: Annotated[str, typer.Option(help="refuse unless dev has this digest")] = "",
    override: Override = False,  # noqa: FBT002
    dry_run: DryRun = False,  # noqa: FBT002
) -> None:
    """Release dev's release in prod."""
    repository = Repository(Path())
    _commit(repository, changes.promote(repository, digest, override=override), dry_run=dry_run)


@app.command()
def revert(
    environment: Annotated[Environment | None, typer.Argument(help="required without --event")] = None,
    digest: Annotated[str, typer.Option(help="do nothing unless this digest is the current release")] = "",
    reason: Annotated[str, typer.Option(help="the commit's body; by default, the cluster's explanation")] = "",
    event: Annotated[
        typer.FileBinaryRead | None, typer.Option(help="file with the message about an abort; - for stdin")
    ] = None,
    unconfirmed: Annotated[  # noqa: FBT002
        bool, typer.Option("--unconfirmed", help="trust the message if the cluster is unavailable")
    ] = False,
    if_aborted: Annotated[  # noqa: FBT002
        bool, typer.Option("--if-aborted", help="do nothing unless the cluster reports an abort")
    ] = False,
    dry_run: DryRun = False,  # noqa: FBT002
) -> None:
    """Restore the previous release, and reject the current one.

    Exit codes: 0 done or nothing to do, 1 refused, 3 the cluster does not confirm the message, 4 the cluster is
    unavailable.
    """
    repository = Repository(Path())
    environment, digest = _named(environment, digest, event)
    current = changes.current(repository, environment)
    stable = explanation = ""
    confirmed = True
    try:
        abort = aborted(repository, environment)
        if abort and current and abort.digest == current.digest:
            is_named = digest == abort.digest if event else not digest  # else a person insists on this digest
            if abort.is_of_manifests and is_named:
                _undo(repository, environment, abort, reason, dry_run=dry_run)
                return
            stable, explanation = abort.stable, abort.text
            digest = abort.digest if if_aborted else digest
        elif if_aborted:
            typer.echo(f"nothing to do: the cluster reports no abort of the current release in {environment}")
            return
        elif event and current and current.digest == digest:
            typer.echo(f"nothing to do: the cluster does not report an abort of {digest[:19]} in {environment}")
            raise typer.Exit(3)
        elif not event:
            stable = kubernetes.stable(environment)
            explanation = refused.text if (refused := unapplied(environment)) else ""
    except ClusterUnavailable as error:
        if if_aborted or (event and not unconfirmed):
            raise
        if event:
            if current and current.digest == digest:
                _refuse_if_manifests_changed(repository, environment)
            confirmed = False
            explanation = f"Aborted. The reason is not known: the cluster is unavailable ({error})"
    reason = reason.strip() or explanation or "Rolled back by hand, without a reason."
    by_person = not (event or if_aborted)
    change = changes.revert(
        repository, environment, reason, digest, stable, confirmed=confirmed, by_person=by_person
    )
    _commit(repository, change, dry_run=dry_run)


@app.command()
def why(environment: Environment) -> None:
    """Explain why a release was rolled back or not applied: measurements, failed requests, next steps."""
    repository = Repository(Path())
    current = changes.current(repository, environment)
    rollback = next((period for period in history(repository, environment) if period.rolled_back), None)
    revert = manifests.last_revert(repository)
    try:
        abort, refused = aborted(repository, environment), unapplied(environment)
    except ClusterUnavailable as error:
        if not (rollback or revert):
            raise
        typer.echo(f"the cluster is unavailable ({error}); git's last rollback follows", err=True)
        abort = refused = None
    if abort and current and abort.digest == current.digest:
        which = "" if abort.is_of_manifests else f" --digest={abort.digest}"
        command = f"python -m delivery revert {environment}{which} && git push"
        automatic = f"nothing; git is reverted automatically. If it is not: {command}"
        typer.echo(f"{abort.text}\nnext: {REVERT_BY_HAND if abort.needs_person else automatic}")
    elif refused:
        typer.echo(f"{refused.text}\nnext: python -m delivery revert {environment} && git push")
    elif revert and not (rollback and rollback.until and rollback.until >= revert.time):
        typer.echo(
            f"a change of the manifests was reverted at {revert.time:%Y-%m-%d %H:%M} UTC: {revert.subject}\n"
        )
        typer.echo(f"{revert.body}\nnext: python -m delivery status {environment}")
    elif rollback:
        typer.echo(f"{rollback.release.name} was rolled back at {rollback.until:%Y-%m-%d %H:%M} UTC:\n")
        typer.echo(f"{rollback.explanation}\nnext: python -m delivery status {environment}")
    else:
        typer.echo(f"no release of {environment} was rolled back\nnext: python -m delivery status {environment}")


@app.command("status")
def show_status(environment: Environment) -> None:
    """Show the state of an environment in git, in Argo CD and in the cluster."""
    for line in status.lines(Repository(Path()), environment):
        typer.echo(line)
    typer.echo(f"next: kubectl argo rollouts get rollout iris --namespace=iris-{environment} --watch")


@app.command()
def watch(
    environment: Environment,
    digest: Annotated[str, typer.Option(help="the release; by default, the current one in git")] = "",
    minutes: Annotated[float, typer.Option(help="how long to wait")] = 40.0,
) -> None:
    """Wait until a release is promoted or rolled back.

    Exit codes: 0 promoted, 1 rolled back, not applied, or undecided in that time, 4 the cluster is unavailable.
    """
    repository = Repository(Path())
    digest = digest or changes.running(repository, environment).digest
    promoted = watch_release(repository, environment, digest, minutes * 60, typer.echo)
    typer.echo(f"next: python -m delivery {'status' if promoted else 'why'} {environment}")
    raise typer.Exit(0 if promoted else 1)


@app.command("history")
def show_history(environment: Environment) -> None:
    """List the releases of an environment: when each was deployed, by whom, and how it ended."""
    table = Table("model", "digest", "from (UTC)", "until (UTC)", "released by", "outcome")
    for period in history(Repository(Path()), environment):
        table.add_row(
            str(period.release.metadata["version"]),
            period.release.digest[:19],
            f"{period.since:%Y-%m-%d %H:%M}",
            f"{period.until:%Y-%m-%d %H:%M}" if period.until else "now",
            period.released_by.partition(" <")[0],
            period.outcome,
        )
    console = Console(markup=False, emoji=False, highlight=False)  # people wrote the reasons
    if not console.is_terminal:
        console.width = 140  # there is no window to fit
    console.print(table)
    typer.echo(f"next: python -m delivery why {environment}")


def _named(environment: Environment | None, digest: str, event: BinaryIO | None) -> tuple[Environment, str]:
    """Return the environment and the digest that the options or the message name."""
    if event and (environment or digest):
        raise typer.BadParameter("--event names environment and digest: omit them")
    if event:
        return read(event.read(LARGEST))
    if environment is None:
        raise typer.BadParameter("give an environment, `dev` or `prod`, or --event")
    return environment, digest


def _commit(repository: Repository, change: Change | None, *, dry_run: bool) -> None:
    if change is None:
        typer.echo(NOTHING_TO_DO)
        return
    if dry_run:
        typer.echo(f"would commit in {change.folder}:\n\n{change.message}")
        return
    repository.refuse_changes(change.folder)
    _done(repository.commit(*change), change.message)


def _undo(repository: Repository, environment: str, abort: Abort, reason: str, *, dry_run: bool) -> None:
    """Revert the commit that changed the manifests. Raises ReleaseError unless exactly one commit did.

    The stable version runs the same release: it is not to blame.
    """
    if abort.needs_person:
        raise ReleaseError(
            f"{environment}'s release did not change, the manifests did; nothing was reverted. "
            f"Next: {REVERT_BY_HAND}\n" + "\n".join(listed(abort.changed))
        )
    if not abort.changed:  # it is reverted already
        typer.echo(NOTHING_TO_DO)
        return
    (commit,) = abort.changed
    explanation = "\n\n".join(filter(None, [reason.strip(), abort.text]))
    message = (
        f"{environment}: revert {commit.sha[:10]} ({commit.subject})\n\n{explanation}\n\n"
        f"{manifests.REVERTED}: {commit.sha}\n"
    )
    if dry_run:
        typer.echo(f"would revert {commit.sha[:10]}:\n\n{message}")
        return
    repository.refuse_changes(*manifests.FOLDERS)
    releases = (changes.folder(name) for name in ENVIRONMENTS)
    _done(repository.undo(commit.sha, message, *releases), message)


def _refuse_if_manifests_changed(repository: Repository, environment: str) -> None:
    """Raise ReleaseError if the manifests changed after the release: only the cluster knows which was aborted."""
    if younger := manifests.since_release(repository, environment):
        raise ReleaseError(
            f"the cluster is unavailable, and the manifests changed after {environment}'s release: which of them "
            f"was aborted is not known. Nothing was changed. Next: {REVERT_BY_HAND}, or, for the release, "
            f"python -m delivery revert {environment} && git push\n" + "\n".join(listed(younger))
        )


def _done(sha: str, message: str) -> None:
    typer.echo(f"{sha[:10]} {message.splitlines()[0]}\nnext: git push")


def main() -> int:
    """Run a command; return its exit code."""
    try:
        return command_line.run(app, "delivery", ReleaseError)
    except ClusterUnavailable as error:
        typer.echo(f"delivery: the cluster is unavailable: {error}; is kubectl set up for it?", err=True)
        return 4


if __name__ == "__main__":
    sys.exit(main())
