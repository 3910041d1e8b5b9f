"""The summary that a person approves: dev's release beside prod's, with their scores and the model card."""

from delivery import changes
from delivery.explanation import listed
from delivery.manifests import since_release
from delivery.release import ReleaseError
from delivery.repository import Repository

CARD = "docs/MODEL_CARD.md"
CHANGED = "Manifests, which may include limits and steps of the gates, that changed since prod's last release:"
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
    parts = [f"# {change.message.splitlines()[0]}", table]
    if commits := listed(since_release(repository, "prod")):
        parts += [CHANGED, "\n".join(f"    {line}" for line in commits)]  # indented: people wrote the subjects
    return "\n\n".join([*parts, (repository.root / CARD).read_text()])


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:19]
