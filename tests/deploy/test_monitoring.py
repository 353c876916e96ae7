"""The monitoring files and the page of metrics, against what a run exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from deployed import DEPLOY, ROOT, refuses_each_misspelt_key
from prometheus_client.core import CounterMetricFamily
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

from orchestrator.run_files.folder import RunFolder
from orchestrator.telemetry.exported import EXPORTED

MONITORING = DEPLOY / "monitoring"
PAGE = (ROOT / "docs" / "deploy.md").read_text()
BOARD = json.loads((MONITORING / "grafana.json").read_text())
LABELS = {metric.name: {"run", *metric.labels} for metric in EXPORTED}
TEXT, COUNT, YES_OR_NO = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}


def strict(**fields: Any) -> dict[str, Any]:
    """An object with these fields; those whose name ends in _ may be absent."""
    properties = {name.rstrip("_"): value for name, value in fields.items()}
    required = [name for name in fields if not name.endswith("_")]
    return {"type": "object", "properties": properties, "required": required,
            "additionalProperties": False}  # fmt: skip


SOURCE = strict(type={"const": "prometheus"}, uid={"const": "${datasource}"})
DEFAULTS = strict(
    unit={"enum": ["short", "s", "percentunit"]},
    min={"type": "number"},
    decimals_=COUNT,
    custom_=strict(
        lineWidth=COUNT,
        fillOpacity=COUNT,
        showPoints={"enum": ["auto", "never", "always"]},
        spanNulls=YES_OR_NO,
        stacking=strict(mode={"enum": ["none", "normal", "percent"]}, group=TEXT),
    ),
)
LINES = strict(
    legend=strict(
        displayMode={"enum": ["list", "table", "hidden"]},
        placement={"enum": ["bottom", "right"]},
        showLegend=YES_OR_NO,
    ),
    tooltip=strict(
        mode={"enum": ["single", "multi", "none"]}, sort={"enum": ["none", "asc", "desc"]}
    ),
)
NUMBERS = strict(
    reduceOptions=strict(calcs={"const": ["lastNotNull"]}, fields=TEXT, values=YES_OR_NO),
    colorMode={"enum": ["none", "value", "background"]},
    graphMode={"enum": ["none", "area"]},
    textMode={"enum": ["auto", "value", "name", "value_and_name", "none"]},
)
PANEL = strict(
    id={"type": "integer", "minimum": 1},
    type={"enum": ["stat", "timeseries"]},
    title={"type": "string", "minLength": 1},
    description={"type": "string", "minLength": 1},
    datasource=SOURCE,
    gridPos=strict(x=COUNT, y=COUNT, w={"type": "integer", "minimum": 1, "maximum": 24}, h=COUNT),
    fieldConfig=strict(defaults=DEFAULTS, overrides={"const": []}),
    options={"anyOf": [LINES, NUMBERS]},
    targets={
        "type": "array",
        "minItems": 1,
        "items": strict(refId=TEXT, datasource=SOURCE, expr=TEXT, legendFormat=TEXT),
    },
)
VARIABLE = strict(
    name=TEXT, label=TEXT, type={"enum": ["datasource", "query"]}, query={}, datasource_=SOURCE,
    definition_=TEXT, refresh_=COUNT, sort_=COUNT, multi_=YES_OR_NO, includeAll_=YES_OR_NO,
    allValue_=TEXT, current_={},
)  # fmt: skip
DASHBOARD = jsonschema.Draft202012Validator(
    strict(
        title=TEXT, uid=TEXT, description=TEXT, tags={"type": "array", "items": TEXT},
        schemaVersion={"const": 39}, editable=YES_OR_NO, refresh=TEXT,
        time=strict(**{"from": TEXT, "to": TEXT}),
        templating=strict(list={"type": "array", "items": VARIABLE}),
        annotations=strict(list={"const": []}), panels={"type": "array", "items": PANEL},
    )
)  # fmt: skip


def targets() -> Iterator[tuple[dict[str, Any], str, str]]:
    """Panel, expression and legend of every query."""
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            yield panel, target["expr"], target["legendFormat"]


def names(text: str) -> set[str]:
    return set(re.findall(r"rehearsal_[a-z_]+", text))


def test_the_dashboard_has_no_key_that_grafana_would_ignore() -> None:
    free = {"query", "current"}
    checked = refuses_each_misspelt_key(
        DASHBOARD.validate, BOARD, (jsonschema.ValidationError,), free
    )
    assert checked > 200
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_panels_fill_the_grid_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"])
                 for y in range(at["y"], at["y"] + at["h"])}  # fmt: skip
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len(taken) == 24 * (1 + max(y for _, y in taken))


def test_every_query_is_of_metrics_that_a_run_exports_and_all_are_shown() -> None:
    shown: set[str] = set()
    for panel, expression, legend in targets():
        found = names(expression)
        assert found, panel["title"]
        assert found <= set(LABELS), panel["title"]
        shown |= found
        # Each selector is of the chosen runs, and each label exists on the metric.
        selectors = re.findall(r"(rehearsal_[a-z_]+)\{([^}]*)\}", expression)
        assert [name for name, _ in selectors] == re.findall(r"rehearsal_[a-z_]+", expression)
        assert {inside for _, inside in selectors} == {'run=~"$run"'}
        used = set(re.findall(r"\{\{(\w+)\}\}", legend))
        assert all(used <= LABELS[name] for name in found), panel["title"]
        for group in re.findall(r"by \(([^)]*)\)", expression):
            assert used <= {each.strip() for each in group.split(",")}
        counted = set(re.findall(r"(?:rate|increase)\((rehearsal_[a-z_]+)", expression))
        assert all(name.endswith("_total") for name in counted)
        assert expression.count("(") == expression.count(")")
    assert shown == set(LABELS)


def test_units_of_panels_are_those_of_their_metrics() -> None:
    units = {metric.name: metric.unit for metric in EXPORTED}
    for panel, expression, _ in targets():
        expected = {"s": "s", "ratio": "percentunit"}
        found = {expected.get(units[name], "short") for name in names(expression)}
        assert found == {panel["fieldConfig"]["defaults"]["unit"]}, panel["title"]


def test_the_dashboard_offers_the_runs_that_are_there() -> None:
    source, run = BOARD["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource",) * 2 + (
        "prometheus",
    )
    assert run["name"] == "run"
    [(metric, label)] = re.findall(r"label_values\((\w+), (\w+)\)", run["definition"])
    assert run["query"]["query"] == run["definition"]
    assert label in LABELS[metric]


def test_the_page_has_every_metric_with_its_unit_and_labels() -> None:
    rows = re.findall(r"^\| `(rehearsal_\w+)` \| (\S+) \| (\S.*?) \| (.+) \|$", PAGE, flags=re.M)
    assert rows == [
        (metric.name, metric.unit, ", ".join(metric.labels) or "-", metric.meaning)
        for metric in EXPORTED
    ]
    assert names(PAGE) == set(LABELS)


def test_the_page_explains_the_reasons_of_drops() -> None:
    from orchestrator.stages.ppo.ledger import Cause

    for cause in Cause:
        assert f"`{cause.value}`" in PAGE


def test_prometheus_takes_the_configuration_and_looks_where_a_run_writes() -> None:
    given = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    found = strict(
        scrape_configs={
            "type": "array",
            "items": strict(
                job_name=TEXT,
                scrape_interval={"type": "string", "pattern": r"^\d+s$"},
                file_sd_configs={
                    "type": "array",
                    "items": strict(
                        # Prometheus' rule: one * at most, and in the last part of the path.
                        files={"type": "array", "items": {
                            "type": "string", "pattern": r"^[^*]*(\*[^/]*)?\.(json|ya?ml)$"}},
                        refresh_interval={"type": "string", "pattern": r"^\d+s$"},
                    ),
                },
            ),
        }
    )  # fmt: skip
    check = jsonschema.Draft202012Validator(found).validate
    refuses_each_misspelt_key(check, given, (jsonschema.ValidationError,), set())
    files = [path for job in given["scrape_configs"] for each in job["file_sd_configs"]
             for path in each["files"]]  # fmt: skip
    assert [path.rpartition("/")[2] for path in files] == [
        RunFolder(ROOT).prometheus.name,
        PROMETHEUS_SERVICE_DISCOVERY_FILE,
    ]


@pytest.mark.parametrize("metric", [m for m in EXPORTED if m.counts], ids=lambda m: m.name)
def test_a_counter_keeps_the_name_that_the_page_has(metric: Any) -> None:
    family = CounterMetricFamily(metric.name, "", labels=("run", *metric.labels))
    family.add_metric(["x"] * (1 + len(metric.labels)), 1.0)
    assert [sample.name for sample in family.samples] == [metric.name]
