"""Which strategy works with what, and what it costs: the README's table, and that of the strategies' first page."""

from collections.abc import Mapping

from decoding_server.api.strategies import described, described_search, described_speculation
from decoding_server.features.comparison import markdown_table
from decoding_server.features.strategy_notes import Documented, StrategyNote, documented
from decoding_server.protocol.strategies import Strategy

COLUMNS = ("stream", "n", "stop", "logprobs", "seed")
SLOTS = ("sampler", "penalty", "speculation", "search")


def matrix(notes: Mapping[str, StrategyNote]) -> str:
    """One row for the strategies of a slot that agree in everything, so that it fits on a screen."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for strategy in ordered():
        note, api = notes[strategy.name], _described(strategy)
        marks = [mark(api["supports"][column]) for column in COLUMNS]
        if note.late:
            marks[0] = "◐"
        cells = (strategy.slot, mark(api["exact"]), *marks, ", ".join(strategy.runtimes), note.cost)
        rows.setdefault(cells, []).append(f"[`{strategy.name}`](docs/strategies/{note.page})")
    table = markdown_table(
        ["strategy", "slot", "exact", "streams", "`n`", "`stop`", "`logprobs`", "`seed`", "runtimes", "cost"],
        [[", ".join(names), f"`{cells[0]}`", *cells[1:]] for cells, names in rows.items()],
    )
    return f"{table}\n\n{LEGEND}"


LEGEND = (
    "● yes · ◐ the answer comes at the end, in one piece · – no. *exact*: the output's distribution is that of "
    "decoding without it. Cost is what comes on top of plain decoding of one answer; every request says what it cost "
    "(`usage.decoding`)."
)


def overview(notes: Mapping[str, StrategyNote]) -> str:
    """When to ask for which, with links from docs/strategies/index.md."""
    rows = []
    for strategy in ordered():
        note = notes[strategy.name]
        rows.append([f"[`{strategy.name}`]({note.page})", f"`{strategy.slot}`", note.use, note.cost])
    return markdown_table(["strategy", "slot of `decoding`", "when to use it", "cost"], rows)


def ordered() -> list[Documented]:
    """Slots in the order in which the documentation explains them."""
    return sorted(documented().values(), key=lambda one: (SLOTS.index(one.slot), one.name))


def mark(yes: bool) -> str:
    return "●" if yes else "–"


def _described(strategy: Documented) -> Strategy:
    """As GET /v1/strategies has it."""
    if strategy.slot == "search":
        return described_search(strategy.name, strategy.kind)
    if strategy.slot == "speculation":
        return described_speculation(strategy.name, strategy.kind)
    found = described(strategy.name, strategy.kind)
    assert found is not None
    return found
