"""The summary that a person approves: dev's release beside prod's, with their scores and the model card."""

from delivery import changes
from delivery.release import ReleaseError
from delivery.repository import Repository

CARD = "docs/MODEL_CARD.md"
METADATA = ("version", "algorithm", "run_id", "sha256")


def promotion(repository: Repository) -> str:
    """Return the release that a promotion would ship, as Markdown. Raises ReleaseError if there is none."""
    change = changes.promote(repository)
    new, old = changes.current(repository, "dev"), changes.current(repository, "prod")
    if change is None or new is None:
        raise ReleaseError("prod has the release of dev already: there is nothing to promote")
    prod, dev = ({**one.metrics, **one.metadata, "image": one.digest} if one else {} for one in (old, new))
    names = ("image", *METADATA, *new.metrics)
    rows = [f"| {name} | {_cell(prod.get(name, ''))} | {_cell(dev.get(name, ''))} |" for name in names]
    table = "\n".join(["| | prod now | to be promoted |", "|---|---|---|", *rows])
    return f"# {change.message.splitlines()[0]}\n\n{table}\n\n{(repository.root / CARD).read_text()}"


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:19]
