"""Create .venv with everything that the other targets need. Python 2.7 can parse this file."""

import sys

sys.dont_write_bytecode = True  # Python 2.7 would write it beside the sources
import python_version  # noqa: E402, F401 - ends the process if this Python is too old

# isort: split
import environment  # noqa: E402

sys.exit(environment.main())
