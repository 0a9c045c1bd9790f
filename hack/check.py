"""Run the fast tests in two processes: one imports torch, the other one uses the control plane."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
# Without a control plane. The suites take equally long with the others.
ALONE = ["tests/trainer", "tests/docs"]
_PYTEST = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]


def main(*options: str) -> int:
    """Run both with additional options for pytest.

    The output of the tests without a control plane is printed when the other process has ended.
    """
    with tempfile.TemporaryFile("w+") as output:
        alone = [*_PYTEST, *ALONE, *options]
        others = [*_PYTEST, "tests", *(f"--ignore={suite}" for suite in ALONE), *options]
        running = [
            subprocess.Popen(alone, cwd=TREE, stdout=output, stderr=output),
            subprocess.Popen(others, cwd=TREE),
        ]

        def interrupt(*_: object) -> None:
            for process in running:
                process.send_signal(signal.SIGINT)

        # Both stop what they started before they end. A terminal sends its ^C to them directly.
        signal.signal(signal.SIGTERM, interrupt)
        signal.signal(signal.SIGINT, lambda *_: None)
        for process in reversed(running):
            process.wait()
        output.seek(0)
        print(f"{', '.join(ALONE)}:", output.read(), sep="\n", end="", flush=True)
    return max(abs(process.returncode) for process in running)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
