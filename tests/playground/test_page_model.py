"""The playground with the embedded model: the mission's strategies and REBASE, each once, and what is seen of them."""

from collections.abc import Iterator
from typing import Any

import pytest
from browser import Visit, chromium, expect
from embedded import embedded_server
from runtime_server import RuntimeServer

QUESTION = "Tom has 3 apples and buys 4 more. How many apples has he?"
SMALL = {"max_tokens": "24", "seed": "1", "decoding.budget.forward_tokens": "1500"}
STEPS = {"step": "chunk", "step_tokens": "8", "answer_reserve": "16"}
TREES = {
    "phi": {"beams": "2", "rollouts": "2", "t_max": "2", "step.max_tokens": "8", "foresight.max_tokens": "8"},
    "litesearch": {"step": "chunk", "step_tokens": "8", "max_iterations": "4", "max_children": "2"},
    "rebase": {**STEPS, "samples": "4", "max_depth": "3", "value": "self-eval"},
}


@pytest.fixture(scope="module")
def server() -> Iterator[RuntimeServer]:
    with embedded_server() as live:
        yield live


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser: Any, server: RuntimeServer) -> Iterator[Visit]:
    visit = Visit(browser, server.url).open()
    for path, value in SMALL.items():
        visit.fill(path, value)
    yield visit
    visit.close()
    assert visit.faults == []


def test_bregman(page: Visit) -> None:
    page.choose("sampler", "bregman")
    page.ask(QUESTION)
    page.finished()
    tokens = page.page.locator(".token")
    assert tokens.count() > 1
    tokens.first.click()
    expect(page.part("Tokens").locator(".detail")).to_contain_text("renormalised to 100 %")
    expect(page.part("Tokens").locator("tr.drawn")).to_have_count(1)


def test_rpg(page: Visit) -> None:
    page.choose("penalty", "grammar")
    page.fill("decoding.penalty.language", "python")
    page.ask("Write a Python function that adds two numbers.")
    page.finished()
    assert page.page.locator(".token").count() > 1


def test_rsd(page: Visit) -> None:
    page.choose("speculation", "rsd-s")
    page.ask(QUESTION)
    page.finished()
    drafts = page.part("Rounds of speculation")
    expect(drafts.locator("g.draft").first).to_be_visible()
    assert drafts.locator("g.accepted, g.rejected").count() > 0
    expect(page.part("Cost")).to_contain_text("tokens drafted")


@pytest.mark.parametrize("search", TREES)
def test_searches_over_steps(page: Visit, search: str) -> None:
    page.choose("search", search)
    for name, value in TREES[search].items():
        page.fill(f"decoding.search.{name}", value)
    page.ask(QUESTION)
    page.finished()
    assert page.page.locator("[data-node]").count() > 2
    expect(page.page.locator("[data-node].answer")).to_have_count(1)
    expect(page.page.get_by_role("meter", name="forward tokens")).to_be_visible()


def test_scattered_forest(page: Visit) -> None:
    """Where no sandbox works, the page says so."""
    page.choose("search", "scattered-forest")
    page.fill("decoding.search.tests", '[{"assert": "assert add(1, 2) == 3"}]')
    page.fill("decoding.search.k", "2")
    page.fill("decoding.search.seeds", "1")
    page.fill("decoding.search.scout", "false")
    page.ask("Write add(a, b), which adds two numbers.")
    expect(page.page.locator("#send")).to_be_visible()
    if page.lane().get_by_role("alert").is_visible():
        expect(page.lane().get_by_role("alert")).to_contain_text("program")
        return
    page.finished()
    page.page.locator("[data-node]").nth(1).click()
    expect(page.part("Search tree").locator(".tests li").first).to_contain_text("test 1:")
    assert "null" not in page.part("Search tree").inner_text()
