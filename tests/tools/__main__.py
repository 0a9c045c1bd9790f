"""Build every program that tests start: `make tools`."""

import sys

from finetune_local.build import BuildError
from tests.tools.interpreter import interpreter
from tests.tools.program import ALL

if __name__ == "__main__":
    try:
        for tool in ALL:
            tool.build()
    except BuildError as error:
        sys.exit(f"tools: {error}")
    try:
        interpreter()
    except BuildError as error:
        print(f"python: {error}", file=sys.stderr)  # hack/test.py decides whether it is needed
