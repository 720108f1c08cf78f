"""Through the whole engine, speculation changes no distribution: chi-square of short continuations against exact laws.

The target and the draft are small Markov models that differ in every row and in their supports. All methods and
pipelines run in the same batches; every pair is compared by itself, and what it has in common with others is added up:
a method over all pipelines, a pipeline over all methods. False alarms: fewer than 100 p-values at 1e-9, 1e-7 in all;
the noise is a function of the seeds, so a version that passes passes always. The controls show that wrong rules and
wrong contexts are seen by the same test with as many samples.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import pytest
import torch
from speculating_engine import METHODS, SpeculatingEngine, rsd_c, shape_name
from stepped_engine import END, check_slots
from torch import Tensor

from models.scripted import ByteTokenizer, Distribution
from models.torch_runtime.speculation import Round
from strategies.runtime import Generation, SamplingParameters, StopConditions
from strategies.sampling.bans import AllowedTokenIds, BadWords
from strategies.sampling.bregman.transform import Bregman
from strategies.sampling.pipeline import process
from strategies.sampling.row import Row
from strategies.sampling.standard import sampling
from strategies.sampling.structured import compile_structure
from strategies.sampling.structured_grammar import Regex
from strategies.sampling.typical import TypicalP
from strategies.sampling.xtc import ExcludeTopChoices, coin
from strategies.speculative.gumbel_top_k import ConstantBranching
from strategies.speculative.method import Method
from strategies.speculative.rejection import Trials, with_replacement, without_replacement
from strategies.speculative.speculation import RecursiveConstant, Speculation

SMALLEST_P = 1e-9
REPEATS = 30
A, B, C, D = b"abcd"
TOKENIZER = ByteTokenizer()
VOCAB = TOKENIZER.vocab_size
Outcome = tuple[int, ...]


def markov(rows: dict[int, Sequence[float]]) -> Distribution:
    """Probabilities of (a, b, c, end) after each last token, as logits."""
    table = {}
    for last, probabilities in rows.items():
        logits = torch.full((VOCAB,), float("-inf"))
        logits[[A, B, C, END]] = torch.tensor(probabilities).log()
        table[last] = logits
    return lambda context: table[context[-1]].clone()


TARGET = markov(
    {
        A: [0.35, 0.25, 0.25, 0.15], B: [0.10, 0.55, 0.30, 0.05], C: [0.45, 0.00, 0.35, 0.20],
        D: [0.25, 0.40, 0.05, 0.30],
        END: [1.0, 0.0, 0.0, 0.0],
    }
)  # fmt: skip
DRAFT = markov(
    {
        A: [0.10, 0.60, 0.25, 0.05], B: [0.45, 0.15, 0.10, 0.30], C: [0.20, 0.45, 0.35, 0.00],
        D: [0.40, 0.00, 0.35, 0.25],
        END: [1.0, 0.0, 0.0, 0.0],
    }
)  # fmt: skip
SHARP_DRAFT = markov({last: [0.02, 0.90, 0.06, 0.02] for last in (A, B, C, D, END)})
SPARSE_DRAFT = markov({last: [0.0, 1.0, 0.0, 0.0] for last in (A, B, C, D, END)})


@cache
def pipelines() -> dict[str, tuple[SamplingParameters, StopConditions]]:
    ends = StopConditions(max_tokens=3)
    regex = compile_structure(Regex("(a|b[bc]|cc?)+"), TOKENIZER)
    return {
        "none": (sampling(), ends),
        "temperature": (sampling(temperature=0.6), ends),
        "top_p": (sampling(temperature=1.2, top_p=0.7), ends),
        "typical": (sampling(transforms=[TypicalP(mass=0.6)]), ends),
        "xtc": (sampling(transforms=[ExcludeTopChoices(threshold=0.2, probability=0.6)]), ends),
        "bregman": (sampling(temperature=0.9, transforms=[Bregman(alpha=2.0, k=2)]), ends),
        "penalties": (sampling(repetition_penalty=1.3, frequency_penalty=2.0, presence_penalty=2.0), ends),
        "bias": (sampling(logit_bias={A: 1.2, C: -1.5}), ends),
        "bans": (
            sampling(transforms=[AllowedTokenIds(ids=(A, C, END)), BadWords(sequences=((A, A), (B,)))]),
            StopConditions(max_tokens=3, min_tokens=2),
        ),
        "structure": (sampling(transforms=[regex]), ends),
    }


def requests(
    pipeline: str, speculation: Speculation | None, repeats: int = REPEATS, first_seed: int = 0
) -> list[Generation]:
    """Prompts hold every letter pair, so that look-up always finds something. What is added up needs seeds of its own:
    the first token is plain decoding's, so equal seeds have it in common."""
    parameters, stopping = pipelines()[pipeline]
    prompt = [A, B, C, A, C, B, A, D]
    return [
        Generation(prompt[: 5 + seed % 4], parameters, stopping, seed=seed, speculation=speculation)
        for seed in range(first_seed, first_seed + repeats)
    ]


