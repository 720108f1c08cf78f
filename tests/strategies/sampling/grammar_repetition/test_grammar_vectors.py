"""Every vector of the specification (its pinned grammar versions are those of the `versions` below)."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from piece_tokenizer import PieceTokenizer

from strategies.sampling.grammar_repetition.code_block import Hit
from strategies.sampling.grammar_repetition.lexemes import LexemeIndex
from strategies.sampling.grammar_repetition.options import AllowedCopies, GrammarRepetitionOptions
from strategies.sampling.grammar_repetition.policy import adjusted, guarded_factor, paper_factor
from strategies.sampling.grammar_repetition.state import GrammarRepetitionState
from strategies.sampling.grammar_repetition.tandem import TandemDetector, trailing_tandem

VECTORS = json.loads((Path(__file__).parent / "rpg.json").read_text())
PROGRAMS = VECTORS["programs"]
CONTEXTS = {"code": "code", "decl": "declarations", "literal": "literals", "import": "imports"}
WORD = re.compile(rb"\s*\w+|\s*[^\w\s]|\s+")


def tokens(text: bytes) -> list[bytes]:
    """Words and marks with the blanks before them, but newlines apart: a usual split of code."""
    return [piece for part in re.split(rb"(\n)", text) for piece in (WORD.findall(part) if part != b"\n" else [part])]


def started(program: dict[str, Any], **options: Any) -> tuple[GrammarRepetitionState, PieceTokenizer]:
    tokenizer = PieceTokenizer()
    ids = tokenizer.ids(tokens(program["prefix"].encode()))
    parameters = GrammarRepetitionOptions.model_validate({"language": program["language"], **options})
    state = GrammarRepetitionState(parameters, tokenizer, [0])
    for token in ids:
        state.advance(token)
    return state, tokenizer


def line_hit(state: GrammarRepetitionState) -> Hit | None:
    return next((hit for hit in state.hits if hit.level == "line"), None)


@pytest.mark.parametrize("name", list(VECTORS["meta"]["versions"]))
def test_installed_grammars_are_those_of_the_vectors(name: str) -> None:
    """Node names change between releases: other versions need the vectors checked again."""
    pinned = VECTORS["meta"]["versions"][name]
    assert version(name).split(".")[:2] == pinned.split(".")[:2]


@pytest.mark.parametrize("case", VECTORS["sequences"], ids=lambda case: "".join(case["seq"]) or "empty")
def test_sequences(case: dict[str, Any]) -> None:
    detector = TandemDetector(32)
    for symbol in case["seq"]:
        detector.push(ord(symbol))
    expected = None if case["period"] is None else (case["period"], case["copies"])
    assert detector.hit() == expected
    assert trailing_tandem(case["seq"], 32) == expected


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program["id"])
def test_program_state(program: dict[str, Any]) -> None:
    state, _ = started(program)
    assert program["insertion_byte"] == len(program["prefix"].encode())
    assert state.pending == program["pending"]
    assert state.suspended == program["suspended"]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program["id"])
def test_program_lines(program: dict[str, Any]) -> None:
    state, _ = started(program)
    hit, expected = line_hit(state), program["line"]
    if expected is None or not expected["present"]:
        assert hit is None
        return
    assert hit is not None
    text = program["prefix"].encode()
    assert (hit.period, hit.copies) == (expected["period_lines"], expected["copies"])
    assert [list(line) for line in hit.unit] == expected["unit"]
    assert hit.indent == expected["indent"]
    assert hit.starts[0] == expected["last_copy_start_byte"]
    assert hit.context == CONTEXTS[expected["context"]]
    for start, anchor in zip(reversed(hit.starts), expected["anchors_seen"], strict=True):
        assert text[start:].startswith(anchor.encode())
    assert text[hit.starts[0] :].startswith(expected["anchor_text"].encode())


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program["id"])
def test_program_statements(program: dict[str, Any]) -> None:
    """Statement levels matter only where a line may begin: the vectors list none elsewhere."""
    state, _ = started(program, level="statement")
    hits = list(state.hits) if state.pending else []
    expected = program["stmt"] or []
    assert [(h.container, h.period, h.copies, [s for part in h.unit for s in part], h.starts[0]) for h in hits] == [
        (e["container"], e["period_units"], e["copies"], e["unit"], e["last_copy_start_byte"]) for e in expected
    ]


def anchor_factor(state: GrammarRepetitionState, tokenizer: PieceTokenizer, anchor: str) -> float:
    """The factor of the token that begins with the anchor (as the words of `tokens` do), 1 if there is none."""
    penalties = state.penalties()
    found = [
        factor
        for token, factor in ({} if penalties is None else penalties.factors).items()
        if tokenizer.token_bytes(token).strip() == anchor.encode()
    ]
    return min(found, default=1.0)


def anchors_of(program: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(word at the last copy, vector) of the line level and of each statement level."""
    text = program["prefix"].encode()
    levels = [("line", program["line"])] if program["line"] and program["line"]["present"] else []
    levels += [("statement", level) for level in program["stmt"] or []]
    found = []
    for level, expected in levels:
        word = WORD.match(text[expected["last_copy_start_byte"] :])
        assert word is not None
        anchor = word[0].decode()
        found.append((level, expected | {"anchor": anchor}))
    return found


