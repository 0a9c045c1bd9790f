"""Build every program that tests start: `make tools`."""

import sys

from finetune_local.build import BuildError
from tests.tools.interpreter import interpreter
from tests.tools.program import ALL


def main() -> int:
    """Build all; return 0 on success, 1 after printing an error, 130 if interrupted."""
    try:
        for tool in ALL:
            tool.build()
    except BuildError as error:
        print(f"tools: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tools: interrupted; run the target again to continue", file=sys.stderr)
        return 130
    try:
        interpreter()
    except BuildError as error:
        print(f"python: {error}", file=sys.stderr)  # hack/test.py decides whether it is needed
    return 0


if __name__ == "__main__":
    sys.exit(main())
