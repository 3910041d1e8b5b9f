"""The model card's figures: written into docs/MODEL_CARD.md by the pipeline, between two markers."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline import data, gate
from pipeline.data import Data
from pipeline.dataset import CLASSES
from pipeline.errors import PipelineError
from pipeline.evaluation import FOLDS, Evaluation, evaluate
from pipeline.names import SEED, Algorithm

CARD = Path(__file__).parents[1] / "docs" / "MODEL_CARD.md"
BEGIN = "<!-- figures: written by `python -m pipeline card`, edit nothing down to the next marker -->"
END = "<!-- end of figures -->"


class CardError(PipelineError):
    """The model card is stale, or has lost its markers."""


def rewrite() -> None:
    """Train the candidates and put their figures into the card."""
    CARD.write_text(splice(CARD.read_text(encoding="utf-8"), measured()), encoding="utf-8")


def check() -> None:
    """Raise CardError unless the card's figures are those that a training gives."""
    text = CARD.read_text(encoding="utf-8")
    if splice(text, measured()) != text:
        raise CardError(f"the figures in {CARD} are not what the pipeline gives. Run: python -m pipeline card")


def measured() -> str:
    """Return the section's Markdown; rounded, and free of ids and dates, so that every machine gives the same."""
    loaded = data.load()
    return section(loaded, [evaluate(algorithm, loaded, SEED) for algorithm in Algorithm])


def splice(text: str, section: str) -> str:
    """Return the card with what stands between the markers replaced."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise CardError(f"the model card has lost a marker. Put this back: {BEGIN if not begin else END}")
    return f"{head}{BEGIN}\n\n{section}\n\n{END}{tail}"


def section(loaded: Data, candidates: Sequence[Evaluation]) -> str:
    """Return tables of the candidates, the winner's confusion matrix, the forest's importances and the gate."""
    winner = gate.choose(candidates)
    return "\n\n".join(
        [
            f"Seed {SEED}; {len(loaded.train_rows)} rows to train on, {len(loaded.test_rows)} held out; "
            f"SHA-256 of data and division `{loaded.digest[:16]}`. "
            f"F1 and accuracy by cross-validation are the mean and the standard deviation over {FOLDS} folds.",
            _candidates(candidates),
            f"Chosen: **{winner.algorithm}**. Its answers for the held-out rows, true classes down:",
            _confusion(winner),
            "What the random forest looks at (share in its decrease of impurity):",
            _importance(candidates),
            "The gate:",
            _gate(),
        ]
    )


def _candidates(candidates: Iterable[Evaluation]) -> str:
    head = ("candidate", "F1, folds", "accuracy, folds", "accuracy, test", "precision", "recall", "F1, test")
    return _table(
        head,
        [
            (
                c.algorithm,
                _spread(c.cv.f1, c.cv_std.f1),
                _spread(c.cv.accuracy, c.cv_std.accuracy),
                *map(_round, c.test),
            )
            for c in candidates
        ],
    )


def _confusion(winner: Evaluation) -> str:
    rows = zip(CLASSES, winner.confusion.tolist(), strict=True)
    return _table(("", *CLASSES), [(name, *map(str, counts)) for name, counts in rows])


def _importance(candidates: Iterable[Evaluation]) -> str:
    shares = next(candidate.importance for candidate in candidates if candidate.importance)
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    return _table(("feature", "share"), [(name, f"{share:.2f}") for name, share in ranked])


def _gate() -> str:
    rows = zip(gate.Figures._fields, gate.FLOOR, gate.MARGIN, strict=True)
    return _table(
        ("figure", "at least", "may fall below the champion by"),
        [(name, _round(floor), _round(margin)) for name, floor, margin in rows],
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))


def _round(value: float) -> str:
    return f"{value:.3f}"


def _spread(mean: float, deviation: float) -> str:
    return f"{mean:.3f} ± {deviation:.3f}"
