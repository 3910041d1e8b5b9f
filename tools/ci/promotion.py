"""What somebody approves: the release that dev has beside that of prod, with their figures and the model card."""

from collections.abc import Iterator

from delivery import changes
from delivery.release import Release, ReleaseError
from delivery.repository import Repository

CARD = "docs/MODEL_CARD.md"
FACTS = ("version", "algorithm", "run_id", "sha256")


def promotion(repository: Repository) -> str:
    """Return what a promotion would ship, as Markdown. Raises ReleaseError when that is nothing."""
    change = changes.promote(repository)
    new, old = changes.current(repository, "dev"), changes.current(repository, "prod")
    if change is None or new is None:
        raise ReleaseError("prod has what dev has: there is nothing to promote")
    rows = [f"| {name} | {_told(old, name)} | {_told(new, name)} |" for name in ("image", *FACTS, *_figures(new))]
    table = "\n".join(["| | prod now | to be promoted |", "|---|---|---|", *rows])
    return f"# {change.message.splitlines()[0]}\n\n{table}\n\n{(repository.root / CARD).read_text()}"


def _told(release: Release | None, name: str) -> str:
    """Return what a release says of one thing, empty where it says nothing."""
    if release is None:
        return ""
    known = {**release.facts["metrics"], **release.facts, "image": release.digest}
    value = known.get(name, "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:19]


def _figures(release: Release) -> Iterator[str]:
    return (name for name, value in release.facts["metrics"].items() if isinstance(value, float))
