"""Invariants and pitfalls of the specification (6.1 and 7.1) on whole states."""

import math
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from piece_tokenizer import PieceTokenizer, split

from strategies.sampling.grammar_repetition.code_block import CodeBlock, Hit
from strategies.sampling.grammar_repetition.languages import LANGUAGES
from strategies.sampling.grammar_repetition.options import GrammarRepetitionOptions
from strategies.sampling.grammar_repetition.policy import Penalties, adjusted
from strategies.sampling.grammar_repetition.state import GrammarRepetitionState

PRINTS = "".join(f"print(f({i}))\n" for i in range(12))
ELIFS = "def f(x):\n    if x == 0:\n        return 0\n" + "".join(
    f"    elif x == {i}:\n        return {i}\n" for i in range(1, 10)
)
SAMPLES = {
    "python": "import a\n\n"
    + ELIFS
    + "\nclass P:\n    def __init__(self, a):\n        self.a = {\n            'a': [1],\n"
    "        }\n\n    def g(self):\n        '''doc\n        doc\n        '''\n        return f'{self.a}'\n\n" + PRINTS,
    "javascript": "import {\n  a,\n  b,\n} from 'x';\nfunction f(x) {\n  if (x === 1) {\n    return `a ${x}\n b`;\n"
    + "".join(f"  }} else if (x === {i}) {{\n    return {i};\n" for i in range(2, 9))
    + "  }\n  const t = {\n    a: 1,\n    b: 2,\n  };\n  return t; // done\n}\n",
    "typescript": "interface A {\n  a: number;\n  b: string;\n}\nexport const f = (a: A): number => {\n"
    "  return a.a;\n};\n",
    "c": "#include <a.h>\n#ifndef A\n#define A 1\nstruct s {\n  int a;\n  int b;\n};\nint f(int x) {\n  switch (x) {\n"
    + "".join(f"    case {i}:\n      return {i};\n" for i in range(8))
    + "  }\n  return 0;\n}\n#endif\n",
    "cpp": "namespace n {\nclass A : public B {\n public:\n  A() : a_(1) {}\n  int f() const { return a_; }\n"
    " private:\n  int a_;\n};\n}\n",
    "java": "import a.B;\n\nclass P {\n"
    + "".join(f"  public int get{c}() {{\n    return {c};\n  }}\n\n" for c in "ABCDEF")
    + "}\n",
    "go": 'package a\n\nimport (\n\t"fmt"\n)\n\nconst (\n\tA = 1\n\tB = 2\n)\n\nfunc f(x int) int {\n'
    + "".join(f"\tif x == {i} {{\n\t\treturn {i}\n\t}}\n" for i in range(7))
    + "\treturn 0\n}\n",
    "rust": "use a::{\n    b,\n};\n\nfn f(x: i32) -> i32 {\n    match x {\n"
    + "".join(f"        {i} => {{\n            {i}\n        }}\n" for i in range(7))
    + "        _ => 0,\n    }\n}\n",
}


def options(**values: Any) -> GrammarRepetitionOptions:
    return GrammarRepetitionOptions.model_validate({"language": "python", **values})


