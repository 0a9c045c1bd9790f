"""Evaluates every expression of the dashboard and the alerts on the metrics of a real operator.

A job on the real API server is prepared, gets a gang that crashes, and a second one that reports
progress.
"""

import json
import math
import os
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from finetune_api.names import REPORT_PORT
from finetune_api.progress import Evaluation, Progress, StepLedger
from finetune_local.cache import TREE
from finetune_local.cluster import Cluster
from finetune_local.ports import free_port
from tests.chart.prometheus import Prometheus, scraping
from tests.chart.test_alerts import rules
from tests.installed import Operator, install, ready, status, wait_for
from tests.operator.kubelet import Kubelet, names
from tests.operator.test_live import CLAIM, apply
from tests.operator.worlds import checkpoint, prepared, progressed, report, result

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NAME = "scraped"
POD = f"127.88.{os.getpid() % 250}.1"
NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "scraped-node"}}
SERVICE = {"namespace": "finetune-system", "service": "finetune-operator-metrics"}
DASHBOARD = json.loads(
    (TREE / "charts" / "finetune-operator" / "files" / "dashboard.json").read_text()
)
VARIABLES = {"$namespace": ".*", "$name": ".*", "$__rate_interval": "10s"}
EXPRESSIONS = {
    f"{panel['title']}: {target.get('legendFormat', '')}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
}


class Worker:
    """The report server of worker 0, which has finished one more step at each request."""

    def __init__(self, uid: str) -> None:
        self._uid, self.attempt, self._step = uid, 1, 20
        worker = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = worker.report().encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((POD, REPORT_PORT), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def report(self) -> str:
        self._step += 1
        progress = Progress(
            step=self._step,
            total_steps=1000,
            tokens_per_second=15800.5,
            mfu=0.47,
            train_loss=1.7,
            learning_rate=9e-6,
            grad_norm=0.8,
            last_update_time=datetime.now(UTC),
        )
        ledger = StepLedger(productive_seconds=0.5, redone_seconds=0.5, highest_step=self._step)
        return report(
            job_uid=self._uid,
            attempt=self.attempt,
            sequence=self._step,
            progress=progress,
            ledger=ledger,
            evaluation=Evaluation(baseline=2.5, best=2.5, best_step=0),
            checkpoints=[checkpoint(20)],
        ).to_json()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def api(control_plane: Cluster) -> Cluster:
    install(control_plane)
    control_plane.kubectl("apply", "-f", "-", stdin=CLAIM)
    return control_plane


@pytest.fixture(scope="module")
def scraped(api: Cluster, helm, tmp_path_factory) -> Iterator[Prometheus]:
    """Prometheus, which scrapes a leading operator whose only job runs for the second time."""
    folder, port = tmp_path_factory.mktemp("scraped"), free_port()
    lease = {"LEASE_NAMESPACE": "finetune-system", "LEASE_NAME": "finetune-operator"}
    operator = Operator(api, folder / "operator.log", HEALTH_PORT=str(port), **lease)
    operator.start()
    try:
        wait_for("ready", lambda: "leading as" in ready(port), 60)
        with scraping(folder, f"127.0.0.1:{port}", SERVICE, rules(helm)) as prometheus:
            yield from _with_a_job(api, prometheus)
        assert operator.stop() == 0, operator.log
    finally:
        operator.kill()


def _with_a_job(api: Cluster, prometheus: Prometheus) -> Iterator[Prometheus]:
    kubelet = Kubelet(api)
    api.kubectl("create", "-f", "-", stdin=json.dumps(NODE))
    apply(api, NAME)
    worker = Worker(json.loads(api.kubectl("get", "ftj", NAME, "-o", "json"))["metadata"]["uid"])
    try:
        wait_for("prepare pod", lambda: f"{NAME}-prepare" in names(api, NAME))
        kubelet.run(f"{NAME}-prepare")
        kubelet.end(f"{NAME}-prepare", 0, result(prepared=prepared()))
        _gang(api, kubelet, 1)
        lost = result("Failed", reason="PeerLost", **progressed(20, saved=10))
        kubelet.end(f"{NAME}-1-0", 88, lost)
        kubelet.end(f"{NAME}-1-1", 137)
        worker.attempt = 2
        _gang(api, kubelet, 2)
        yield prometheus
    finally:
        worker.close()
        api.kubectl("delete", "ftj", NAME, "--ignore-not-found")
        # No kubelet reports that they are gone.
        own = ("--selector", f"finetune.dev/job-name={NAME}", "--force", "--grace-period=0")
        api.kubectl("delete", "pods", *own)
        api.kubectl("delete", "node", NODE["metadata"]["name"])


def _gang(api: Cluster, kubelet: Kubelet, attempt: int) -> None:
    workers = {f"{NAME}-{attempt}-{index}" for index in (0, 1)}
    wait_for(f"attempt {attempt}", lambda: workers <= names(api, NAME))
    for worker in workers:
        kubelet.bind(worker, NODE["metadata"]["name"])
        kubelet.run(worker, POD)
    wait_for("Running", lambda: status(api, NAME).get("phase") == "Running")


def _has_data(prometheus: Prometheus, expression: str) -> None:
    """Wait until the expression has finite values."""

    def numbers() -> bool:
        found = [value for _, value in prometheus.query(expression)]
        return bool(found) and all(map(math.isfinite, found))

    wait_for(f"data for {expression}", numbers, 40)


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS.keys())
def test_every_panel_has_data(scraped: Prometheus, expression: str):
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    _has_data(scraped, expression)


