"""Ends the process if this Python is too old. Python 2.7 can parse this file."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    this = sys.executable + " is " + sys.version.split()[0]
    sys.stderr.write("Python 3.11 or newer is needed; " + this + ". ")
    sys.stderr.write("Choose another one: make PYTHON=python3.12 ...\n")
    sys.exit(1)
