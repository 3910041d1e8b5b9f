"""The error that a command of tools shows as one line, instead of a traceback."""


class ToolError(Exception):
    """A command failed; the message says what failed, why, and what to do next."""
