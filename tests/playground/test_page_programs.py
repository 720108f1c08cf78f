"""A forest of programs in the playground, with a scripted coder and the real sandbox: what the tests of each said."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import Visit, chromium, expect
from runtime_server import RuntimeServer, serve_runtime

sys.path.append(str(Path(__file__).parents[1] / "strategies" / "search"))
from scripted_coder import ScriptedCoder, code

WRONG, RIGHT = code("return a"), code("return a + b")
TESTS = '[{"assert": "assert add(1, 2) == 3"}, {"call": "add(2, 0)", "expected": "2"}]'


@pytest.fixture(scope="module")
def server() -> Iterator[RuntimeServer]:
    """Writes a program that passes one test of two, then one that passes both."""
    coder = ScriptedCoder(
        seed=[WRONG],
        code=[RIGHT],
        directions=["Direction 1: add both\nDirection 2: use sum"],
        lessons=["Lessons:\n- x"],
    )
    with coder.serving() as runtime, serve_runtime(runtime) as live:
        search = {"type": "code-best-of-n", "k": 1, "tests": [{"assert": "assert add(1, 2) == 3"}]}
        body = {"messages": [{"role": "user", "content": "add(a, b)"}], "decoding": {"search": search}}
        reply = live.post("/v1/chat/completions", body)
        if reply.status_code == 503:
            pytest.skip(reply.json()["error"]["message"])
        yield live


@pytest.fixture
def page(server: RuntimeServer) -> Iterator[Visit]:
    with chromium() as browser:
        visit = Visit(browser, server.url).open()
        yield visit
        visit.close()
        assert visit.faults == []


def test_the_tree_shows_which_tests_each_program_passed(page: Visit) -> None:
    page.choose("search", "scattered-forest")
    for name, value in {"tests": TESTS, "k": "4", "seeds": "2"}.items():
        page.fill(f"decoding.search.{name}", value)
    page.ask("Write add(a, b), which adds.")
    page.finished()
    tree = page.part("Search tree")
    found = tree.locator("[data-node]").evaluate_all("all => all.map(one => one.ariaLabel)")
    assert [name for name in found if "2/2 tests passed" in name and "the answer" in name]
    for passed, said in (("1/2", ["test 1: wrong_value", "test 2: pass"]), ("2/2", ["test 1: pass", "test 2: pass"])):
        tree.locator(f'[data-node][aria-label*="{passed} tests passed"]').first.click()
        assert tree.locator(".tests li").all_inner_texts() == said
    assert tree.locator(".tests li.failed").count() == 0
    assert "return a + b" in page.answer()


def test_a_server_without_a_sandbox_says_so(server: RuntimeServer) -> None:
    """The page passes on the server's reason."""
    coder = ScriptedCoder(seed=[RIGHT], code=[RIGHT], directions=["Direction 1: x"], lessons=["Lessons:\n- x"])
    with coder.serving() as runtime, serve_runtime(runtime, {"sandbox": "off"}) as without, chromium() as browser:
        state: Any = httpx.get(f"{without.url}/v1/strategies", timeout=30).json()["sandbox"]
        visit = Visit(browser, without.url).open()
        visit.choose("search", "scattered-forest")
        visit.fill("decoding.search.tests", TESTS)
        visit.ask("Write add(a, b), which adds.")
        expect(visit.lane().get_by_role("alert")).to_contain_text(state["reason"])
        visit.close()
        assert visit.faults == []
