"""Write the chart's dashboard for Grafana.

`make crds` runs it; tests/chart/test_generated.py finds what was not written again.
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
_LOOKS = "finetune_operator_reconcile_duration_seconds"


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str  # Grafana's name of it
    about: str
    series: dict[str, str]  # legend -> expression
    stacked: bool = False
    table: bool = False


def chosen(metric: str, more: str = "") -> str:
    """Of the jobs that the variables of the dashboard name."""
    return f'{metric}{{namespace=~"$namespace", name=~"$name"{more}}}'


def of_jobs(metric: str, *labels: str, more: str = "") -> str:
    """A job's series as one, whoever led when they were scraped; these labels are kept too."""
    kept = ", ".join(("namespace", "name", *labels))
    return f"max by ({kept}) ({chosen(metric, more)})"


def rate(metric: str, *labels: str) -> str:
    return f"sum by ({', '.join(labels)}) (rate({metric}[$__rate_interval]))"


_DEVICES = of_jobs("finetune_job_device_seconds", "kind")
_LOST = of_jobs("finetune_job_device_seconds", more=', kind="lost"')
# As in the alert FineTuneJobCheckpointTooOld: only a job that runs has the second one.
_SAVED = chosen("finetune_job_checkpoint_timestamp_seconds")
_RUNNING = chosen("finetune_job_running_timestamp_seconds")

JOBS = [
    Panel(
        "Jobs by phase",
        "short",
        "How many jobs are in each phase.",
        {"{{phase}}": f"sum by (phase) ({of_jobs('finetune_job_phase', 'phase')})"},
        stacked=True,
    ),
    Panel(
        "Phase of each job",
        "short",
        "As it is now.",
        {_NAME: of_jobs("finetune_job_phase", "phase")},
        table=True,
    ),
    Panel(
        "Progress",
        "percentunit",
        "Finished optimizer steps of all steps of the run.",
        {_NAME: of_jobs("finetune_job_progress_ratio")},
    ),
    Panel(
        "Tokens per second",
        "short",
        "Packed tokens of all devices, mean over the last minute of steps.",
        {_NAME: of_jobs("finetune_job_tokens_per_second")},
    ),
    Panel(
        "MFU",
        "percentunit",
        "Model FLOPs utilisation; none where the peak of the devices is not known.",
        {_NAME: of_jobs("finetune_job_mfu_ratio")},
    ),
    Panel(
        "Age of the newest checkpoint",
        "s",
        "What a crash would cost now. Of running jobs; without a checkpoint, since they run.",
        {_NAME: f"time() - max by (namespace, name) ({_SAVED} > {_RUNNING} or {_RUNNING})"},
    ),
    Panel(
        "Device hours by kind",
        "h",
        "Productive: steps that were new. Lost: steps done before. Overhead: the rest.",
        {"{{kind}}": f"sum by (kind) ({_DEVICES}) / 3600"},
        stacked=True,
    ),
    Panel(
        "Share of device time lost",
        "percentunit",
        "By each job, to steps that an earlier attempt had done.",
        {_NAME: f"{_LOST} / sum by (namespace, name) ({_DEVICES})"},
    ),
    Panel(
        "Restarts by cause",
        "short",
        "Of all jobs that exist.",
        {"{{cause}}": f"sum by (cause) ({of_jobs('finetune_job_restarts_by_cause', 'cause')})"},
        stacked=True,
    ),
    Panel(
        "Restarts in the last hour",
        "short",
        "Three and more are an alert.",
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
        "1 for the replica that acts.",
        {"{{instance}}": "finetune_operator_leading"},
    ),
    Panel(
        "Time left of the Lease",
        "s",
        "With less than 5 s the replica that acts ends.",
        {"{{instance}}": "finetune_operator_lease_remaining_seconds"},
    ),
    Panel(
        "Jobs that wait to be looked at",
        "short",
        "Depth of the work queue; that of a standby holds every job.",
        {"{{instance}}": "finetune_operator_workqueue_depth"},
    ),
    Panel(
        "Time of a look at a job",
        "s",
        "Median, 99th percentile, and the longest look that goes on.",
        {
            "median": f"histogram_quantile(0.5, {rate(f'{_LOOKS}_bucket', 'le')})",
            "99th percentile": f"histogram_quantile(0.99, {rate(f'{_LOOKS}_bucket', 'le')})",
            "going on": "max(finetune_operator_workqueue_longest_running_seconds)",
        },
    ),
    Panel(
        "Looks per second",
        "ops",
        "Those with the result retry failed, and are repeated.",
        {"{{result}}": rate(f"{_LOOKS}_count", "result")},
    ),
    Panel(
        "Requests to the API server",
        "reqps",
        "By verb and HTTP status code; none: no answer came.",
        {"{{verb}} {{code}}": rate("finetune_operator_api_requests_total", "verb", "code")},
    ),
    Panel(
        "Statuses written",
        "wps",
        "By what was new in them.",
        {"{{what}}": rate("finetune_operator_status_writes_total", "what")},
    ),
    Panel(
        "Memory of the operator",
        "bytes",
        "Resident.",
        {
            "{{instance}}": "process_resident_memory_bytes "
            "and on (namespace, instance) finetune_operator_leading"
        },
    ),
]


def text() -> str:
    """What the file must hold."""
    made = (
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
        made.with_row(dashboard.Row(title).id(number))
        for panel in panels:
            number += 1
            made.with_panel(_table(panel, number) if panel.table else _graph(panel, number))
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


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
    made = _placed(timeseries.Panel(), panel, number).unit(panel.unit).min(0).legend(legend)
    if panel.stacked:
        made.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(30)
    for letter, (legend, expression) in zip("ABC", panel.series.items(), strict=False):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).range()
        made.with_target(query.ref_id(letter).datasource(_SOURCE))
    return made


def _table(panel: Panel, number: int) -> table.Panel:
    ((legend, expression),) = panel.series.items()
    query = prometheus.Dataquery().expr(expression).legend_format(legend).instant()
    hidden = {"excludeByName": {"Time": True, "Value": True}}
    return (
        _placed(table.Panel(), panel, number)
        .with_target(query.ref_id("A").datasource(_SOURCE).format(PromQueryFormat.TABLE))
        .with_transformation(DataTransformerConfig(id_val="organize", options=hidden))
    )


def _placed(made, panel: Panel, number: int):
    made = made.id(number).title(panel.title).description(panel.about)
    return made.datasource(_SOURCE).height(8).span(8)


if __name__ == "__main__":
    (Path(__file__).resolve().parent.parent / PATH).write_text(text())
