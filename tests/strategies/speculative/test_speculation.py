"""What requests can ask for: shapes, their sizes, and that no round of a method is larger than it says."""

import pytest
import torch
from pydantic import ValidationError

from strategies.registry import registered
from strategies.speculative.ngram import PromptLookup
from strategies.speculative.noise import RoundNoise
from strategies.speculative.speculation import (
    ChainSpeculation,
    MultiDraftSpeculation,
    NgramSpeculation,
    RecursiveConstant,
    RecursiveStochastic,
    SpecTrSpeculation,
    Speculation,
)

SHAPES: list[tuple[Speculation, tuple[int, ...]]] = [
    (RecursiveConstant(), (2, 4, 4)),
    (RecursiveConstant(branching=(3,)), (3,)),
    (RecursiveConstant(branching=(1, 2, 3)), (1, 2, 6)),
    (RecursiveStochastic(), (3, 3, 3)),
    (RecursiveStochastic(width=5, length=2), (5, 5)),
    (ChainSpeculation(), (1, 1, 1, 1)),
    (ChainSpeculation(length=2, coupled=True), (1, 1)),
    (MultiDraftSpeculation(branching=(2, 1)), (2, 2)),
    (SpecTrSpeculation(width=4, length=2), (4, 4)),
    (NgramSpeculation(length=3), (1, 1, 1)),
]


def test_the_methods_have_the_names_that_requests_use() -> None:
    names = {"rsd-c", "rsd-s", "chain", "multi-draft", "spectr", "ngram"}
    assert names <= registered("speculation").keys()
    assert all(registered("speculation")[name].name == name for name in names)


@pytest.mark.parametrize(("speculation", "widths"), SHAPES, ids=lambda value: str(value)[:40])
def test_widths_nodes_and_what_the_draft_computes(speculation: Speculation, widths: tuple[int, ...]) -> None:
    assert speculation.widths() == widths
    assert speculation.length == len(widths)
    for length in range(1, len(widths) + 1):
        assert speculation.nodes(length) == sum(widths[:length])
        expected = 1 + sum(widths[: length - 1]) if speculation.uses_draft else 0
        assert speculation.draft_tokens(length) == expected
        assert speculation.method(length).length == length


@pytest.mark.parametrize(("speculation", "widths"), SHAPES, ids=lambda value: str(value)[:40])
def test_no_tree_is_larger_than_announced_and_some_are_as_large(
    speculation: Speculation, widths: tuple[int, ...]
) -> None:
    if isinstance(speculation, NgramSpeculation):
        assert isinstance(speculation.method(2), PromptLookup)
        return
    for length in range(1, len(widths) + 1):
        method, sizes, drafted = speculation.method(length), [], []
        for seed in range(20):
            tree, forwarded = method.new_tree(0), 0
            while tree.depth < length and tree.frontier():
                frontier = tree.frontier()
                forwarded += len(frontier)
                rows = torch.randn(len(frontier), 50, generator=torch.Generator().manual_seed(seed)) * 0.1
                method.propose(tree, rows, RoundNoise(seed, (0,), length))
            sizes.append(len(tree))
            drafted.append(forwarded)
        assert max(sizes) == speculation.nodes(length)
        assert max(drafted) == speculation.draft_tokens(length)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (RecursiveConstant, {"branching": ()}),
        (RecursiveConstant, {"branching": (0,)}),
        (RecursiveConstant, {"branching": (33,)}),
        (RecursiveConstant, {"branching": (1,) * 33}),
        (RecursiveConstant, {"branching": ("2",)}),
        (RecursiveConstant, {"length": 3}),
        (RecursiveStochastic, {"width": 0, "length": 2}),
        (RecursiveStochastic, {"width": 2, "length": 0}),
        (RecursiveStochastic, {"width": 2, "length_": 2}),
        (ChainSpeculation, {"length": 33}),
        (MultiDraftSpeculation, {"branching": (2,), "coupled": True}),
        (SpecTrSpeculation, {"coupled": True}),
        (NgramSpeculation, {"max_ngram": 0}),
        (NgramSpeculation, {"drafter": 3}),
    ],
    ids=str,
)
def test_bad_shapes_are_refused(kind: type[Speculation], fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(fields)


def test_only_methods_with_gumbel_noise_couple() -> None:
    couples = {name for name, kind in registered("speculation").items() if kind.couples}
    assert couples >= {"rsd-c", "rsd-s", "chain", "ngram"}
    assert not couples & {"multi-draft", "spectr"}


def test_a_request_round_trips() -> None:
    for speculation, _ in SHAPES:
        dumped = speculation.model_dump(mode="json", by_alias=True)
        assert type(speculation).model_validate(dumped) == speculation
        assert "length_" not in dumped