def test_the_variables_of_the_dashboard_find_the_job(scraped: Prometheus):
    for variable in DASHBOARD["templating"]["list"]:
        if asked := re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]):
            expression = asked[1].replace("$namespace", "default")
            assert [labels[asked[2]] for labels, _ in scraped.query(expression)]


def test_every_alert_has_data_to_evaluate(scraped: Prometheus, helm):
    for group in rules(helm)["groups"]:
        for rule in group["rules"]:
            # With bool, the comparison returns every series with 0 or 1 instead of filtering them.
            judged = re.sub(r"(>=|>|==) (?=\d)", r"\1 bool ", rule["expr"])
            assert judged != rule["expr"]
            _has_data(scraped, judged)


def test_a_healthy_job_raises_no_alert(scraped: Prometheus):
    def evaluated() -> dict:
        found = scraped.rules()
        return found if all(rule["health"] == "ok" for rule in found.values()) else {}

    for name, rule in wait_for("rules are evaluated", evaluated, 20).items():
        assert rule["state"] == "inactive", name


def test_metrics_agree_with_the_status(scraped: Prometheus, api: Cluster):
    job = f'{{namespace="default", name="{NAME}"}}'
    ((phase, _),) = scraped.query(f"finetune_job_phase{job}")
    assert phase["phase"] == "Running"
    ((_, speed),) = scraped.query(f"finetune_job_tokens_per_second{job}")
    assert speed == 15800.5
    ((cause, count),) = scraped.query(f"finetune_job_restarts_by_cause{job}")
    assert (cause["cause"], count) == ("Crashed", 1)
    ((_, checkpoint_time),) = scraped.query(f"finetune_job_checkpoint_timestamp_seconds{job}")
    newest = status(api, NAME)["latestCheckpoint"]["creationTime"]
    assert checkpoint_time == datetime.fromisoformat(newest).timestamp()
    ((target, leads),) = scraped.query("finetune_operator_leading")
    assert (target["service"], leads) == (SERVICE["service"], 1)


def test_series_end_with_the_job(scraped: Prometheus, api: Cluster):
    everything = f'{{__name__=~"finetune_job_.*", name="{NAME}"}}'
    assert len(scraped.query(everything)) <= 25
    api.kubectl("delete", "ftj", NAME)
    wait_for("no series", lambda: not scraped.query(everything), 20)
    time.sleep(2)
    assert not scraped.query(everything)
