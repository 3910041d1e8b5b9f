"""People are told of an alert when a message about it came in the scenario, not in one before."""

import pytest

from tools.drill.slack_receiver import Message, Told

TITLE, TEXT = "FIRING warning iris-prod", "*JournalGrowing*: Predictions do not get to PostgreSQL"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (Message(20.0, TITLE, TEXT), True),
        (Message(9.9, TITLE, TEXT), False),
        (Message(20.0, TITLE, "*JournalGrowing* (over): Predictions do not get to PostgreSQL"), False),
        (Message(20.0, "FIRING warning iris-dev", TEXT), False),
        (Message(20.0, TITLE, "*JournalNotWritable*: It is not."), False),
    ],
    ids=["of it", "before", "over", "another place", "another alert"],
)
def test_a_message_counts_when_it_is_of_the_alert_the_place_and_the_time(message: Message, told: bool) -> None:
    receiver = Told()
    receiver.messages.append(message)

    missing = receiver.of("JournalGrowing", "iris-prod", since=10.0)

    assert (missing is None) == told
