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
    return "\n\n".join(
        [
            f"Seed {SEED}; {len(loaded.train_rows)} training rows, {len(loaded.test_rows)} held out; "
            f"SHA-256 of the data and its split `{loaded.digest[:16]}`.\n"
            f"Cross-validated (CV) scores are the mean ± the standard deviation over {FOLDS} folds.",
            _candidates(candidates),
            f"Selected: **{winner.algorithm}**. Confusion matrix on the held-out rows, true classes down:",
            _confusion(winner),
            "Feature importance in the random forest (mean decrease in impurity):",
            _importance(candidates),
            "The gate:",
            _gate(),
        ]
    )


def _candidates(candidates: Iterable[Evaluation]) -> str:
    head = ("candidate", "F1, CV", "accuracy, CV", "accuracy, test", "precision, test", "recall, test", "F1, test")
    rows = [
        (
            candidate.algorithm,
            f"{candidate.cv.f1:.3f} ± {candidate.cv_std.f1:.3f}",
            f"{candidate.cv.accuracy:.3f} ± {candidate.cv_std.accuracy:.3f}",
            *(f"{score:.3f}" for score in candidate.test),
        )
        for candidate in candidates
    ]
    return _table(head, rows)


def _confusion(winner: Evaluation) -> str:
    rows = zip(CLASSES, winner.confusion.tolist(), strict=True)
    return _table(("", *CLASSES), [(name, *map(str, counts)) for name, counts in rows])


def _importance(candidates: Iterable[Evaluation]) -> str:
    importance = next(candidate.importance for candidate in candidates if candidate.importance)
    ranked = sorted(importance.items(), key=lambda item: -item[1])
    return _table(("feature", "importance"), [(name, f"{value:.2f}") for name, value in ranked])


def _gate() -> str:
    rows = zip(gate.GateMetrics._fields, gate.FLOOR, gate.MARGIN, strict=True)
    return _table(
        ("metric", "floor", "margin below the production version"),
        [(name, f"{floor:.3f}", f"{margin:.3f}") for name, floor, margin in rows],
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))
