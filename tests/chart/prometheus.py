"""Runs the real Prometheus, which scrapes an operator that runs as a process."""

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from finetune_api.base import Object
from finetune_local.cluster import die_with_parent
from finetune_local.ports import free_port
from tests.installed import wait_for
from tests.tools.debian_tool import PROMETHEUS
from tests.tools.program import program


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of each series; AssertionError if the query is refused."""
        found = self._ask("query", query=expression)
        assert found["resultType"] == "vector", expression
        return [(one["metric"], float(one["value"][1])) for one in found["result"]]

    def rules(self) -> dict[str, Object]:
        """Return the state of each alert."""
        groups = self._ask("rules")["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    def targets(self) -> list[Object]:
        """Return the scrape targets."""
        found: list[Object] = self._ask("targets")["activeTargets"]
        return found

    def _ask(self, what: str, **query: str) -> Object:
        url = f"{self._address}/api/v1/{what}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                found: Object = json.load(answer)["data"]
                return found
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{query}: {error.read().decode()}") from None

    @property
    def ready(self) -> bool:
        """Return whether it has read its log and scrapes. Before, its API responds with 503."""
        try:
            urllib.request.urlopen(f"{self._address}/-/ready", timeout=10).close()
        except OSError:
            return False
        return bool(self.targets())


@contextmanager
def scraping(
    folder: Path, target: str, labels: dict[str, str], rules: Object
) -> Iterator[Prometheus]:
    """Run Prometheus with these rules. It scrapes every second, as the ServiceMonitor defines."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    scrape = {
        "job_name": "operator",
        "honor_labels": True,
        "static_configs": [{"targets": [target], "labels": labels}],
    }
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [scrape],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        str(program(PROMETHEUS)),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=die_with_parent)
    try:
        found = Prometheus(port)
        wait_for("Prometheus scrapes", lambda: found.ready, 30)
        yield found
    finally:
        process.terminate()
        process.wait(10)