def fed(
    text: bytes, parameters: GrammarRepetitionOptions, tokenizer: PieceTokenizer, lengths: Sequence[int] = (3, 1, 5, 2)
) -> GrammarRepetitionState:
    # The vocabulary is complete before the state indexes it.
    ids = tokenizer.ids(split(text, [*lengths] * (len(text) // max(1, sum(lengths)) + 1)))
    state = GrammarRepetitionState(parameters, tokenizer, [0])
    for token in ids:
        state.advance(token)
    return state


def structure(hits: Sequence[Hit]) -> list[tuple[Any, ...]]:
    return [(h.level, h.container, h.period, h.copies, h.unit, h.context) for h in hits]


def words(text: str) -> list[bytes]:
    pieces: list[bytes] = []
    for line in text.splitlines(keepends=True):
        body = line.removesuffix("\n")
        blank = len(body) - len(body.lstrip())
        head, _, rest = body[blank:].partition(" ")
        pieces += [p.encode() for p in (body[:blank], head, " " + rest if rest else "", line[len(body) :]) if p]
    return pieces


def by_words(text: str, parameters: GrammarRepetitionOptions) -> tuple[GrammarRepetitionState, PieceTokenizer]:
    tokenizer = PieceTokenizer()
    ids = tokenizer.ids(words(text))
    state = GrammarRepetitionState(parameters, tokenizer, [0])
    for token in ids:
        state.advance(token)
    return state, tokenizer


def factors(state: GrammarRepetitionState) -> dict[int, float]:
    penalties = state.penalties()
    return {} if penalties is None else penalties.factors


# 1. Identity


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (PRINTS, {"lambda": 1.0}),
        (PRINTS, {"lambda": 1.0, "mode": "paper"}),
        (PRINTS, {"lambda": 1.0, "mode": "released", "language": "auto"}),
        (PRINTS, {"language": "auto"}),
        ("```brainfuck\n" + PRINTS, {"language": "auto"}),
        ("```\n" + PRINTS, {"language": "auto"}),
        ("```python\n" + PRINTS + "```\n", {"language": "auto"}),
        (PRINTS + "prin", {}),
        (PRINTS + "x = '''\n", {}),
        (PRINTS + "other = 1\n", {}),
    ],
)
def test_identity(text: str, values: dict[str, Any]) -> None:
    state, _ = by_words(text, options(**values))
    assert state.penalties() is None


def test_penalty_only_while_a_line_may_begin() -> None:
    tokenizer = PieceTokenizer([b"print", b"    ", b"x"])
    state = fed(PRINTS.encode(), options(tokens=False), tokenizer, [1])
    blank, word = tokenizer.ids([b"    ", b"x"])
    assert state.pending
    assert state.penalties() is not None
    state.advance(blank)
    assert state.penalties() is not None
    state.advance(word)
    assert not state.pending
    assert state.penalties() is None
    state.advance(tokenizer.ids([b"\n"])[0])
    assert state.penalties() is None  # the run is broken


# 2. Suffix only


def test_a_unit_that_differs_ends_the_penalty_and_one_more_raises_it() -> None:
    nine, ten = (by_words("".join(f"print({i})\n" for i in range(n)), options(tokens=False))[0] for n in (9, 10))
    assert (nine.hits[0].copies, ten.hits[0].copies) == (9, 10)
    assert min(factors(nine).values()) == 0.5**5
    assert min(factors(ten).values()) == 0.5**6
    broken, _ = by_words("".join(f"print({i})\n" for i in range(9)) + "x = 1\n", options(tokens=False))
    assert broken.hits == ()


# 4. and 5. Token borders, incremental parsing, forks


@pytest.mark.parametrize("language", sorted(SAMPLES))
@settings(max_examples=8, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), end=st.integers(1, 2000))
def test_hits_do_not_depend_on_token_borders(language: str, lengths: list[int], end: int) -> None:
    text = SAMPLES[language].encode()[:end]
    parameters = options(language=language, level="both", mode="paper")
    one = fed(text, parameters, PieceTokenizer(), [1])
    other = fed(text, parameters, PieceTokenizer(), lengths)
    assert structure(one.hits) == structure(other.hits)
    assert (one.pending, one.suspended) == (other.pending, other.suspended)


@pytest.mark.parametrize("language", sorted(SAMPLES))
def test_incremental_equals_from_scratch_at_every_line_end(language: str) -> None:
    lines = SAMPLES[language].encode().splitlines(keepends=True)
    levels = frozenset({"line", "statement"})
    block = CodeBlock(LANGUAGES[language], levels, 32)
    hits = 0
    for count, line in enumerate(lines, 1):
        block.add(line)
        block.refresh()
        fresh = CodeBlock(LANGUAGES[language], levels, 32)
        for earlier in lines[:count]:
            fresh.add(earlier)
        fresh.refresh()
        assert fresh.hits == block.hits
        hits += len(block.hits)
    assert hits or language in ("typescript", "cpp")


@pytest.mark.parametrize("language", sorted(SAMPLES))
def test_a_prompt_read_at_once_equals_one_line_by_line(language: str) -> None:
    text, tokenizer = (SAMPLES[language] * 3).encode(), PieceTokenizer()
    parameters = options(language=language)
    one_by_one = fed(text, parameters, tokenizer, [4])
    at_once = GrammarRepetitionState(parameters, tokenizer, [0, *tokenizer.ids(split(text, [4]))])
    assert structure(at_once.hits) == structure(one_by_one.hits)
    for token in tokenizer.ids(split(SAMPLES[language].encode(), [5])):
        at_once.advance(token)
        one_by_one.advance(token)
        assert structure(at_once.hits) == structure(one_by_one.hits)