_LAWS: dict[object, dict[Outcome, float]] = {}


def exact_law(pipeline: str, generation: Generation) -> dict[Outcome, float]:
    """Law of the tokens of plain decoding, by enumeration. XTC tosses coins that only the seed decides."""
    row = Row(generation, frozenset({END}), TOKENIZER)
    coins = []
    if pipeline == "xtc":
        for length in range(3):
            ahead = row.fork()
            ahead.output = [A] * length
            coins.append(coin(ahead) < 0.6)
    key = (pipeline, tuple(generation.prompt), tuple(coins))
    if key not in _LAWS:
        _LAWS[key] = dict(_continue(generation, row, (), 1.0))
    return _LAWS[key]


def _continue(generation: Generation, row: Row, output: Outcome, mass: float) -> Iterator[tuple[Outcome, float]]:
    stopping = generation.stopping
    if len(output) == stopping.max_tokens or (output and output[-1] == END and len(output) > stopping.min_tokens):
        yield output, mass
        return
    logits = process(TARGET([*generation.prompt, *output])[None], [row])
    probabilities = logits[0].double().softmax(-1)
    for token in probabilities.nonzero()[:, 0].tolist():
        after = row.fork()
        after.append(token)
        yield from _continue(generation, after, (*output, token), mass * float(probabilities[token]))


def run(generations: Sequence[Generation], draft: Distribution = DRAFT, max_num_seqs: int = 150) -> list[Outcome]:
    engine = SpeculatingEngine(
        TARGET, {"draft": draft}, max_num_seqs=max_num_seqs, max_num_batched_tokens=1500, max_model_len=32
    )
    answers = [engine.submit(generation) for generation in generations]
    while engine.engine.step():
        pass
    check_slots(engine.scheduler)
    assert engine.leaked == 0
    assert all(answer.ended and answer.error is None for answer in answers)
    return [tuple(answer.tokens) for answer in answers]


def chi_square(observed: Counter[Outcome], expected: dict[Outcome, float]) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; rare cells are pooled, an impossible outcome is infinite.

    Generations of different laws, as XTC's coins make them, only make it smaller.
    """
    assert sum(observed.values()) == pytest.approx(sum(expected.values()))
    if observed.keys() - expected.keys():
        return float("inf"), 1
    cells = [(observed[key], mass) for key, mass in expected.items() if mass >= 6]
    rare = [(observed[key], mass) for key, mass in expected.items() if mass < 6]
    if sum(mass for _, mass in rare) >= 6:
        cells.append((sum(o for o, _ in rare), sum(mass for _, mass in rare)))
    return sum((o - mass) ** 2 / mass for o, mass in cells), max(1, len(cells) - 1)


def p_value(statistic: float, freedom: int) -> float:
    if statistic == float("inf"):
        return 0.0
    return float(torch.special.gammaincc(torch.tensor(freedom / 2.0).double(), torch.tensor(statistic / 2.0).double()))


def expected_counts(pipeline: str, generations: Sequence[Generation]) -> dict[Outcome, float]:
    expected: dict[Outcome, float] = {}
    for generation in generations:
        for outcome, mass in exact_law(pipeline, generation).items():
            expected[outcome] = expected.get(outcome, 0.0) + mass
    return expected


def compare(pipeline: str, generations: Sequence[Generation], outcomes: Sequence[Outcome]) -> float:
    """p-value of outcomes of one pipeline."""
    return p_value(*chi_square(Counter(outcomes), expected_counts(pipeline, generations)))


Pair = tuple[str, str]


@pytest.fixture(scope="module")
def outcomes() -> dict[Pair, tuple[list[Generation], list[Outcome]]]:
    """Generations and their tokens, by method and pipeline; one generation in seven doesn't speculate."""
    methods: tuple[Speculation | None, ...] = (*METHODS, None)
    pairs = [(name, method) for name in pipelines() for method in methods]
    order = [
        (shape_name(method), name, generation)
        for i, (name, method) in enumerate(pairs)
        for generation in requests(name, method, first_seed=i * REPEATS)
    ]
    order.sort(key=lambda item: item[2].seed % REPEATS)  # every batch mixes all pairs
    made: dict[Pair, tuple[list[Generation], list[Outcome]]] = {}
    for (method, name, generation), tokens in zip(order, run([item[2] for item in order]), strict=True):
        generations, found = made.setdefault((method, name), ([], []))
        generations.append(generation)
        found.append(tokens)
    return made


