"""Writes the pictures of docs/playground.md: `make screenshots`. They are of the embedded model, but for the penalty's:
whether a real model loops can't be relied on, so a scripted one does."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "decoding_server"))

from browser import Visit, chromium
from embedded import embedded_server
from runtime_server import serve_runtime
from scripted_server import make_runtime

FOLDER = Path(__file__).parents[2] / "docs" / "playground"
LARGEST = 150 * 1024
WIDE = {"viewport": {"width": 1100, "height": 720}}
APPLES = "Tom has 3 apples and buys 4 more. How many apples has he now? Think step by step."
LOOP = "items.append(1)\n" * 8


def bregman(visit: Visit) -> None:
    visit.choose("sampler", "bregman")
    visit.fill("max_tokens", "32")
    visit.fill("temperature", "0.8")
    visit.ask("What is the capital of France?")
    visit.finished()
    visit.page.locator(".token").nth(1).click()
    show(visit, "Tokens")


def rpg(visit: Visit) -> None:
    visit.choose("penalty", "grammar")
    visit.fill("decoding.penalty.language", "python")
    visit.fill("decoding.penalty.tokens", "false")
    visit.fill("max_tokens", "120")
    visit.ask(LOOP)
    visit.finished()
    visit.page.locator(".token.penalised").last.click()
    show(visit, "Tokens")


def rsd(visit: Visit) -> None:
    visit.choose("speculation", "rsd-s")
    visit.fill("temperature", "0.3")
    visit.ask("Count from 1 to 20.")
    visit.finished()
    visit.part("Round").focus()
    for _ in range(6):
        visit.page.keyboard.press("ArrowLeft")
    show(visit, "Rounds of speculation")


def phi(visit: Visit) -> None:
    visit.choose("search", "phi")
    small = {"beams": "3", "rollouts": "3", "t_max": "3", "step.max_tokens": "24", "foresight.max_tokens": "24"}
    for name, value in small.items():
        visit.fill(f"decoding.search.{name}", value)
    visit.fill("decoding.budget.forward_tokens", "3000")
    visit.ask(APPLES)
    visit.finished()
    visit.page.locator("[data-node].answer").click()
    show(visit, "Search tree")


def compare(visit: Visit) -> None:
    visit.page.get_by_label("Compare two").check()
    visit.choose("search", "majority", "B")
    visit.page.get_by_role("button", name="Lane A").click()
    visit.choose("speculation", "ngram", "A")
    for lane in ("B", "A"):
        visit.page.get_by_role("button", name=f"Lane {lane}").click()
        visit.fill("max_tokens", "40", lane)
    visit.ask(APPLES)
    visit.finished("A")
    visit.finished("B")


def narrow(visit: Visit) -> None:
    visit.settings()
    visit.choose("sampler", "bregman")
    visit.fill("max_tokens", "24")
    visit.page.get_by_text("Settings", exact=True).click()
    visit.ask("Name three colours.")
    visit.finished()


def show(visit: Visit, part: str) -> None:
    visit.part(part).evaluate("one => one.scrollIntoView({block: 'start'})")


SCENES: dict[str, tuple[Callable[[Visit], None], dict[str, Any]]] = {
    "bregman": (bregman, WIDE),
    "rpg": (rpg, WIDE),
    "rsd": (rsd, {**WIDE, "color_scheme": "dark"}),
    "phi": (phi, WIDE),
    "compare": (compare, {"viewport": {"width": 980, "height": 640}, "color_scheme": "dark"}),
    "narrow": (narrow, {"viewport": {"width": 360, "height": 740}}),
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    large = []
    with embedded_server() as model, serve_runtime(make_runtime(max_model_len=2048)) as script, chromium() as browser:
        for name, (scene, context) in SCENES.items():
            server = script if scene is rpg else model
            visit = Visit(browser, server.url, reduced_motion="reduce", **context).open()
            visit.settings()
            visit.fill("seed", "3")
            if name == "narrow":
                visit.page.get_by_text("Settings", exact=True).click()
            scene(visit)
            path = FOLDER / f"{name}.png"
            visit.page.screenshot(path=path)
            visit.close()
            print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")
            if path.stat().st_size > LARGEST:
                large.append(path.name)
    if large:
        raise SystemExit(f"larger than {LARGEST // 1024} KiB: {', '.join(large)}")


if __name__ == "__main__":
    main()
