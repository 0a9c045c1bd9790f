"""Print the requirements of a part of this project, one per line, for `pip install -r`.

Images install them before they copy the source, so that a changed line of code does not rebuild a
layer of gigabytes.
"""

import argparse
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def main() -> None:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = project["optional-dependencies"]
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("extra", choices=sorted(extras))
    print(*project["dependencies"], *extras[parser.parse_args().extra], sep="\n")


if __name__ == "__main__":
    main()
