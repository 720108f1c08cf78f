"""What is compared: searches by a preset's name or as a request would write them, filled in for each task."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from decoding_server.bench.code.tasks import CodeTask
from strategies import registry
from strategies.errors import InvalidRequest
from strategies.search.coding_search import CodingSearch
from strategies.search.search import Search

PRESETS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "greedy": {"type": "code-greedy"},
    "best-of-n": {"type": "code-best-of-n"},
    "line": {"type": "code-line"},
    "tree": {"type": "code-tree"},
    "sfs": {"type": "scattered-forest"},
}
"""plain: the task as an ordinary request, greedy; greedy: the same in the searches' own words."""

TestsFrom = Literal["given", "generated"]


@dataclass(frozen=True, slots=True)
class VisibleTests:
    """Which tests a search sees.

    given: the examples in the prompt and the first `visible` asserts of the data set; the model writes `wanted` where
    there are neither. generated: the model writes all, the examples in the prompt are no tests.
    """

    source: TestsFrom = "given"
    visible: int = 0
    wanted: int = 6


@dataclass(frozen=True, slots=True)
class Contender:
    """search: `decoding.search` as given, None for plain decoding."""

    name: str
    search: Mapping[str, Any] | None = field(default=None)

    @property
    def kind(self) -> type[Search] | None:
        """Raises InvalidRequest for an unknown type."""
        if self.search is None:
            return None
        found: type[Search] = registry.find("search", str(self.search.get("type")), "strategy")
        return found

    def body(self, task: CodeTask, rules: VisibleTests, k: int) -> dict[str, Any] | None:
        """`decoding.search` for a task. What was given explicitly stays, but for the form of the reply."""
        kind = self.kind
        if self.search is None or kind is None:
            return None
        if not issubclass(kind, CodingSearch):
            return {**self.search, "trace": "summary"}
        given = rules.source == "given"
        return {
            "k": k,
            "entry_point": task.entry_point,
            "tests": [{"assert": test} for test in task.asserts[: rules.visible]] if given else [],
            "examples_from_prompt": given,
            "generate_tests": "missing" if given else "fill",
            "n_tests": rules.wanted,
            **self.search,
            "format": "fenced",
            "trace": "full",
        }


def parsed(text: str) -> Contender:
    """A preset's name, a JSON object, NAME=JSON, or NAME=PRESET. Raises ValueError."""
    if text in PRESETS:
        return Contender(text, PRESETS[text])
    name, _, body = text.partition("=") if "=" in text.partition("{")[0] else ("", "", text)
    if name and body in PRESETS:
        return Contender(name.strip(), PRESETS[body])
    try:
        search = json.loads(body)
    except ValueError:
        names = ", ".join(PRESETS)
        raise ValueError(f"--strategy: {text!r} is no preset ({names}), no JSON object, and no NAME={{...}}") from None
    if not isinstance(search, dict) or not isinstance(search.get("type"), str):
        raise ValueError(f"--strategy: {text!r} must be a JSON object with a 'type'")
    return Contender(name.strip() or described(search), search)


def described(search: Mapping[str, Any]) -> str:
    """A name: the type, and what differs from its defaults."""
    return " ".join([search["type"], *(f"{key}={json.dumps(value)}" for key, value in search.items() if key != "type")])


def validated(body: Mapping[str, Any]) -> Search:
    """The search of a body. Raises ValueError that names the field."""
    kind: type[Search] = registry.find("search", str(body["type"]), "strategy")
    try:
        return kind.model_validate({key: value for key, value in body.items() if key != "type"})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{body['type']}: {where}: {first['msg']}" if where else f"{body['type']}: {first['msg']}"
        ) from None


def contenders(texts: list[str], task: CodeTask, rules: VisibleTests, k: int) -> list[Contender]:
    """All of the command line's, tried on a task. Raises ValueError for one that is wrong, or two of one name."""
    found = [parsed(text) for text in texts]
    for one in found:
        if sum(other.name == one.name for other in found) > 1:
            raise ValueError(f"--strategy: {one.name!r} is given twice")
        try:
            body = one.body(task, rules, k)
        except InvalidRequest as error:
            raise ValueError(f"--strategy: {error}") from None
        if body is not None:
            validated(body)
    return found
