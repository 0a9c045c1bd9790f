"""Writes the renderings of the chart for several sets of values to golden/: `make golden`.

A rendering contains the objects and the notes that Helm prints after the installation. It leaves
out the CustomResourceDefinition and the dashboard, which test_generated.py compares with their
sources.
"""

import tempfile
from pathlib import Path

from tests.chart.helm import CHART, EXAMPLES, Helm

GOLDEN = Path(__file__).parent / "golden"
EVERYTHING = Path(__file__).parent / "everything.yaml"
VALUES: dict[str, tuple[object, ...]] = {
    "default": (),
    "everything": ("--values", EVERYTHING),
    **{file.stem: ("--values", file) for file in EXAMPLES},
}
FILES = [f"{name}{suffix}" for name in VALUES for suffix in (".yaml", ".txt")]


def render(helm: Helm, file: str) -> str:
    """Return the expected contents of a file of golden/."""
    values = VALUES[Path(file).stem]
    if file.endswith(".yaml"):
        elsewhere = "crds.enabled=false,metrics.dashboard.enabled=false"
        return helm.template(*values, "--set", elsewhere)
    where = ("--namespace", "finetune-system", "--dry-run=client")
    return helm("install", "finetune-operator", CHART, *where, *values).partition("NOTES:\n")[2]


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        for name in FILES:
            (GOLDEN / name).write_text(render(Helm(Path(home)), name))
