"""Exceptions that end a command."""

from collections.abc import Sequence


class PipelineError(Exception):
    """An error that the user can fix; the message says what is wrong and what to do next."""


class ModelRejected(Exception):
    """The gate rejected a model."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons
