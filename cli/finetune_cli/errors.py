"""Errors in words for a person; the command line never shows a traceback."""


class CliError(Exception):
    """What went wrong and what to do; printed to stderr, exit code 1."""


class AwayError(CliError):
    """The API server does not answer; trying again may help."""


class MissingError(CliError):
    """404."""


class NoSuchJobError(CliError):
    """The FineTuneJob does not exist; the message says which ones do."""


class ForbiddenError(CliError):
    """403: these credentials may not do it."""
