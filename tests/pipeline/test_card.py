"""The model card: the pipeline writes its metrics, and people write the rest."""

from pathlib import Path

import pytest

from pipeline import card
from pipeline.card import BEGIN, CARD, END, CardError
from pipeline.data import Data
from pipeline.evaluation import Evaluation
from pipeline.names import Algorithm
from tests.support.workspace import pipeline


@pytest.fixture
def copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, iris: Data, evaluations: dict[Algorithm, Evaluation]
) -> Path:
    """A copy that the commands use as the repository's model card, with candidates that are already fitted."""
    path = tmp_path / "MODEL_CARD.md"
    path.write_text(CARD.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(card, "CARD", path)
    monkeypatch.setattr(card, "measure", lambda: card.section(iris, list(evaluations.values())))
    return path


def test_the_metrics_in_the_model_card_are_up_to_date() -> None:
    outcome = pipeline("card", "--check")
    assert outcome.exit_code == 0, outcome.stderr


def test_a_changed_metric_fails_the_check_and_the_suggested_command_fixes_it(copy: Path) -> None:
    text = copy.read_text(encoding="utf-8")
    copy.write_text(text.replace("| 0.933 |", "| 0.993 |", 1), encoding="utf-8")
    assert copy.read_text(encoding="utf-8") != text
    outcome = pipeline("card", "--check")
    assert outcome.exit_code == 1
    assert "Run: python -m pipeline card" in outcome.stderr
    assert pipeline("card").exit_code == 0
    assert copy.read_text(encoding="utf-8") == text


def test_handwritten_text_may_change(copy: Path) -> None:
    copy.write_text("# Another title\n" + copy.read_text(encoding="utf-8") + "\nMore.\n", encoding="utf-8")
    card.check()


@pytest.mark.parametrize("marker", [BEGIN, END])
def test_the_error_names_a_missing_marker(copy: Path, marker: str) -> None:
    copy.write_text(copy.read_text(encoding="utf-8").replace(marker, ""), encoding="utf-8")
    with pytest.raises(CardError, match=r"a marker is missing in the model card\. Restore it: <!-- "):
        card.check()


def test_the_section_shows_every_candidate_the_winner_and_the_gate(
    iris: Data, evaluations: dict[Algorithm, Evaluation]
) -> None:
    section = card.section(iris, list(evaluations.values()))
    assert all(f"| {algorithm} |" in section for algorithm in Algorithm)
    assert "Selected: **logistic_regression**" in section
    assert "| cv_f1 | 0.900 | 0.010 |" in section