LONG = {
    "python": ("class A:\n    def f(self):\n        if x:\n            y = [\n", "                (%d, 'a'),\n"),
    "javascript": ("const t = f(a, {\n  b: [\n", "    { c: %d },\n"),
    "c": ("#ifdef A\nint f(int x) {\n  switch (x) {\n", "    case %d: return g(x, 1);\n"),
    "cpp": ("namespace a {\nclass B : public C {\n public:\n", "  int f%d() const { return 1; }\n"),
    "java": ("class A {\n  void f() {\n    try {\n", "      g(%d);\n"),
    "go": ("package a\n\nfunc f() {\n\tfor {\n", "\t\tif err := g(%d); err != nil {\n\t\t\treturn\n\t\t}\n"),
    "rust": ("impl A for B {\n    fn f(&self) {\n        match self.x {\n", "            %d => g(),\n"),
    "typescript": ("export namespace A {\n  export interface B {\n", "    a%d?: string;\n"),
}


@pytest.mark.parametrize("language", sorted(LONG))
def test_long_runs_keep_their_symbols_and_context_beyond_the_window(language: str) -> None:
    """Only the last lines are parsed, under the headers of what encloses them: the run must not break there."""
    head, unit = LONG[language]
    block = CodeBlock(LANGUAGES[language], frozenset({"line"}), 32)
    for line in head.encode().splitlines(keepends=True):
        block.add(line)
    context = None
    for count in range(1, 201):
        for line in (unit.replace("%d", str(count))).encode().splitlines(keepends=True):
            block.add(line)
            block.refresh()
        if count > 1:
            hit = block.hits[0]
            context = context or hit.context
            assert (hit.period, hit.copies, hit.context) == (unit.count("\n"), count, context)
    assert context == {"python": "literals", "javascript": "literals", "typescript": "declarations"}.get(
        language, "code"
    )


@pytest.mark.parametrize("language", ["python", "javascript", "c"])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(cut=st.integers(0, 900), other=st.integers(0, 900))
def test_a_fork_goes_on_as_if_alone(language: str, cut: int, other: int) -> None:
    """Rollback of speculation: the original is not touched by its fork, and replay gives the same state."""
    text = SAMPLES[language].encode()
    tokenizer = PieceTokenizer(bytes([b]) for b in range(256))
    parameters = options(language=language, level="both", mode="paper")
    cut, other = min(cut, len(text)), min(other, len(text))
    trunk = fed(text[:cut], parameters, tokenizer, [1])
    branch = trunk.fork()
    for token in tokenizer.ids(split(text[other:], [1])):
        branch.advance(token)
    before = trunk.penalties()
    for token in tokenizer.ids(split(text[cut:], [1])):
        trunk.advance(token)
    straight = fed(text, parameters, tokenizer, [1])
    assert trunk.hits == straight.hits
    assert trunk.penalties() == straight.penalties()
    assert branch.hits == fed(text[:cut] + text[other:], parameters, tokenizer, [1]).hits
    assert before == fed(text[:cut], parameters, tokenizer, [1]).penalties()


# 6. What a line's symbol sees


def line_structure(text: str) -> list[tuple[Any, ...]]:
    return structure(by_words(text, options(mode="paper", level="line"))[0].hits)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x", "another_name"),
        (" 3:", " 12345:"),
        ("return", "\n    # a comment\n\n        return"),
        ("\n", "\r\n"),
    ],
)
def test_renaming_literals_comments_blank_lines_and_crlf_change_nothing(old: str, new: str) -> None:
    assert line_structure(ELIFS.replace(old, new)) == line_structure(ELIFS)


@pytest.mark.parametrize(
    ("old", "new"),
    [("== 9", ">= 9"), ("return 9", "yield 9"), ("        return 9", "         return 9"), ("return 9", "return 9, 9")],
)
def test_operators_keywords_indentation_and_arity_change_the_symbol(old: str, new: str) -> None:
    assert line_structure(ELIFS)[0][2:4] == (2, 9)
    assert line_structure(ELIFS.replace(old, new)) != line_structure(ELIFS)


# 7. Strings and comments


