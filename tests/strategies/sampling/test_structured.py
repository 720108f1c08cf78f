"""Masks against their definition, hostile structures, and how a structure lives with the rest of a request."""

import asyncio
import contextlib
import itertools
import re
import threading
import time
from collections.abc import Sequence
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_reference import make_row
from structured_driver import BYTES, Writer, after, allowed, push, row_of, write
from torch import Tensor

from models.scripted import ByteTokenizer, scripted_runtime
from strategies.errors import InvalidRequest
from strategies.runtime import Generation, GenerationStream, SamplingParameters, StopConditions
from strategies.sampling import structured_compiler
from strategies.sampling.penalties import LogitBias
from strategies.sampling.pipeline import faulty_rows, process
from strategies.sampling.structured import Structure, compile_structure, unpacked, unpacked_by_shifts
from strategies.sampling.structured_grammar import Choice, Grammar, JsonObject, JsonSchema, Regex, Spec
from strategies.sampling.truncation import TopK

END = 256
PIECES = ByteTokenizer([b"ab", b"abc", b"bb", b"ca", b"c\xc3", b"\xa9b", b"aaaa"])
ARITHMETIC = r"""
start: sum
sum: product | sum ("+" | "-") product
product: atom | product ("*" | "/") atom
atom: NUMBER | "-" atom | "(" sum ")"
NUMBER: /[1-9][0-9]{0,3}/
"""

Language = tuple[str, frozenset[str]]
"""A regular expression, and the finite set of texts that it matches."""


def sequence_of(parts: Sequence[Language]) -> Language:
    texts = frozenset("".join(choice) for choice in itertools.product(*(part[1] for part in parts)))
    return "".join(part[0] for part in parts), texts


def union_of(parts: Sequence[Language]) -> Language:
    return "(" + "|".join(part[0] for part in parts) + ")", frozenset().union(*(part[1] for part in parts))


def repeat_of(part: Language, least: int, more: int) -> Language:
    texts = frozenset().union(*(sequence_of([part] * k)[1] for k in range(least, least + more + 1)))
    return f"({part[0]}){{{least},{least + more}}}", texts


LANGUAGES = st.recursive(
    st.sampled_from([(text, frozenset({text})) for text in ("a", "b", "c", "ab", "é", "aa")]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(sequence_of),
        st.lists(inner, min_size=1, max_size=3).map(union_of),
        st.tuples(inner, st.integers(0, 1), st.integers(0, 1)).map(lambda t: repeat_of(*t)),
    ),
    max_leaves=6,
)


def expected(prefix: bytes, words: set[bytes], tokenizer: ByteTokenizer) -> set[int]:
    """By brute force: the tokens after which some word is still possible, and the end where one is complete."""
    found = {
        token
        for token in range(tokenizer.vocab_size)
        if not tokenizer.is_special(token)
        and any(word.startswith(prefix + tokenizer.token_bytes(token)) for word in words)
    }
    return found | ({END} if prefix in words else set())


@settings(deadline=None, max_examples=60)
@given(LANGUAGES, st.randoms(use_true_random=False))
def test_a_token_is_allowed_if_and_only_if_a_completion_exists(language: Language, random: Random) -> None:
    pattern, texts = language
    words = {text.encode() for text in texts}
    row = row_of(Regex(pattern), PIECES)
    prefix = b""
    while True:
        choices = allowed(row)
        assert choices == expected(prefix, words, PIECES), (pattern, prefix)
        token = random.choice(sorted(choices))
        row.append(token)
        if token == END:
            return
        prefix += PIECES.token_bytes(token)


@pytest.mark.parametrize("options", [("a", "ab", "abc"), ("", "x"), ("",), ("ab", "aB", 'q"\\\n\x01'), ("é", "ê", "e")])
def test_choices_that_are_prefixes_of_one_another(options: tuple[str, ...]) -> None:
    words = {option.encode() for option in options}
    prefixes = {word[:k] for word in words for k in range(len(word) + 1)}
    for prefix in prefixes:
        assert after(Choice(options), prefix, PIECES) == expected(prefix, words, PIECES)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^\d{3}-\w+$",
        r"[^a-y\x00-\x60\x7b-\U0010ffff]+",
        r"(foo|ba[rz]){1,3}/\"?",
        r"a\$",
        r"",
        r"(a|a)*{1,20}b",
        r".{2,5}",
    ],
)
def test_outputs_match_their_regular_expression(pattern: str) -> None:
    row = row_of(Regex(pattern))
    for seed in range(4):
        output = write(row.fork(), Writer(BYTES, seed, hostile=seed % 2 == 1)).decode()
        assert re.fullmatch(pattern.replace("*{", "){").replace("(a|a)", "((a|a)*"), output), output