Outcomes = dict[Pair, tuple[list[Generation], list[Outcome]]]


@pytest.mark.parametrize("method", [*METHODS, None], ids=shape_name)
def test_every_method_has_the_targets_law(method: Speculation | None, outcomes: Outcomes) -> None:
    """In each pipeline, and over all of them. Plain decoding too: the yardstick itself."""
    total, freedom = 0.0, 0
    for name in pipelines():
        generations, found = outcomes[shape_name(method), name]
        statistic, cells = chi_square(Counter(found), expected_counts(name, generations))
        assert p_value(statistic, cells) > SMALLEST_P, name
        total, freedom = total + statistic, freedom + cells
    assert p_value(total, freedom) > SMALLEST_P


@pytest.mark.parametrize("pipeline", pipelines())
def test_every_pipeline_has_the_targets_law(pipeline: str, outcomes: Outcomes) -> None:
    """Over all speculating methods together."""
    generations, found = [], list[Outcome]()
    for method in METHODS:
        more, tokens = outcomes[shape_name(method), pipeline]
        generations += more
        found += tokens
    assert len(set(found)) > 3, "the law says nothing"
    assert compare(pipeline, generations, found) > SMALLEST_P


@pytest.mark.parametrize("speculation", [*METHODS[:2], *METHODS[3:5]], ids=shape_name)
def test_a_draft_that_is_sure_of_a_token_changes_nothing(speculation: Speculation) -> None:
    """Its support is one token, fewer than the tree is wide, and the target may exclude it."""
    generations = requests("none", speculation, 80)
    assert compare("none", generations, run(generations, SPARSE_DRAFT)) > SMALLEST_P


class WrongRule(ConstantBranching):
    """RSD-C with another acceptance rule."""

    def __init__(self, branching: tuple[int, ...], wrong: Callable[..., Trials]) -> None:
        super().__init__(branching)
        object.__setattr__(self, "wrong", wrong)

    def rule(self, *arguments: Tensor | None, **options: Tensor | None) -> Trials:
        return self.wrong(*arguments, **options)  # type: ignore[attr-defined, no-any-return]


def without_residual(logprobs: Tensor, probs: Tensor, tokens: Tensor, uniforms: Tensor | None = None) -> Trials:
    """After the last refusal the target itself is drawn from."""
    return Trials(without_replacement(logprobs, probs, tokens, uniforms).accept, probs)


@pytest.mark.parametrize(("wrong", "branching"), [(with_replacement, (2, 2)), (without_residual, (1, 1))])
def test_a_wrong_rule_is_found_out(wrong: Callable[..., Trials], branching: tuple[int, ...]) -> None:
    """The negative control: a method that is right but for its rule (the draft's probabilities not renormalised after a
    draw; the residual left out), with as many samples as a method has."""

    class Wrong(RecursiveConstant):
        def method(self, length: int) -> Method:
            return WrongRule(self.branching[:length], wrong)

    generations = requests("none", Wrong(branching=branching), 48 * REPEATS)
    assert compare("none", generations, run(generations, SHARP_DRAFT)) < SMALLEST_P
    right = requests("none", rsd_c(*branching), 2 * REPEATS)
    assert compare("none", right, run(right, SHARP_DRAFT)) > SMALLEST_P


def test_a_context_that_forgets_the_tree_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the pipelines: every node is penalised as if it were the root."""

    def grow(self: Round) -> None:
        self.rows += [self.rows[0]] * (len(self.tree.tokens) - len(self.rows))

    monkeypatch.setattr(Round, "grow_rows", grow)
    generations = requests("penalties", rsd_c(2, 2), 10 * REPEATS)
    assert compare("penalties", generations, run(generations)) < SMALLEST_P