@pytest.mark.parametrize(
    ("language", "opening"), [("python", 's = """\n'), ("c", "/*\n"), ("javascript", "x = `\n"), ("rust", 'x = r#"\n')]
)
def test_nothing_inside_strings_and_comments(language: str, opening: str) -> None:
    text = opening + "print(1)\n" * 20
    for level in ("line", "statement"):
        state, _ = by_words(text, options(language=language, level=level, tokens=False))
        assert state.suspended
        assert state.hits == ()
        assert state.penalties() is None


# 8. and 9. What a penalty does


@pytest.mark.parametrize("scale", ["prob", "logit"])
def test_no_penalty_raises_a_logit_or_makes_it_infinite(scale: Any) -> None:
    logits = torch.tensor([3.0, 1e-3, 0.0, -1e-3, -5.0, -math.inf])
    for factor in (1.0, 0.5, 0.5**16, 1e-12):
        new = adjusted(logits, torch.full_like(logits, factor), scale)
        assert bool((new <= logits).all())
        assert torch.isneginf(new).tolist() == [False] * 5 + [True]
        assert not bool(new.isnan().any())
    if scale == "logit":
        assert adjusted(torch.tensor([-4.0]), torch.tensor([0.5]), scale).item() == -8.0


def test_penalty_is_monotone_in_copies_and_zero_up_to_the_threshold() -> None:
    smallest = []
    for count in range(1, 30):
        state, _ = by_words("".join(f"print({i})\n" for i in range(count)), options(tokens=False))
        smallest.append(min(factors(state).values(), default=1.0))
    assert smallest[:4] == [1.0] * 4
    assert smallest == sorted(smallest, reverse=True)
    assert smallest[4] == 0.5
    assert smallest[-1] == 0.5**16


def test_at_most_eight_observed_tokens() -> None:
    state, tokenizer = by_words("".join(f"name{i}(1)\n" for i in range(20)), options(tokens=False))
    penalised = {tokenizer.token_bytes(token) for token in factors(state)}
    assert penalised == {f"name{i}(1)".encode() for i in range(12, 20)}


def test_probability_space_commutes_with_a_shift_and_raw_does_not() -> None:
    logits, factor = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.5])
    torch.testing.assert_close(adjusted(logits + 7, factor, "prob"), adjusted(logits, factor, "prob") + 7)
    assert not torch.allclose(adjusted(logits + 7, factor, "raw"), adjusted(logits, factor, "raw") + 7)


# 11. Robustness


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    language=st.sampled_from(sorted(LANGUAGES)),
    data=st.one_of(
        st.binary(max_size=300), st.text(alphabet="{}()[];:=\"'`#/\\*\n\t ab1<>,é", max_size=300).map(str.encode)
    ),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9),
)
def test_any_bytes(language: str, data: bytes, lengths: list[int]) -> None:
    state = fed(data * 3, options(language=language, level="both", mode="paper"), PieceTokenizer(), lengths)
    for factor in factors(state).values():
        assert 0 < factor < 1


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    language=st.sampled_from(sorted(LANGUAGES)),
    data=st.text(alphabet="{}()[];:=\"'`#/\\*\n\t ab1<>,é", max_size=40).map(str.encode),
)
def test_any_long_text(language: str, data: bytes) -> None:
    """More lines than are parsed at once."""
    state = fed((data + b"\n") * 80, options(language=language, level="both", mode="paper"), PieceTokenizer(), [7])
    for factor in factors(state).values():
        assert 0 < factor < 1


@pytest.mark.parametrize(
    "text", [b"(" * 100_000 + b"\n", b"[\n" * 1000, b"x = 1; y = 2; z = 3\n" * 14_000, b"x" * 100_000 + b"\nx = 1\n"]
)
def test_oversized_texts_leave_only_the_token_detector(text: bytes) -> None:
    started = time.thread_time()
    tokenizer = PieceTokenizer()
    state = GrammarRepetitionState(options(), tokenizer, [0, *tokenizer.ids(split(text, [50]))])
    assert not state.pending
    assert state.hits == ()
    assert time.thread_time() - started < 5
    token = tokenizer.ids([b"z"])[0]
    for _ in range(20):
        state.advance(token)
    assert factors(state) == {token: 0.5**4}


def test_surrogates_and_unfinished_characters() -> None:
    state = fed(
        "é = 'é'\n".encode() * 6 + "\ud800\n".encode("utf-8", "surrogatepass"), options(), PieceTokenizer(), [1]
    )
    assert state.pending
    plain = fed("é = 'é'\n".encode() * 6, options(tokens=False), PieceTokenizer(), [1])
    assert [(h.period, h.copies) for h in plain.hits] == [(1, 6)]


