"""An alert counts when a message about it arrives during the scenario, not before."""

import pytest

from tools.drill.slack_receiver import Message, SlackReceiver

TITLE, TEXT = "FIRING warning iris-prod", "*JournalGrowing*: Predictions do not get to PostgreSQL"


@pytest.mark.parametrize(
    ("message", "alerted"),
    [
        (Message(20.0, TITLE, TEXT), True),
        (Message(9.9, TITLE, TEXT), False),
        (Message(20.0, TITLE, "*JournalGrowing* (resolved): Predictions do not get to PostgreSQL"), False),
        (Message(20.0, "FIRING warning iris-dev", TEXT), False),
        (Message(20.0, TITLE, "*JournalNotWritable*: It is not."), False),
    ],
    ids=["matching", "before", "resolved", "other namespace", "other alert"],
)
def test_message_counts_if_alert_namespace_and_time_match(message: Message, alerted: bool) -> None:
    receiver = SlackReceiver()
    receiver.received.append(message)

    missing = receiver.missing("JournalGrowing", "iris-prod", since=10.0)

    assert (missing is None) == alerted
