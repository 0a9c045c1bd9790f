"""Write the chart's dashboard for Grafana.

`make crds` runs this script; tests/chart/test_generated.py fails if the file is out of date.
"""

from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, StackingMode
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

PATH = Path("charts") / "finetune-operator" / "files" / "dashboard.json"
_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_NAME = "{{namespace}}/{{name}}"
_RECONCILE = "finetune_operator_reconcile_duration_seconds"


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str  # by Grafana's name
    description: str
    series: dict[str, str]  # legend -> expression
    stacked: bool = False
    table: bool = False


def selected(metric: str, more: str = "") -> str:
    """Return the series of the jobs that the variables of the dashboard select."""
    return f'{metric}{{namespace=~"$namespace", name=~"$name"{more}}}'


def of_jobs(metric: str, *labels: str, more: str = "") -> str:
    """Return one series per job, whichever replica exported it, with additional labels kept."""
    kept = ", ".join(("namespace", "name", *labels))
    return f"max by ({kept}) ({selected(metric, more)})"


def rate(metric: str, *labels: str) -> str:
    return f"sum by ({', '.join(labels)}) (rate({metric}[$__rate_interval]))"


_DEVICES = of_jobs("finetune_job_device_seconds", "kind")
_LOST = of_jobs("finetune_job_device_seconds", more=', kind="lost"')
_NEWEST, _BASELINE = (
    of_jobs("finetune_job_validation_loss", more=f', which="{which}"')
    for which in ("last", "baseline")
)
# As in the alert FineTuneJobCheckpointTooOld. Only a running job has the second series.
_SAVED = selected("finetune_job_checkpoint_timestamp_seconds")
_RUNNING = selected("finetune_job_running_timestamp_seconds")

JOBS = [
    Panel(
        "Jobs by phase",
        "short",
        "Number of jobs in each phase.",
        {"{{phase}}": f"sum by (phase) ({of_jobs('finetune_job_phase', 'phase')})"},
        stacked=True,
    ),
    Panel(
        "Phase of each job",
        "short",
        "The current phase of each job.",
        {_NAME: of_jobs("finetune_job_phase", "phase")},
        table=True,
    ),
    Panel(
        "Progress",
        "percentunit",
        "Finished optimizer steps divided by all steps of the run.",
        {_NAME: of_jobs("finetune_job_progress_ratio")},
    ),
    Panel(
        "Training loss",
        "none",
        "Loss of the newest step in nats per trained token.",
        {_NAME: of_jobs("finetune_job_train_loss")},
    ),
    Panel(
        "Validation loss",
        "none",
        "Newest validation loss in nats per trained token. It is measured before training, too.",
        {_NAME: f"{_NEWEST} or {_BASELINE}"},
    ),
    Panel(
        "Learning rate",
        "sci",
        "Learning rate of the newest step.",
        {_NAME: of_jobs("finetune_job_learning_rate")},
    ),
    Panel(
        "Gradient norm",
        "none",
        "L2 norm of the gradients of the newest step, before clipping.",
        {_NAME: of_jobs("finetune_job_gradient_norm")},
    ),
    Panel(
        "Tokens per second",
        "short",
        "Packed tokens on all devices, averaged over the steps of the last minute.",
        {_NAME: of_jobs("finetune_job_tokens_per_second")},
    ),
    Panel(
        "MFU",
        "percentunit",
        "Model FLOPs utilization. Devices whose peak is unknown have none.",
        {_NAME: of_jobs("finetune_job_mfu_ratio")},
    ),
    Panel(
        "Age of the newest checkpoint",
        "s",
        "Training time that a failure of a running job would lose.",
        {_NAME: f"time() - max by (namespace, name) ({_SAVED} > {_RUNNING} or {_RUNNING})"},
    ),
    Panel(
        "Device hours by kind",
        "h",
        "Productive: new steps. Lost: steps that were finished before. Overhead: the rest.",
        {"{{kind}}": f"sum by (kind) ({_DEVICES}) / 3600"},
        stacked=True,
    ),
    Panel(
        "Share of device time lost",
        "percentunit",
        "Share of each job's device time for steps that an earlier attempt had finished.",
        {_NAME: f"{_LOST} / sum by (namespace, name) ({_DEVICES})"},
    ),
    Panel(
        "Restarts by cause",
        "short",
        "Restarts of all existing jobs.",
        {"{{cause}}": f"sum by (cause) ({of_jobs('finetune_job_restarts_by_cause', 'cause')})"},
        stacked=True,
    ),
    Panel(
        "Restarts in the last hour",
        "short",
        "Three or more trigger an alert.",
        {
            _NAME: "max by (namespace, name) (increase("
            'finetune_job_restarts_total{namespace=~"$namespace", name=~"$name"}[1h]))'
        },
    ),
]
OPERATOR = [
    Panel(
        "Leading",
        "short",
        "1 for the leader, 0 for all other replicas.",
        {"{{instance}}": "finetune_operator_leading"},
    ),
    Panel(
        "Remaining time of the Lease",
        "s",
        "A leader with less than 5 s left terminates.",
        {"{{instance}}": "finetune_operator_lease_remaining_seconds"},
    ),
    Panel(
        "Jobs waiting for reconciliation",
        "short",
        "Depth of the work queue. The queue of a standby contains every job.",
        {"{{instance}}": "finetune_operator_workqueue_depth"},
    ),
    Panel(
        "Duration of a reconciliation",
        "s",
        "Median, 99th percentile, and the longest one in progress.",
        {
            "median": f"histogram_quantile(0.5, {rate(f'{_RECONCILE}_bucket', 'le')})",
            "99th percentile": f"histogram_quantile(0.99, {rate(f'{_RECONCILE}_bucket', 'le')})",
            "in progress": "max(finetune_operator_workqueue_longest_running_seconds)",
        },
    ),
    Panel(
        "Reconciliations per second",
        "ops",
        "Those with the result retry failed and are repeated.",
        {"{{result}}": rate(f"{_RECONCILE}_count", "result")},
    ),
    Panel(
        "Requests to the API server",
        "reqps",
        "By verb and HTTP status code. The code none means that there was no response.",
        {"{{verb}} {{code}}": rate("finetune_operator_api_requests_total", "verb", "code")},
    ),
    Panel(
        "Status writes",
        "wps",
        "By what changed in the status.",
        {"{{what}}": rate("finetune_operator_status_writes_total", "what")},
    ),
    Panel(
        "Memory of the operator",
        "bytes",
        "Resident memory.",
        {
            "{{instance}}": "process_resident_memory_bytes "
            "and on (namespace, instance) finetune_operator_leading"
        },
    ),
]


