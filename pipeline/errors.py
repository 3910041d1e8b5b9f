"""What the modules raise when a person has to act."""

from collections.abc import Sequence


class PipelineError(Exception):
    """Something that a person can put right: the message says what is wrong, and what to do next."""


class Refused(Exception):
    """The gate has stopped a model."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons
