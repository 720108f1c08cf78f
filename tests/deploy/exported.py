"""Names of the series that a live server exports, as Prometheus would store them."""

import re

from live_server import LiveServer
from prometheus_client.parser import text_string_to_metric_families

WORD = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
SELECTOR = re.compile(r"\{[^}]*\}")
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
RANGE = re.compile(r"\[[^\]]*\]")
PROMETHEUS_ITSELF = {"up"}


def series(server: LiveServer, **options: object) -> dict[str, set[str]]:
    """Labels by name of series, of everything that is on the page."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(server.get("/metrics", **options).text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def metrics_of(expression: str) -> set[str]:
    """The metrics that a PromQL expression reads: names that are followed by no parenthesis."""
    bare = QUOTED.sub('""', expression)
    bare = GROUPING.sub("", SELECTOR.sub("", RANGE.sub("", bare)))
    names = {match for match in WORD.finditer(bare) if not bare[match.end() :].lstrip().startswith("(")}
    keywords = {"and", "or", "unless", "bool", "offset", "le"}
    return {match.group() for match in names if match.group() not in keywords}


def labels_of(expression: str) -> set[str]:
    """Labels that it selects or groups by, apart from those that Prometheus adds."""
    bare = QUOTED.sub('""', expression)
    inside = [part.strip("{}") for part in SELECTOR.findall(bare)]
    names = {name for part in inside for name in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", part)}
    for group in re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", bare):
        names |= {name.strip() for name in group.split(",") if name.strip()}
    return names - {"instance", "job", "le"}
