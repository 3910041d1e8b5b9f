"""The model card: its figures follow from the pipeline, its words from people."""

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
    """A model card that the commands take for the repository's; the candidates are fitted already."""
    path = tmp_path / "MODEL_CARD.md"
    path.write_text(CARD.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(card, "CARD", path)
    monkeypatch.setattr(card, "measured", lambda: card.section(iris, list(evaluations.values())))
    return path


def test_the_cards_figures_are_what_the_pipeline_gives() -> None:
    outcome = pipeline("card", "--check")
    assert outcome.exit_code == 0, outcome.stderr


def test_a_changed_figure_fails_the_check_and_the_command_that_is_named_cures_it(copy: Path) -> None:
    text = copy.read_text(encoding="utf-8")
    copy.write_text(text.replace("| 0.933 |", "| 0.993 |", 1), encoding="utf-8")
    assert copy.read_text(encoding="utf-8") != text
    stale = pipeline("card", "--check")
    assert stale.exit_code == 1
    assert "Run: python -m pipeline card" in stale.stderr
    assert pipeline("card").exit_code == 0
    assert copy.read_text(encoding="utf-8") == text


def test_what_is_written_by_hand_may_change(copy: Path) -> None:
    copy.write_text("# Another title\n" + copy.read_text(encoding="utf-8") + "\nMore.\n", encoding="utf-8")
    card.check()


@pytest.mark.parametrize("marker", [BEGIN, END])
def test_a_lost_marker_is_named(copy: Path, marker: str) -> None:
    copy.write_text(copy.read_text(encoding="utf-8").replace(marker, ""), encoding="utf-8")
    with pytest.raises(CardError, match=r"has lost a marker\. Put this back: <!-- "):
        card.check()


def test_the_section_names_every_candidate_the_winner_and_the_gate(
    iris: Data, evaluations: dict[Algorithm, Evaluation]
) -> None:
    section = card.section(iris, list(evaluations.values()))
    assert all(f"| {algorithm} |" in section for algorithm in Algorithm)
    assert "Chosen: **logistic_regression**" in section
    assert "| cv_f1 | 0.900 | 0.010 |" in section