# 12. Cost


def test_cost_does_not_grow_with_copies() -> None:
    """CPU time of the last of 700 copies against that of the 50th to 100th: a factor of 5 allows for noise."""
    tokenizer = PieceTokenizer()
    ids = tokenizer.ids(b"print(%d)\n" % i for i in range(700))
    state = GrammarRepetitionState(options(), tokenizer, [0])
    spent = []
    for token in ids:
        started = time.thread_time()
        state.advance(token)
        state.penalties()
        spent.append(time.thread_time() - started)
    assert sorted(spent[-100:])[50] < 5 * sorted(spent[50:100])[25]


# 13. and the pitfalls


def test_human_code_up_to_the_threshold_is_untouched() -> None:
    for language, text in SAMPLES.items():
        tokenizer = PieceTokenizer(bytes([b]) for b in range(256))
        state = GrammarRepetitionState(options(language=language, tokens=False), tokenizer, [0])
        for token in tokenizer.ids(split(text.encode(), [1])):
            state.advance(token)
            if state.hits and state.hits[0].copies <= 4:
                assert state.penalties() is None


def test_indentation_is_never_penalised() -> None:
    """The token with the first visible byte is, even if it has the blanks too."""
    state, tokenizer = by_words(ELIFS, options(tokens=False))
    assert {tokenizer.token_bytes(token).strip() for token in factors(state)} == {b"elif"}
    merged = fed(ELIFS.encode(), options(tokens=False), PieceTokenizer([b"    elif"]), [1])
    assert all(merged._tokenizer.token_bytes(token).strip() for token in factors(merged))


def test_tokens_that_end_and_begin_lines() -> None:
    """`):\\n` ends a line like any other; a token that goes on after the line end is judged before it is chosen."""
    tokenizer = PieceTokenizer()
    word, call, ended, jump, newline = tokenizer.ids([b"assert", b" x", b" x\n", b"\nassert", b"\n"])
    state = GrammarRepetitionState(options(tokens=False), tokenizer, [0])
    for token in [word, ended] * 6:
        state.advance(token)
    assert factors(state) == {word: 0.25, jump: 0.25}  # as a blank line and another copy, or just another copy
    state.advance(word)
    state.advance(call)
    assert not state.pending
    assert factors(state) == {jump: 0.125}
    state.advance(newline)
    assert factors(state) == {word: 0.125, jump: 0.125}


def test_two_hits_on_one_token_do_not_add_up() -> None:
    state, tokenizer = by_words(ELIFS, options(mode="paper", level="both"))
    assert len({hit.level for hit in state.hits}) == 2
    assert factors(state) == {tokenizer.ids([b"elif"])[0]: pytest.approx(0.9**9)}


def test_chat_prompts_do_not_count_but_completions_do() -> None:
    special = ("<|im_start|>", "<|im_end|>")
    tokenizer = PieceTokenizer(special=special)
    tokenizer.bos_token_id = None
    code = tokenizer.ids(words(PRINTS))
    few_shot = [
        0,
        *tokenizer.ids([b"user\n"]),
        *code,
        1,
        *tokenizer.ids([b"\n"]),
        0,
        *tokenizer.ids([b"assistant", b"\n"]),
    ]
    assert GrammarRepetitionState(options(), tokenizer, few_shot).penalties() is None
    assert GrammarRepetitionState(options(scope="all"), tokenizer, few_shot).penalties() is None  # another turn's
    assert GrammarRepetitionState(options(), tokenizer, code).penalties() is not None
    assert GrammarRepetitionState(options(scope="generated"), tokenizer, code).penalties() is None
    state = GrammarRepetitionState(options(scope="generated", tokens=False), tokenizer, code)
    for count in range(1, 7):
        for token in tokenizer.ids(words("print(f(1))\n")):
            state.advance(token)
        assert [hit.copies for hit in state.hits] == ([count] if count > 1 else [])


def test_fill_in_the_middle_counts_the_text_before_the_gap() -> None:
    tokenizer = PieceTokenizer(special=("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"))
    tokenizer.bos_token_id = None
    code, rest = tokenizer.ids(words(PRINTS)), tokenizer.ids([b"x = 1\n"])
    prefix_first = GrammarRepetitionState(options(), tokenizer, [0, *code, 1, *rest, 2])
    suffix_first = GrammarRepetitionState(options(), tokenizer, [0, 1, *rest, 2, *code])
    assert prefix_first.hits[0].copies == suffix_first.hits[0].copies == 12