def text() -> str:
    """Return the contents of the file."""
    board = (
        dashboard.Dashboard("FineTuneJobs")
        .uid("finetune-operator")
        .description("Written by `make crds` from hack/dashboard.py; do not edit.")
        .tags(["finetune-operator"])
        .time("now-6h", "now")
        .refresh("30s")
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(_variable("namespace", "finetune_job_phase"))
        .with_variable(_variable("name", 'finetune_job_phase{namespace=~"$namespace"}'))
    )
    number = 0
    for title, panels in (("Jobs", JOBS), ("Operator", OPERATOR)):
        number += 1
        board.with_row(dashboard.Row(title).id(number))
        for panel in panels:
            number += 1
            board.with_panel(_table(panel, number) if panel.table else _graph(panel, number))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def _variable(name: str, metric: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(_SOURCE)
        .query(f"label_values({metric}, {name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _graph(panel: Panel, number: int) -> timeseries.Panel:
    legend = common.VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST)
    board = _place(timeseries.Panel(), panel, number).unit(panel.unit).min(0).legend(legend)
    if panel.stacked:
        board.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(30)
    for letter, (legend, expression) in zip("ABC", panel.series.items(), strict=False):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).range()
        board.with_target(query.ref_id(letter).datasource(_SOURCE))
    return board


def _table(panel: Panel, number: int) -> table.Panel:
    ((legend, expression),) = panel.series.items()
    query = prometheus.Dataquery().expr(expression).legend_format(legend).instant()
    hidden = {"excludeByName": {"Time": True, "Value": True}}
    return (
        _place(table.Panel(), panel, number)
        .with_target(query.ref_id("A").datasource(_SOURCE).format(PromQueryFormat.TABLE))
        .with_transformation(DataTransformerConfig(id_val="organize", options=hidden))
    )


def _place(board, panel: Panel, number: int):
    board = board.id(number).title(panel.title).description(panel.description)
    return board.datasource(_SOURCE).height(8).span(8)


if __name__ == "__main__":
    (Path(__file__).resolve().parent.parent / PATH).write_text(text())
