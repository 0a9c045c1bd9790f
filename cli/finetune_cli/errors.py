"""Errors in words for a person; the command line never shows a traceback."""


class CliError(Exception):
    """What went wrong and what to do; printed to stderr, exit code 1."""
