"""Which methods run in which shapes at a budget of B draft tokens a round: our shapes, all of at most B nodes."""

from typing import Any

from strategies.registry import find
from strategies.speculative.speculation import Speculation

PLAIN = "plain"
BUDGETS = (6, 10, 14, 21, 30)
METHODS = ("chain", "multi-draft", "spectr", "rsd-c", "rsd-s", "ngram", "auto")
COUPLED = ("chain coupled", "rsd-c coupled", "rsd-s coupled", "ngram coupled")
"""The same with the target's noise shared; not part of the usual grid."""
RECTANGLES = {
    6: ((2, 3), (3, 2)),
    10: ((2, 5), (5, 2)),
    14: ((2, 7), (7, 2)),
    21: ((3, 7), (7, 3)),
    30: ((5, 6), (6, 5)),
}
"""Width and length of SpecTr and RSD-S."""
BRANCHINGS: dict[int, tuple[tuple[int, ...], ...]] = {
    6: ((2, 1, 1), (2, 2), (3, 1)),
    10: ((2, 2, 1), (2, 1, 1, 1, 1), (5, 1)),
    14: ((2, 2, 2), (2, 1, 1, 1, 1, 1, 1), (7, 1)),
    21: ((3, 2, 2), (3, 1, 1, 1, 1, 1, 1), (7, 1, 1)),
    30: ((2, 2, 2, 2), (5, 1, 1, 1, 1, 1), (6, 1, 1, 1, 1)),
}
"""Children by level, of RSD-C and i.i.d. multi-draft."""


def shapes(method: str, budget: int, drafter: str | None, most: int) -> list[dict[str, Any]]:
    """Bodies of `decoding.speculation`, at most `most`, the first the most usual one. Other budgets than BUDGETS get
    the divisors of B as rectangles, and two children at the root."""
    rectangles = RECTANGLES.get(budget) or tuple(
        (width, budget // width) for width in range(2, budget) if budget % width == 0
    )
    branchings = BRANCHINGS.get(budget) or (((2, *(1,) * (budget // 2 - 1)),) if budget > 1 else ((1,),))
    found: list[dict[str, Any]]
    method, _, coupled = method.partition(" ")
    match method:
        case "chain":
            found = [{"length": min(budget, 32)}]
        case "ngram":
            found, drafter = [{"length": min(budget, 32)}], None
        case "auto":
            found = [{"max_nodes": budget, "coupled": False}]
        case "spectr" | "rsd-s":
            found = [{"width": width, "length": length} for width, length in rectangles or ((1, budget),)]
        case "rsd-c" | "multi-draft":
            found = [{"branching": list(branching)} for branching in branchings]
        case _:
            raise ValueError(f"{method!r} has no shapes here; there are: {', '.join(METHODS)}")
    named: dict[str, Any] = {} if drafter is None else {"drafter": drafter}
    if coupled:
        named["coupled"] = True
    return [{"type": method, **named, **shape} for shape in found[:most]]


def parsed(body: dict[str, Any]) -> Speculation:
    """The speculation that a body asks for."""
    kind = find("speculation", body["type"], "type")
    asked: Speculation = kind.model_validate({name: value for name, value in body.items() if name != "type"})
    return asked


def shape_text(body: dict[str, Any]) -> str:
    """The parameters in short: `2x2x1` children, `3 wide, 2 deep`, `6 long`."""
    if "branching" in body:
        return "x".join(map(str, body["branching"]))
    if "width" in body:
        return f"{body['width']} wide, {body['length']} deep"
    return f"{body['length']} long" if "length" in body else ""