def test_a_lark_grammar() -> None:
    row = row_of(Grammar(ARITHMETIC))
    for seed in range(6):
        writer = Writer(BYTES, seed)
        writer.closing = [(ord(")"), 20.0), *((digit, 10.0) for digit in b"123456789")]
        output = write(row.fork(), writer).decode()
        assert re.fullmatch(r"[-+*/()0-9]+", output)
        eval(output)


def test_a_gbnf_grammar() -> None:
    text = 'root ::= item ("," item)*  # a list\nitem ::= [a-c]{2} | "\\u00e9" other-one?\nother-one ::= "<" item ">"\n'
    row = row_of(Grammar(text))
    for output in ("ab", "ab,é", "é<é<cc>>,ba"):
        copy = row.fork()
        push(copy, output.encode())
        assert END in allowed(copy), output
    assert after(Grammar(text), b"a") == set(b"abc")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (Regex("("), "unclosed group"),
        (Regex("(a)\\1"), "backreference"),
        (Regex("(" * 3000 + "a" + ")" * 3000), "nested"),
        (Regex("\ud800"), "surrogate"),
        (Regex("a" * 300_000), "longer"),
        (Choice(()), "options"),
        (Choice(("x",) * 10_001), "options"),
        (Grammar(""), "start"),
        (Grammar("start: foo"), "foo"),
        (Grammar("start: /(/"), "unclosed group"),
        (Grammar('start[temperature=0.5]: "a"'), "temperature"),
        (Grammar('start: "a" <|nosuch|>'), "nosuch"),
        (Grammar('root ::= "a'), "GBNF"),
        (Grammar("root ::= foo"), "foo"),
        (Grammar("root ::= " + "(" * 3000 + '"a"' + ")" * 3000), "nested"),
        (Grammar('start: A\nA: "a" & "b"'), "no text"),
    ],
)
def test_malformed_structures_are_refused_with_a_reason(spec: Spec, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as fault:
        compile_structure(spec, BYTES, "guided")
    assert fault.value.param == "guided"
    assert "\n" not in str(fault.value)


def deep(levels: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


HOSTILE: dict[str, Spec] = {
    "huge enum": JsonSchema({"enum": [f"value number {i}" for i in range(100_000)]}),
    "large enum": JsonSchema({"enum": [f"value number {i}" for i in range(5_000)]}),
    "many choices": Choice(tuple(f"value number {i}" for i in range(9_000))),
    "deep": JsonSchema(deep(5_000)),
    "less deep": JsonSchema(deep(49)),
    "many optional properties": JsonSchema({"properties": {f"p{i}": {} for i in range(2_000)}, "type": "object"}),
    "nested repetition": Regex("((((a{100}){100}){100}){100})"),
    "long repetition": Regex("a{100000}"),
    "pattern of repetitions": JsonSchema({"type": "string", "pattern": "^((a{100}){100}){100}$"}),
    "stars": Regex("(a|a)*{1000}"),
    "exponential automaton": Regex("(a|b)*a(a|b){500}"),
    "catastrophic backtracking": Regex("(x+x+)+y"),
    "large classes": Regex(r"(\w{1,100} ){1,100}"),
    "intersections": JsonSchema(
        {"allOf": [{"type": "string", "pattern": f"(a|b)*c{{{i}}}(a|b)*d"} for i in range(30)]}
    ),
    "circular references": JsonSchema({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#"}),
    "endless recursion": JsonSchema({"type": "object", "properties": {"c": {"$ref": "#"}}, "required": ["c"]}),
    "huge arrays": JsonSchema({"type": "array", "items": {}, "minItems": 10**9, "maxItems": 10**12}),
    "huge strings": JsonSchema({"type": "string", "minLength": 10**8, "maxLength": 10**9}),
    "ambiguous grammar": Grammar('start: s\ns: s s | "a" | ""'),
    "repeated rules": Grammar('start: (("a"{1000}){1000}){1000}'),
    "repeated terminals": Grammar('start: D\nA: "a"{100}\nB: A{100}\nC: B{100}\nD: C{100}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_structures_take_bounded_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each works or is refused, and no step hangs (generous bounds: the machine may be busy)."""
    monkeypatch.setattr(structured_compiler, "TRIAL_SECONDS", 3.0)
    began, row = time.monotonic(), None
    with contextlib.suppress(InvalidRequest):
        row = row_of(HOSTILE[name])
    assert time.monotonic() - began < 30
    if row is None:
        return
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        began = time.monotonic()
        logits = process(torch.randn(1, BYTES.vocab_size, generator=generator), [row])
        if bool(faulty_rows(logits)[0]):
            return
        row.append(int(logits.argmax()))
        assert time.monotonic() - began < 10


def test_a_complete_structure_allows_only_the_end_also_after_it() -> None:
    row = row_of(Choice(("ab",)))
    push(row, b"ab")
    for _ in range(3):
        assert allowed(row) == {END}
        row.append(END)


def test_logits_wider_than_the_vocabulary_are_masked() -> None:
    assert allowed(row_of(Choice(("a",))), BYTES.vocab_size + 1000) == {ord("a")}


def test_both_ways_of_unpacking_masks_agree() -> None:
    masks = torch.randint(-(2**31), 2**31, (5, 7), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    masks[0, :2] = torch.tensor([1, 2**31 - 1])
    bits = unpacked(masks, torch.device("cpu"))
    assert torch.equal(bits, unpacked_by_shifts(masks.view(torch.uint8)))
    assert bits[0, :64].tolist() == [True] + [False] * 31 + [True] * 31 + [False]


def test_special_tokens_never_match_text() -> None:
    everything = allowed(row_of(Regex(r"(.|\n)*")))
    assert END in everything
    assert everything & set(BYTES.special_token_ids.values()) == {END}
    assert after(Choice(("<|user|>",)), b"") == {ord("<")}


def test_forks_are_independent() -> None:
    row = row_of(Choice(("abx", "acy")))
    push(row, b"a")
    left, right = row.fork(), row.fork()
    push(left, b"b")
    push(right, b"c")
    assert (allowed(left), allowed(right), allowed(row)) == ({ord("x")}, {ord("y")}, set(b"bc"))
    third = left.fork()
    push(left, b"x")
    assert (allowed(left), allowed(third)) == ({END}, {ord("x")})


def test_rows_of_a_batch_get_their_own_masks() -> None:
    specs: list[Spec] = [Choice((word,)) for word in ("a", "b", "c")]
    rows = [row_of(spec) for spec in specs] + [row_of(Regex("[0-9]"))]
    free = make_row()
    logits = process(torch.zeros(5, BYTES.vocab_size), [*rows[:2], free, *rows[2:]])
    sets = [set(torch.isfinite(row).nonzero()[:, 0].tolist()) for row in logits]
    assert sets == [{97}, {98}, set(range(BYTES.vocab_size)), {99}, set(b"0123456789")]


def test_a_token_that_the_grammar_refuses_fails_its_row_only() -> None:
    rows = [row_of(Choice(("ab", "cd"))) for _ in range(3)]
    push(rows[0], b"x")
    rows[1].append(10**6)
    push(rows[2], b"c")
    for row in rows[:2]:
        push(row, b"b")  # once lost, always lost
    logits = process(torch.zeros(3, BYTES.vocab_size), rows)
    assert faulty_rows(logits).tolist() == [True, True, False]
    assert torch.isfinite(logits[2]).nonzero()[:, 0].tolist() == [ord("d")]
    assert faulty_rows(process(torch.zeros(1, BYTES.vocab_size), [rows[0].fork()])).tolist() == [True]


def test_bias_truncation_and_temperature_can_not_leave_the_structure() -> None:
    others = (LogitBias(bias={ord("z"): 100.0, END: 100.0, ord("a"): -100.0}), TopK(k=1))
    row = row_of(Choice(("ab",)), others=others, temperature=2.0)
    assert allowed(row) == {ord("a")}
    greedy = row_of(Choice(("ab", "b")), temperature=0.0)
    logits = torch.zeros(1, BYTES.vocab_size)
    logits[0, ord("q")], logits[0, ord("b")] = 9.0, 1.0
    assert int(process(logits, [greedy]).argmax()) == ord("b")


def test_min_tokens_yields_to_a_complete_structure() -> None:
    row = row_of(Regex("ab?"), stopping=StopConditions(min_tokens=5))
    push(row, b"a")
    assert allowed(row) == {ord("b")}  # it may end here, but must not yet
    push(row, b"b")
    assert allowed(row) == {END}


def test_a_model_without_an_end_is_refused() -> None:
    class Endless(ByteTokenizer):
        @property
        def eos_token_ids(self) -> frozenset[int]:
            return frozenset()

    with pytest.raises(InvalidRequest, match="end-of-sequence"):
        compile_structure(JsonObject(), Endless())


def test_equal_structures_are_compiled_once_and_the_cache_is_bounded() -> None:
    tokenizer = ByteTokenizer()
    found: list[Structure] = []
    threads = [
        threading.Thread(target=lambda: found.append(compile_structure(Choice(("a", "b")), tokenizer)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    first = compile_structure(Choice(("a", "b")), tokenizer)
    assert compile_structure(Choice(("a", "b")), tokenizer).grammar is first.grammar
    for i in range(structured_compiler.CACHED_GRAMMARS):
        compile_structure(Choice((f"x{i}",)), tokenizer)
    assert compile_structure(Choice(("a", "b")), tokenizer).grammar is not first.grammar


def senseless(context: Sequence[int]) -> Tensor:
    """Logits that depend on the whole context."""
    generator = torch.Generator().manual_seed(hash(tuple(context)))
    logits = torch.randn(BYTES.vocab_size, generator=generator) * 2
    logits[END] += 3
    return logits


async def run(generations: Sequence[Generation]) -> list[tuple[str, list[int], str | None]]:
    """Text, tokens and finish reason of each, generated in one batch by the real engine."""
    runtime = scripted_runtime(senseless, BYTES)
    try:

        async def read(stream: GenerationStream) -> tuple[str, list[int], str | None]:
            text, tokens, reason = "", list[int](), None
            async for delta in stream:
                text, tokens, reason = text + delta.text, tokens + delta.tokens, delta.finish_reason
            return text, tokens, reason

        return await asyncio.wait_for(asyncio.gather(*map(read, runtime.submit(generations))), 60)
    finally:
        runtime.close()


def generation(spec: Spec, seed: int, *, branch: int = 0, temperature: float = 1.0, **stopping: object) -> Generation:
    sampling = SamplingParameters(temperature, (compile_structure(spec, BYTES),))
    conditions = StopConditions(**{"max_tokens": 200, **stopping})  # type: ignore[arg-type]
    return Generation(prompt=[1, 2, 3], sampling=sampling, stopping=conditions, seed=seed, branch=(branch,))


async def test_an_answer_is_the_same_alone_and_in_a_batch() -> None:
    spec = Regex("[a-c]{3,6}(x|y)")
    batch = [generation(spec, seed) for seed in range(6)]
    batch += [generation(spec, 0, branch=branch) for branch in range(1, 5)]  # n > 1
    together = await run(
        [*batch, generation(Choice(("no", "yes")), 1), Generation(prompt=[1], stopping=StopConditions(5))]
    )
    for text, tokens, reason in together[: len(batch)]:
        assert reason == "stop"
        assert tokens[-1] == END
        assert re.fullmatch("[a-c]{3,6}[xy]", text)
    assert len({text for text, _, _ in together[:10]}) > 5
    assert together[10][0] in ("no", "yes")
    for i in (0, 3, 7):
        assert await run([batch[i]]) == [together[i]]


async def test_stop_strings_greedy_and_a_cut() -> None:
    spec = Regex("[ab]{30}")
    cut, stopped, greedy, whole = await run(
        [
            generation(spec, 1, max_tokens=7),
            generation(spec, 1, stop=("b",)),
            generation(spec, 1, temperature=0.0),
            generation(spec, 1),
        ]
    )
    assert (cut[2], len(cut[1])) == ("length", 7)
    assert whole[0].startswith(cut[0])
    assert stopped[2] == "stop"
    assert stopped[0] == whole[0].partition("b")[0]
    assert re.fullmatch("[ab]{30}", greedy[0])


async def test_ignore_eos_goes_on_with_nothing_but_ends() -> None:
    text, tokens, reason = (await run([generation(Choice(("ab",)), 0, ignore_eos=True, max_tokens=5)]))[0]
    assert (text, tokens, reason) == ("ab", [97, 98, END, END, END], "length")