FACTORS = [(p, level, e) for p in PROGRAMS for level, e in anchors_of(p)]


@pytest.mark.parametrize(("program", "level", "expected"), FACTORS, ids=[f"{p['id']}-{lv}" for p, lv, _ in FACTORS])
@pytest.mark.parametrize("factor", [0.9, 0.7, 0.5])
def test_program_paper_factor(program: dict[str, Any], level: str, expected: dict[str, Any], factor: float) -> None:
    state, tokenizer = started(program, mode="paper", level=level, **{"lambda": factor})
    wanted = expected["paper_multiplier"][str(factor)]
    assert anchor_factor(state, tokenizer, expected["anchor"]) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("program", "level", "expected"), FACTORS, ids=[f"{p['id']}-{lv}" for p, lv, _ in FACTORS])
def test_program_guarded_factor(program: dict[str, Any], level: str, expected: dict[str, Any]) -> None:
    state, tokenizer = started(program, level=level, tokens=False)
    assert anchor_factor(state, tokenizer, expected["anchor"]) == pytest.approx(
        expected["guarded_multiplier"], rel=1e-9
    )


@pytest.mark.parametrize("program", [p for p in PROGRAMS if not anchors_of(p)], ids=lambda program: program["id"])
def test_programs_without_repetition_are_left_alone(program: dict[str, Any]) -> None:
    for options in ({"mode": "paper", "level": "both"}, {"level": "both", "tokens": False}):
        state, _ = started(program, **options)
        assert state.penalties() is None


@pytest.mark.parametrize("program", [p for p in PROGRAMS if "released" in p], ids=lambda program: program["id"])
def test_program_released(program: dict[str, Any]) -> None:
    expected = program["released"]
    tokenizer = PieceTokenizer(strips_leading_space=True)
    ids = [0 if p == "<s>" else tokenizer.ids([p.replace("▁", " ").encode()])[0] for p in expected["pieces"]]
    state = GrammarRepetitionState(GrammarRepetitionOptions(mode="released"), tokenizer, ids[:5])
    for token in ids[5:]:
        state.advance(token)
    penalties = state.penalties()
    factors = {} if penalties is None else dict(penalties.factors)
    assert factors.pop(1, 1.0) == pytest.approx(expected["eos_logit_factor"])
    named = {tokenizer.token_bytes(token).decode().replace(" ", "▁"): factor for token, factor in factors.items()}
    assert named == pytest.approx(expected["logit_factor"])
    assert penalties is None or penalties.scale == "raw"