def test_single_tokens_may_repeat_sixteen_times() -> None:
    tokenizer = PieceTokenizer()
    nine = tokenizer.ids([b"9"])[0]
    state = GrammarRepetitionState(options(), tokenizer, [0])
    for count in range(1, 20):
        state.advance(nine)
        assert factors(state) == ({} if count <= 16 else {nine: 0.5 ** (count - 16)})


def test_else_if_chains_are_seen_in_every_language() -> None:
    chains = {
        "javascript": "if (x == 0) {{ f(); }}{}\n",
        "typescript": "if (x == 0) {{ f(); }}{}\n",
        "java": "class A {{ void f() {{ if (x == 0) {{ f(); }}{}\n",
        "c": "int f() {{ if (x == 0) {{ f(); }}{}\n",
        "cpp": "int f() {{ if (x == 0) {{ f(); }}{}\n",
        "rust": "fn f() {{ if x == 0 {{ f(); }}{}\n",
        "go": "package a\n\nfunc f() {{\n\tif x == 0 {{ f(); }}{}\n",
    }
    for language, frame in chains.items():
        clause = " else if x == {i} {{ f(); }}" if language in ("go", "rust") else " else if (x == {i}) {{ f(); }}"
        text = frame.format("".join(clause.format(i=i) for i in range(5)))
        state, _ = by_words(text, options(language=language, level="statement", mode="paper"))
        found = [(h.container.split("_")[0], h.period, h.copies, h.unit[0][:2]) for h in state.hits]
        assert ("if", 1, 5, ("else", "if")) in found, (language, state.hits)


def test_fences_switch_the_language() -> None:
    text = "Some code:\n\n- one\n- two\n\n```js\n" + "f(1);\n" * 6
    state, tokenizer = by_words(text, options(language="auto", tokens=False))
    assert state.language == "javascript"
    assert factors(state) == {tokenizer.ids([b"f(1);"])[0]: 0.25}
    for token in tokenizer.ids(words("```\n\nprose\n")):
        state.advance(token)
    assert state.language is None
    assert state.penalties() is None
    for token in tokenizer.ids(words("~~~ {.py}\n" + "f(1);\n" * 3)):
        state.advance(token)
    assert state.language == "python"
    assert state.hits[0].copies == 3  # a new fence starts afresh
    named, tokenizer = by_words("```bash\n" + "f 1\n" * 9, options(language="python"))
    assert named.language is None


def test_language_off_has_only_the_token_detector() -> None:
    state, _ = by_words("a b\nc d\n" * 5, options(language="off"))
    assert state.hits == ()
    assert list(factors(state).values()) == [0.25]
    varied, _ = by_words(PRINTS, options(language="off"))
    assert varied.penalties() is None


def test_eos_is_raised_only_on_request() -> None:
    state, _ = by_words(PRINTS, options(eos_boost=1.25))
    assert factors(state)[1] == 1.25
    plain, _ = by_words(PRINTS, options())
    assert 1 not in factors(plain)
    quiet, _ = by_words("x = 1\n", options(eos_boost=1.25))
    assert quiet.penalties() is None


def test_released_mode_without_its_boost_and_special_tokens() -> None:
    for boost, expected in ((None, 1.25), (1.0, None)):
        values: dict[str, Any] = {"mode": "released"} | ({} if boost is None else {"eos_boost": boost})
        tokenizer = PieceTokenizer(strips_leading_space=True)
        ids = tokenizer.ids([b"import", b" a", b"\n", b"import", b" b", b"\n"])
        state = GrammarRepetitionState(GrammarRepetitionOptions.model_validate(values), tokenizer, ids)
        penalties = state.penalties()
        assert isinstance(penalties, Penalties)
        assert penalties.scale == "raw"
        assert penalties.factors.get(1) == expected
        fork = state.fork()
        fork.advance(ids[0])
        assert state.penalties() == penalties
        assert fork.penalties() is None


def test_special_tokens_are_no_text() -> None:
    state, _ = by_words(PRINTS, options(tokens=False))
    before = state.penalties()
    state.advance(1)
    assert state.pending
    assert state.penalties() == before
