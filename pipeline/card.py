"""The generated section of the model card, docs/MODEL_CARD.md."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline import data, gate
from pipeline.data import Data
from pipeline.dataset import CLASSES
from pipeline.errors import PipelineError
from pipeline.evaluation import FOLDS, Evaluation, evaluate
from pipeline.names import SEED, Algorithm

CARD = Path(__file__).parents[1] / "docs" / "MODEL_CARD.md"
BEGIN = "<!-- metrics: written by `python -m pipeline card`; do not edit this section -->"
END = "<!-- end of metrics -->"


class CardError(PipelineError):
    """The model card is out of date, or has lost a marker."""


def rewrite() -> None:
    """Train the candidates and write their metrics to the card. Raises CardError."""
    CARD.write_text(splice(CARD.read_text(encoding="utf-8"), measure()), encoding="utf-8")


def check() -> None:
    """Check that the card has the metrics of a new training. Raises CardError."""
    text = CARD.read_text(encoding="utf-8")
    if splice(text, measure()) != text:
        raise CardError(f"the metrics in {CARD} are out of date. Run: python -m pipeline card")


def measure() -> str:
    """Train the candidates and return the section as Markdown, which is the same on every machine."""
    loaded = data.load()
    return section(loaded, [evaluate(algorithm, loaded, SEED) for algorithm in Algorithm])


def splice(text: str, section: str) -> str:
    """Return the card with the section between the markers replaced. Raises CardError."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise CardError(f"a marker is missing in the model card. Restore it: {BEGIN if not begin else END}")
    return f"{head}{BEGIN}\n\n{section}\n\n{END}{tail}"


def section(loaded: Data, candidates: Sequence[Evaluation]) -> str:
    """Return tables of the candidates, the winner's confusion matrix, the feature importances and the gate.

    Numbers are rounded, and there are no IDs or dates, so that the text does not depend on the machine.
    """
    winner = gate.choose(candidates)
    importance = next(candidate.importance for candidate in candidates if candidate.importance)
    ranked = sorted(importance, key=lambda name: -importance[name])
    scores = ("F1, CV", "accuracy, CV", "accuracy, test", "precision, test", "recall, test", "F1, test")
    limits = zip(gate.GateMetrics._fields, gate.FLOOR, gate.MARGIN, strict=True)
    return "\n\n".join(
        [
            f"Seed {SEED}; {len(loaded.train_rows)} training rows, {len(loaded.test_rows)} held out; "
            f"SHA-256 of the data and its split `{loaded.digest[:16]}`.\n"
            f"Cross-validated (CV) scores are the mean ± the standard deviation over {FOLDS} folds.",
            _table(("candidate", *scores), map(_scores, candidates)),
            f"Selected: **{winner.algorithm}**. Confusion matrix on the held-out rows, true classes down:",
            _table(("", *CLASSES), ((name, *row) for name, row in zip(CLASSES, winner.confusion, strict=True))),
            "Feature importance in the random forest (mean decrease in impurity):",
            _table(
                ("feature", "importance"),
                ((name, f"{importance[name]:.2f}") for name in ranked),
            ),
            "The gate:",
            _table(
                ("metric", "floor", "margin below the best version"),
                ((name, f"{floor:.3f}", f"{margin:.3f}") for name, floor, margin in limits),
            ),
        ]
    )


def _scores(candidate: Evaluation) -> list[str]:
    cv, std = candidate.cv, candidate.cv_std
    cross_validated = [f"{cv.f1:.3f} ± {std.f1:.3f}", f"{cv.accuracy:.3f} ± {std.accuracy:.3f}"]
    return [candidate.algorithm, *cross_validated, *(f"{score:.3f}" for score in candidate.test)]


def _table(head: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, rule, *rows))
