"""Errors with messages for users; the command line never shows a traceback."""


class CliError(Exception):
    """The command failed. The message explains what to do; it goes to stderr, with exit code 1."""


class AwayError(CliError):
    """The API server does not respond; a retry may succeed."""


class MissingError(CliError):
    """The object does not exist (404)."""


class NoSuchJobError(CliError):
    """The FineTuneJob does not exist; the message lists existing ones."""


class ForbiddenError(CliError):
    """The credentials do not permit the request (403)."""
