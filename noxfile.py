"""Tests on every Python that pyproject.toml declares: `nox`, for those that this machine has.

The main suite runs on one Python, with all dependencies. These sessions run what the images'
interpreter executes without torch: the operator, its client of the API server, and the supervisor
in the pods of the trainer. `make test` runs the session of the images' interpreter.
"""

import nox

nox.needs_version = ">=2025.5"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True

_PROJECT = nox.project.load_toml("pyproject.toml")
_TESTS = [
    "tests/client",
    "tests/operator",
    # The supervisor, which never imports torch.
    "tests/trainer/test_state.py",
    "tests/trainer/test_stop_signal.py",
    "tests/trainer/test_watchdog.py",
]
_TOOLS = ("pytest", "hypothesis")
_SUPERVISOR = ("xxhash",)  # all that it imports of the trainer's packages


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """Run the tests without those that take minutes; arguments replace `-m "not slow"`."""
    extras = _PROJECT["project"]["optional-dependencies"]
    single = [line for line in extras["dev"] if line.startswith(_TOOLS)]
    single += [line for line in extras["trainer"] if line.startswith(_SUPERVISOR)]
    session.install("-e", ".[operator,cli,local]", *single)
    session.run("python", "-m", "pytest", "-q", *(session.posargs or ["-m", "not slow"]), *_TESTS)