@pytest.mark.parametrize("run", VECTORS["long_runs"], ids=lambda run: run["id"])
def test_long_runs(run: dict[str, Any]) -> None:
    units = "".join(run["unit_template"].format(i=i + 1, j=i + 1) for i in range(run["n"]))
    program = {"prefix": run["head"] + units, "language": run["language"]}
    state, tokenizer = started(program, tokens=False)
    hit = line_hit(state)
    assert hit is not None
    assert (hit.period, hit.copies, hit.context) == (run["period_lines"], run["copies"], CONTEXTS[run["context"]])
    anchor = WORD.match(program["prefix"].encode()[hit.starts[0] :])
    assert anchor is not None
    assert anchor_factor(state, tokenizer, anchor[0].decode()) == pytest.approx(run["guarded_multiplier"], rel=1e-9)
    paper, tokenizer = started(program, mode="paper", level="line")
    wanted = run["paper_multiplier_0_9"]
    assert anchor_factor(paper, tokenizer, anchor[0].decode()) == pytest.approx(wanted, rel=1e-7)


@pytest.mark.parametrize("case", VECTORS["anchors"]["cases"], ids=lambda case: case["anchor"])
def test_anchor_ids(case: dict[str, Any]) -> None:
    tokenizer = PieceTokenizer(text.encode() for text in VECTORS["anchors"]["vocab"])
    first = len(tokenizer.special_token_ids)
    ids = [token - first for token in LexemeIndex(tokenizer).starting_with(case["anchor"])]
    assert ids == case["ids_full"]
    assert not set(ids) & set(case["ids_prefix"])


def test_baseline_paper_probability() -> None:
    numeric = VECTORS["baselines"]["numeric"]
    logits = torch.tensor(numeric["logits"], dtype=torch.float64)
    factor = torch.tensor([paper_factor(3, 0.9)], dtype=torch.float64)
    logits[[7]] = adjusted(logits[[7]], factor, "prob")
    expected = torch.tensor(numeric["rpg_paper_prob_lambda_0_9_copies_3_token_7"], dtype=torch.float64)
    torch.testing.assert_close(logits.softmax(0), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("key", "token", "exponent"),
    [("rpg_released_logit_0_9_token_7_copies_extra_2", 7, 2), ("rpg_released_negative_logit_token_6", 6, 1)],
)
def test_baseline_released_logits(key: str, token: int, exponent: int) -> None:
    """A negative logit is raised: the released code's flaw, kept in its mode."""
    numeric = VECTORS["baselines"]["numeric"]
    logits = torch.tensor(numeric["logits"], dtype=torch.float64)
    logits[[token]] = adjusted(logits[[token]], torch.tensor([0.9**exponent], dtype=torch.float64), "raw")
    torch.testing.assert_close(logits, torch.tensor(numeric[key], dtype=torch.float64), atol=1e-9, rtol=0)


def test_zero_table_token_detector() -> None:
    """6 copies of period 3: 0.125 by the plain threshold; inside a list of numbers up to 32 copies are allowed."""
    program = next(p for p in PROGRAMS if p["id"] == "py-list-zeros")
    pieces = [p.replace("▁", " ").encode() for p in program["released"]["pieces"][1:]]
    tokenizer = PieceTokenizer(strips_leading_space=True)
    assert guarded_factor(6, AllowedCopies().tokens, 0.5, 16) == 0.125
    ids = tokenizer.ids(pieces)
    state = GrammarRepetitionState(GrammarRepetitionOptions(language="python"), tokenizer, [0])
    for token in ids:
        state.advance(token)
    assert state.penalties() is None
    bare = GrammarRepetitionState(GrammarRepetitionOptions(language="off"), tokenizer, [0])
    for token in ids:
        bare.advance(token)
    penalties = bare.penalties()
    assert penalties is not None
    assert penalties.factors == pytest.approx({tokenizer.ids([b"0"])[0]: 0.125})


def test_comment_loop_is_the_token_detectors() -> None:
    """Two alternating comments, 3 copies: not above the 3 allowed; one more pair is penalised by a half."""
    program = next(p for p in PROGRAMS if p["id"] == "py-comment-alternating")
    state, tokenizer = started(program)
    assert state.penalties() is None
    pair = b"    # use a counter for open\n    # use a counter for closed\n"
    for token in tokenizer.ids(tokens(pair)):
        state.advance(token)
    penalties = state.penalties()
    assert penalties is not None
    assert list(penalties.factors.values()) == [0.5]
