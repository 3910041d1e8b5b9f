"""The exception that ends a command."""


class PipelineError(Exception):
    """An error that the user can fix; the message says what is wrong and what to do next."""
