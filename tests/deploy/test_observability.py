"""Dashboard and alert rules against the /metrics page of a live server: no panel and no rule may ask for what is not
there."""

import json
import re
from pathlib import Path

import pytest
import yaml
from exported import PROMETHEUS_ITSELF, labels_of, metrics_of, series
from live_server import live_server

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deploy" / "helm" / "decoding-server" / "files"
DASHBOARD = json.loads((FILES / "dashboard.json").read_text())
RULES = [rule for group in yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [
    *((panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]),
    *((rule["alert"], rule["expr"]) for rule in RULES),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """After one request of each kind that has series of its own."""
    keys = tmp_path_factory.mktemp("keys") / "keys.yaml"
    keys.write_text("- {name: a, key: k}\n")
    header = {"authorization": "Bearer k"}
    with live_server({"api_key_file": str(keys)}) as server:
        drafts = {"decoding": {"speculation": {"type": "ngram", "length": 2}}}
        bodies = ({"prompt": "ababababab|"}, {"prompt": "ababababab|", **drafts}, {"prompt": "a|", "temperature": -1})
        statuses = [server.post("/v1/completions", body, headers=header).status_code for body in bodies]
        assert statuses == [200, 200, 400]
        yield series(server, headers=header)


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS, ids=[title for title, _ in EXPRESSIONS])
def test_expressions_ask_for_series_and_labels_that_exist(exported, title, expression):
    names = metrics_of(expression)
    assert names
    for name in names - PROMETHEUS_ITSELF:
        assert name in exported, f"{title}: the server has no series {name}"
    known = set().union(*(exported.get(name, set()) for name in names))
    assert labels_of(expression) <= known, f"{title}: {labels_of(expression) - known}"


def test_names_are_found_in_expressions():
    """Else the test above would pass for anything."""
    expression = 'histogram_quantile(0.5, sum by (le, a) (rate(x_bucket{s=~"$s", t="y(z)"}[5m]))) > 2 and q:r unless up'
    assert metrics_of(expression) == {"x_bucket", "q:r", "up"}
    assert labels_of(expression) == {"a", "s", "t"}


def test_the_dashboard_is_whole():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    places = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & places, f"{panel['title']} lies over another panel"
        places |= cells
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            used = set(re.findall(r"\$\{?(\w+)", target["expr"]))
            assert used <= variables | {"__rate_interval"}, target["expr"]


def test_every_alert_has_a_summary_a_severity_and_an_entry_in_the_runbook():
    runbook = (ROOT / "docs" / "operations.md").read_text()
    for rule in RULES:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert page == "docs/operations.md"
        assert anchor == rule["alert"].lower()
        assert f"### {rule['alert']}\n" in runbook


def test_rules_are_valid_and_fire_when_they_should(tool):
    assert "SUCCESS" in tool("promtool", "check", "rules", FILES / "alerts.yaml")
    tested = yaml.safe_load((FILES / "alerts_test.yaml").read_text())["tests"]
    fired = {case["alertname"] for test in tested for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in RULES}
    assert "SUCCESS" in tool("promtool", "test", "rules", "alerts_test.yaml", cwd=FILES)


def test_the_configuration_of_prometheus(tool, tmp_path):
    for source in (ROOT / "deploy" / "prometheus" / "prometheus.yml", FILES / "alerts.yaml"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    assert "is valid" in tool("promtool", "check", "config", tmp_path / "prometheus.yml")
