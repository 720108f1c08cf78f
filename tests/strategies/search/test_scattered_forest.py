"""Scattered Forest Search and its baselines: a scripted model writes, the real sandbox runs."""

import asyncio
import json
from typing import Any

import psutil
import pytest
from program_bench import (
    BENCH,
    DOUBLE,
    FIRST,
    IDEAS,
    RIGHT,
    SECOND,
    TASK,
    TESTS,
    ZERO,
    Reply,
    asking,
    fenced,
    forest_of,
    made,
    opened,
    searched,
)
from scripted_coder import ASSISTANT, TOKENIZER, ScriptedCoder, code

from strategies.budget import Budget
from strategies.errors import DecodingError, InvalidRequest, ProgramsUnavailable
from strategies.runtime import StopConditions
from strategies.sandbox.outcome import SandboxUnavailable
from strategies.sandbox.sandbox import Sandbox
from strategies.search.asking import Reply as Answer
from strategies.search.attempt import drafted, key_of
from strategies.search.coding_search import CodingSearch
from strategies.search.program_prompts import STOCK
from strategies.search.program_replies import directions_of
from strategies.search.run import SearchRun

pytestmark = pytest.mark.usefixtures("program_bench")


def test_finds_the_passing_program() -> None:
    coder = forest_of([ZERO, FIRST], [SECOND, RIGHT, ZERO])
    reply = searched(coder, made(k=8, seeds=2))
    assert reply.texts == [fenced(RIGHT)]
    assert reply.reasons == [("stop", None)]
    assert reply.facts["stop_reason"] == "solved"
    assert reply.facts["verified"] == "given"
    assert reply.facts["solved_at"] == reply.facts["selected"] == 3
    assert reply.facts["programs"] == reply.facts["programs_run"] == 4
    assert reply.facts["programs_passed"] == 1
    assert reply.facts["tests"] == {"given": 6, "prompt": 0, "generated": 0}
    # The second seed has the larger value, then the first one has fewer visits.
    assert [node["parent_program"] for node in reply.programs] == [None, None, 1, 0]
    assert [node["direction"] for node in reply.programs] == [None, None, "use way 0", "use way 2"]
    kinds = [kind for kind, _ in coder.asked]
    assert kinds == ["seed", "seed", "directions", "code", "lessons", "directions", "code"]


def test_keeps_the_best_when_none_passes() -> None:
    reply = searched(forest_of([ZERO, FIRST], [SECOND, ZERO, code("return max(a, b)")]), made(k=5, seeds=2))
    assert reply.facts["stop_reason"] == "k"
    assert reply.facts["verified"] == "none"
    assert reply.texts == [fenced(code("return max(a, b)"))]
    assert reply.scores == [round(n / 6, 6) for n in (1, 2, 2, 1, 3)]
    assert reply.facts["programs_passed"] == 0


def test_prompts_carry_what_they_should() -> None:
    coder = forest_of([ZERO, FIRST], [SECOND, DOUBLE, RIGHT])
    searched(coder, made(k=8, seeds=2))
    first, second = coder.prompts("seed")
    assert TASK in first
    assert TASK in second
    assert first != second
    (directions, _) = coder.prompts("directions")
    assert "return a\n" in directions
    assert "failed: assert add(2, 3) == 5: got 2" in directions
    assert "passed: assert add(1, 0) == 1" in directions
    assert "Lessons so far:\nNone" in directions
    assert "change and nothing else: use way 0" in coder.prompts("code")[0]
    lessons = coder.prompts("lessons")[0]
    assert "from 0.33 to 0.33" in lessons
    assert "return b\n" in lessons
    assert "Lessons so far:\n- add both" in coder.prompts("directions")[1]


def test_official_stop_goes_on_until_a_pass_meets_the_solution() -> None:
    """Trace 2 of the vectors: the solved child is selected in the pass after the one that made it."""
    programs = [ZERO, code("return a + b if a < 2 else 0")]
    changed = [code("return a + b if a < 2 else 1"), RIGHT, ZERO]
    eager = searched(forest_of(programs, changed), made(k=7, seeds=2))
    official = searched(forest_of(programs, changed), made(k=7, seeds=2, stop="official"))
    assert eager.texts == official.texts == [fenced(RIGHT)]
    assert official.facts["stop_reason"] == "solved"
    visits = [[node["visits"] for node in reply.programs] for reply in (eager, official)]
    assert visits == [[1, 3, 1, 1], [1, 4, 1, 2]]
    never = searched(forest_of(programs, changed), made(k=7, seeds=2, stop="never"))
    assert never.texts == [fenced(RIGHT)]
    assert never.facts["programs"] == 7
    assert never.facts["stop_reason"] == "k"


def test_wave() -> None:
    """Several expansions at once, lessons once a wave."""
    changed = [SECOND, DOUBLE, code("return b + b"), code("return 1"), RIGHT]
    coder = forest_of([ZERO, FIRST, code("return 5")], changed)
    reply = searched(coder, made(k=20, seeds=3, wave=4))
    assert reply.texts == [fenced(RIGHT)]
    kinds = [kind for kind, _ in coder.asked]
    assert kinds[:3] == ["seed"] * 3
    assert kinds[3:6] == ["directions"] * 3
    assert kinds[6:10] == ["code"] * 4
    assert kinds[10] == "lessons"
    assert coder.prompts("lessons")[0].count("The change: ") == 4
    assert [node["parent_program"] for node in reply.programs][3:7] == [1, 2, 0, 1]


def test_replies_that_ignore_the_format() -> None:
    """No code block: asked again, then counted. No directions: stock ones. No lessons: the old ones stay."""
    coder = ScriptedCoder(
        seed=["I can't.", FIRST, "No.", "Still no."],
        code=["def add(a, b):\n    return b\n\nThat is all.", RIGHT],
        directions=["It is wrong."],
        lessons=[""],
    )
    # Prompts of a second try are those of the first, so the scripted model repeats itself: seed 1 stays unusable.
    reply = searched(coder, made(k=4, seeds=2))
    assert reply.texts == [fenced(RIGHT)]
    counts = reply.facts["replies"]
    assert counts["replies_without_program"] == 2
    assert counts["stock_directions"] == 2
    assert counts["replies_without_direction"] == 6
    assert counts["replies_without_lessons"] == 1
    assert reply.programs[0]["results"] == ["not_run"] * 6
    assert [node["direction"] for node in reply.programs][2:] == [STOCK[0], STOCK[0]]


def test_what_follows_a_program_is_not_generated() -> None:
    """Up to the first block's end, in all a token a character."""
    talk = RIGHT + "This adds both.\n```python\nprint(add(1, 2))\n```\n"
    reply = searched(forest_of([talk], [ZERO]), made(k=1))
    assert reply.texts == [fenced(RIGHT)]
    assert reply.programs[0]["reply_tokens"] == reply.facts["asked_tokens"] == len(RIGHT)
    assert reply.facts["replies"]["replies_without_program"] == 0


def test_an_opening_that_looks_like_an_end() -> None:
    """Words, then a block without a language: asked for once more, and read to its end."""
    plain = RIGHT.replace("```python", "```")
    reply = searched(forest_of([plain], [ZERO]), made(k=1))
    assert reply.texts == [fenced(RIGHT)]
    assert (reply.facts["asked"], reply.facts["replies"]["replies_without_program"]) == (2, 1)
    reply = searched(forest_of([plain.removeprefix("Sure.\n")], [ZERO]), made(k=1))
    assert (reply.texts, reply.facts["asked"]) == ([fenced(RIGHT)], 1)


def test_a_model_that_writes_no_directions_is_given_their_beginning() -> None:
    """The second question's reply begins with the words; the scripted model then goes on from there."""
    replies = ["```python\nprint(1)\n```", "............ add both"]
    coder = forest_of([FIRST], [RIGHT], directions=replies)
    reply = searched(coder, made(k=4, seeds=1))
    assert reply.programs[1]["direction"] == "add both"
    assert coder.prompts("directions")[1].endswith("<|assistant|>Direction 1:")
    assert reply.facts["replies"]["replies_without_direction"] == 1


@pytest.mark.parametrize(
    ("reply", "directions"),
    [
        ("1. Use a set.\n2) Sort first\n   and then loop.\n3. unused", ["Use a set.", "Sort first and then loop."]),
        ("```\n1. in code\n```\nNothing.", []),
        ("**Direction 1**: one\n**Direction 2:** two", ["one", "two"]),
    ],
)
def test_directions_of_small_models(reply: str, directions: list[str]) -> None:
    assert directions_of(reply, 2) == directions


def test_no_program_at_all() -> None:
    coder = ScriptedCoder(seed=["I can't do that."], directions=IDEAS, code=["Sorry."], lessons=[""])
    reply = searched(coder, made(k=3, seeds=1))
    assert reply.texts == ["I can't do that."]
    assert reply.facts["verified"] == "none"
    assert reply.facts["programs"] == 3
    assert reply.facts.get("programs_run", 0) == 0


SAME = "```python\n# the same\ndef add(a,b):\n    return a\n```"


def test_equal_programs_are_run_once() -> None:
    reply = searched(forest_of([FIRST], [SAME, RIGHT]), made(k=5, seeds=1))
    assert reply.facts["replies"]["duplicates"] == reply.facts["programs_duplicate"] == 1
    assert reply.facts["programs"] == 3
    assert reply.facts["programs_run"] == 2
    assert [node.get("duplicate_of") for node in reply.programs] == [None, 0, None]
    # At the same time too.
    reply = searched(forest_of([FIRST, SAME, ZERO, FIRST], [ZERO]), made(k=4, seeds=4, wave=4))
    assert [node.get("duplicate_of") for node in reply.programs] == [None, 0, None, 0]
    assert (reply.facts["programs_duplicate"], reply.facts["programs_run"]) == (2, 2)


def test_a_reply_that_is_cut_off_equals_no_program() -> None:
    """The same text, once cut off and once complete."""
    text = "def add(a, b):\n    return a"
    cut, whole, noted = (
        drafted(one) for one in (Answer(text, 9, "length"), Answer(text, 9, "stop"), Answer(f"{text}  # a", 12, "stop"))
    )
    assert (cut.source, whole.source) == (None, text + "\n")
    assert key_of(cut) != key_of(whole) == key_of(noted)


def test_a_child_that_is_its_parent_again_is_not_changed() -> None:
    """The seed's first child is the seed, its second is better: then passes go on below the second alone, although the
    first has fewer visits."""
    best = code("return max(a, b)")
    reply = searched(forest_of([FIRST], [SAME, best, ZERO, DOUBLE, code("return 3")]), made(k=7, seeds=1))
    assert reply.scores[:3] == [round(n / 6, 6) for n in (2, 2, 3)]
    assert [node["parent_program"] for node in reply.programs] == [None, 0, 0, 2, 2, 2, 2]
    assert [node["visits"] for node in reply.programs[:3]] == [7, 1, 5]


def test_without_a_tree_only_the_best_seed_is_changed() -> None:
    changed = [code("return max(a, b)"), ZERO, code("return max(b, a, 0)"), DOUBLE]
    reply = searched(forest_of([ZERO, FIRST], changed), made(k=6, seeds=2, tree=False))
    assert [node["parent_program"] for node in reply.programs] == [None, None, 1, 1, 1, 1]
    assert {node["level"] for node in reply.programs} == {1, 2}
    assert reply.texts == [fenced(changed[0])]
    tree = searched(forest_of([ZERO, FIRST], changed), made(k=6, seeds=2))
    assert {node["level"] for node in tree.programs} > {1, 2}


def test_generated_tests_are_vetted() -> None:
    written = """```python
assert add(1, 2) == 3
assert add(1, 2) == 3
assert add(2, 2) == 5
assert add(2, 2) == 4
assert other(1) == 1
assert add(add(1, 1), 1) == 3
assert add(0, 9) == 9, "nine"
```"""
    coder = forest_of([FIRST, RIGHT], [ZERO], tests=[written])
    reply = searched(coder, made(tests=[], k=4, seeds=2, entry_point="add"))
    assert reply.facts["tests"] == {"given": 0, "prompt": 0, "generated": 2}
    assert reply.facts["replies"]["tests_dropped"] == 5
    assert reply.facts["verified"] == "generated"
    assert reply.texts == [fenced(RIGHT)]
    assert "return" not in coder.prompts("tests")[0]


def test_examples_of_the_prompt_are_tests() -> None:
    task = "def add(a, b):\n    '''Adds.\n    >>> add(1, 2)\n    3\n    '''\n"
    coder = forest_of([FIRST, RIGHT], [ZERO])
    reply = searched(coder, made(tests=[], k=4, seeds=2), task=task)
    assert reply.facts["tests"] == {"given": 0, "prompt": 1, "generated": 0}
    assert reply.facts["verified"] == "prompt"
    assert reply.texts == [fenced(RIGHT)]
    # A given test that contradicts the example wins.
    given = [{"call": "add(1, 2)", "expected": "1"}]
    reply = searched(forest_of([RIGHT, FIRST], [ZERO]), made(tests=given, k=4, seeds=2), task=task)
    assert reply.facts["tests"] == {"given": 1, "prompt": 0, "generated": 0}
    assert reply.texts == [fenced(FIRST)]


def test_scripts() -> None:
    tests = [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "4 4\n", "stdout": "8\n"}]
    wrong = "```python\nprint(3)\n```"
    right = "```python\nprint(sum(map(int, input().split())))\n```"
    coder = forest_of([wrong], [right])
    reply = searched(coder, made(tests=tests, k=4, seeds=1), task="Read two numbers, print the sum.")
    assert reply.texts == [right]
    assert reply.scores == [0.5, 1.0]
    assert "reads standard input" in coder.prompts("seed")[0]


def test_forged_statements_are_not_trusted() -> None:
    """A test that had to run inside is passed by raising nothing, so it does not make an answer verified."""
    tests = [{"assert": "assert add(object(), 1) is not None"}]
    reply = searched(forest_of([FIRST], [ZERO]), made(tests=tests, k=2, seeds=1))
    assert reply.facts["programs_passed"] == 1
    assert reply.facts["verified"] == "none"


def test_seeds_repeat_and_differ() -> None:
    def run(seed: int) -> Reply:
        return searched(forest_of([ZERO, FIRST], [SECOND, DOUBLE, ZERO]), made(k=6, seeds=2), seed=seed)

    first, again, other = run(1), run(1), run(2)
    assert first.texts == again.texts
    assert json.dumps(first.facts["tree"]) == json.dumps(again.facts["tree"])
    assert other.facts["programs"] == 6


def test_themes_depend_on_the_seed() -> None:
    def themes(seed: int, **parameters: Any) -> list[str]:
        coder = forest_of([RIGHT], [RIGHT])
        searched(coder, made(k=3, seeds=3, **parameters), seed=seed)
        return [prompt.partition(TASK)[2] for prompt in coder.prompts("seed")]

    own = {"themes": ["one", "two", "three"]}
    assert len(themes(1)) == 3
    assert themes(1) != themes(2)
    assert {theme.partition("<|end|>")[0].strip() for theme in themes(1, **own)} == {"one", "two", "three"}
    assert len(themes(1, themes="none")) == 1


def test_n_answers_are_distinct() -> None:
    reply = searched(forest_of([ZERO, FIRST], [SECOND, RIGHT]), made(k=8, seeds=2, final="official"), n=3)
    assert reply.texts == [fenced(RIGHT), fenced(FIRST), fenced(SECOND)]


def test_programs_that_behave_alike_outvote_a_shorter_one() -> None:
    """Three programs pass as many tests; two of them, textually different, return the same values."""
    alike = [code("return a if True else 1"), code("return a if a == a else 2")]
    reply = searched(forest_of([SECOND, *alike], [ZERO]), made(k=3, seeds=3))
    assert reply.scores == [round(2 / 6, 6)] * 3
    assert reply.texts == [fenced(alike[0])]
    official = searched(forest_of([SECOND, *alike], [ZERO]), made(k=3, seeds=3, final="official"))
    assert official.texts == [fenced(SECOND)]


def test_raw_format_and_client_stop() -> None:
    reply = searched(forest_of([RIGHT], [ZERO]), made(k=1, format="raw"))
    assert reply.texts == ["def add(a, b):\n    return a + b\n"]
    stopping = StopConditions(max_tokens=1000, stop=("return",))
    reply = searched(forest_of([RIGHT], [ZERO]), made(k=1, format="raw"), stopping=stopping)
    assert reply.texts == ["def add(a, b):\n    "]
    assert reply.reasons == [("stop", "return")]


def test_a_program_that_is_cut_off_counts_as_none() -> None:
    """At max_tokens a block that is not closed is no program; the answer says that it was cut."""
    reply = searched(forest_of([RIGHT], [RIGHT]), made(k=2, seeds=1), max_tokens=30)
    assert reply.texts == [RIGHT[:30]]
    assert reply.reasons == [("length", None)]
    assert reply.facts["programs"] == 2


@pytest.mark.parametrize(
    "budget",
    [Budget(forward_tokens=1500), Budget(output_tokens=130), Budget(flops=6e5)],
    ids=["forward_tokens", "output_tokens", "flops"],
)
def test_budgets_end_the_search(budget: Budget) -> None:
    """The best program so far is the answer, and the budget holds."""
    (unit,) = [name for name in ("forward_tokens", "output_tokens", "flops") if getattr(budget, name) is not None]
    reply = searched(forest_of([ZERO, FIRST], [SECOND, ZERO]), made(k=40, seeds=2), budget=budget)
    spend = reply.meter.spend
    assert reply.meter.exhausted == unit == reply.facts["stop_reason"]
    assert reply.facts["programs"] < 40
    spent = {"forward_tokens": spend.target_tokens, "output_tokens": spend.output_tokens, "flops": spend.flops}
    assert spent[unit] <= getattr(budget, unit)
    assert reply.texts[0] in [fenced(FIRST), fenced(SECOND)]


def test_seconds_end_a_program_too() -> None:
    """A program that never ends is killed when the request's time is over."""
    endless = code("while True: pass")
    search = made(k=3, seeds=1, sandbox={"test_s": 5.0})
    reply = searched(forest_of([endless], [ZERO]), search, budget=Budget(seconds=3.0))
    assert reply.meter.exhausted == "seconds" == reply.facts["stop_reason"]
    assert reply.texts == [fenced(endless)]
    assert reply.facts.get("programs_run", 0) == 0


def test_cancelling_leaves_no_process() -> None:
    endless = code("while True: pass")
    coder = forest_of([endless], [ZERO])

    async def whole(runtime: Any) -> None:
        before = set(psutil.Process().children(recursive=True))
        sandbox = await opened()
        run = SearchRun(
            made(k=3, seeds=1), runtime, asking(TASK, 1000, None, 1), sandbox=sandbox, prompt_text=TASK, question=TASK
        )
        for _ in range(600):
            await asyncio.sleep(0.05)
            if any(map(busy, fresh(before))):
                break
        else:
            pytest.fail("the program did not start")
        run.cancel()
        with pytest.raises(DecodingError):
            async for _ in run.streams[0]:
                pass
        for _ in range(60):  # a test has 5 s
            await asyncio.sleep(0.05)
            if not any(map(busy, fresh(before))):
                break
        else:
            pytest.fail("the program goes on")
        await sandbox.close()
        assert not fresh(before)

    def fresh(before: set[psutil.Process]) -> set[psutil.Process]:
        """Processes below this one that were not there before: other tests' servers may be."""
        return set(psutil.Process().children(recursive=True)) - before

    def busy(process: psutil.Process) -> bool:
        try:
            return process.cpu_times().user > 0.3
        except psutil.NoSuchProcess:
            return False

    with coder.serving() as runtime:
        BENCH.runner.run(whole(runtime))


def test_puct_prefers_likely_directions() -> None:
    reply = searched(forest_of([ZERO, FIRST], [SECOND, RIGHT]), made(k=8, seeds=2, selection="puct"))
    assert reply.texts == [fenced(RIGHT)]


def test_best_of_n() -> None:
    coder = ScriptedCoder(seed=[FIRST])
    reply = searched(coder, made("code-best-of-n", k=5, wave=2))
    assert reply.facts["programs"] == 5
    assert reply.facts["programs_run"] == 1
    assert reply.texts == [fenced(FIRST)]
    assert searched(ScriptedCoder(seed=[RIGHT]), made("code-best-of-n", k=5)).facts["programs"] == 1


def test_line() -> None:
    """Each program is rewritten from the one before, with what the model said of it."""
    programs = {"seed": [FIRST], "code": [code("return max(a, b)"), ZERO], "reflection": ["It forgets b.", "Hm."]}
    coder = ScriptedCoder(**programs)
    reply = searched(coder, made("code-line", k=3))
    assert [kind for kind, _ in coder.asked] == ["seed", "reflection", "code", "reflection", "code"]
    assert "It forgets b." in coder.prompts("code")[0]
    assert reply.texts == [fenced(ZERO)]
    assert searched(ScriptedCoder(**programs), made("code-line", k=3, submit="best")).texts == [
        fenced(code("return max(a, b)"))
    ]
    solved = searched(ScriptedCoder(seed=[FIRST], code=[RIGHT], reflection=["Hm."]), made("code-line", k=9))
    assert solved.facts["programs"] == 2


def test_tree() -> None:
    """A node has all its children before a pass goes below it."""
    changed = [SECOND, code("return max(a, b)"), DOUBLE, RIGHT]
    coder = ScriptedCoder(seed=[ZERO], code=changed)
    # Equal prompts of siblings get equal replies of this model: the second child repeats the first one.
    reply = searched(coder, made("code-tree", k=8))
    parents = [node["parent_program"] for node in reply.programs[1:]]
    assert parents[:4] == [0, 0, 1, 2]
    assert reply.facts["stop_reason"] in ("solved", "k")


def test_greedy_runs_nothing() -> None:
    reply = searched(ScriptedCoder(seed=[FIRST]), made("code-greedy"))
    assert reply.texts == [fenced(FIRST)]
    assert reply.facts["programs"] == reply.facts["programs_run"] == 0


@pytest.mark.parametrize(
    ("parameters", "task", "field"),
    [
        ({"tests": []}, "Write a program.", "entry_point"),
        ({"tests": [{"assert": "assert sub(1) == 1"}], "entry_point": "add"}, TASK, "tests[0]"),
        ({"tests": [{"assert": "assert add(1"}], "entry_point": "add"}, TASK, "tests[0]"),
        ({"tests": [{"call": "add(1, 2)", "expected": "3 +"}], "entry_point": "add"}, TASK, "tests[0]"),
    ],
)
def test_refusals(parameters: dict[str, Any], task: str, field: str) -> None:
    coder = forest_of([RIGHT], [ZERO])
    with pytest.raises(InvalidRequest) as caught:
        searched(coder, made(**parameters), task=task)
    assert coder.asked == []
    assert caught.value.param == f"decoding.search.{field}"


@pytest.mark.parametrize(
    "parameters",
    [
        {"k": 0},
        {"seeds": 129},
        {"tree": False, "selection": "puct"},
        {"tree": False, "c": 1.0},
        {"tree": False, "stop": "official"},
        {"tests": [{"assert": "assert f()"}, {"stdin": "", "stdout": ""}]},
        {"tests": [{"assert": "assert f()", "call": "f()"}]},
        {"tests": [{"assert": "assert f()"}] * 65},
        {"tests": [{"assert": "assert f() #" + "x" * 16384}]},
        {"tests": [{"stdin": "", "stdout": ""}], "entry_point": "f"},
        {"entry_point": "no name"},
        {"themes": "other"},
        {"sandbox": {"backend": "process"}},
        {"wave": 33},
    ],
)
def test_bad_parameters(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        made(**parameters)


def test_the_model_is_never_shown_the_chat() -> None:
    """Each question is a conversation of its own."""
    coder = forest_of([RIGHT], [ZERO])
    searched(coder, made(k=1))
    (prompt,) = coder.prompts("seed")
    assert prompt.startswith("<|system|>")
    assert prompt.endswith(TOKENIZER.SPECIAL[ASSISTANT - 256])


class Broken:
    """A sandbox that fails by itself, whatever it is given."""

    def __init__(self, real: Sandbox) -> None:
        self.backend, self.limits = real.backend, real.limits

    async def run(self, program: object, checks: object, limits: object) -> None:
        raise SandboxUnavailable("the sandbox failed twice in a row")


def test_a_sandbox_that_fails_is_no_result_of_a_program() -> None:
    real = BENCH.sandbox
    assert real is not None
    BENCH.sandbox = Broken(real)  # type: ignore[assignment]
    try:
        with pytest.raises(ProgramsUnavailable, match="twice in a row"):
            searched(forest_of([RIGHT], [ZERO]), made(k=2))
    finally:
        BENCH.sandbox = real


WRONG_TEST = ["```\nassert add(2, 2) == 5\nassert add(5, 0) == 5\n```"]


def suspecting(**changes: Any) -> CodingSearch:
    fields = {"tests": TESTS[2:3], "generate_tests": "fill", "n_tests": 3, "k": 4, "seeds": 2}
    return made(**fields, **changes)


def test_a_generated_test_that_trusted_programs_contradict_is_dropped() -> None:
    coder = forest_of([RIGHT, code("return b + a")], [RIGHT], tests=WRONG_TEST)
    reply = searched(coder, suspecting(suspect_tests=True))
    assert reply.scores == [1.0, 1.0]
    assert reply.facts["tests"] == {"given": 1, "prompt": 0, "generated": 1}
    assert reply.facts["replies"]["tests_suspected"] == 1
    assert (reply.facts["stop_reason"], reply.facts["programs_passed"]) == ("solved", 2)
    coder = forest_of([RIGHT, code("return b + a")], [RIGHT], tests=WRONG_TEST)
    reply = searched(coder, suspecting())
    assert reply.facts["stop_reason"] == "k"
    assert set(reply.scores) == {round(2 / 3, 6)}


def test_programs_that_fail_a_given_test_suspect_nothing() -> None:
    coder = forest_of([ZERO, code("return a * 0")], [code("return b * 0")], tests=WRONG_TEST)
    reply = searched(coder, suspecting(suspect_tests=True))
    assert reply.facts["tests"]["generated"] == 2


def test_one_program_written_twice_is_one_witness() -> None:
    reply = searched(forest_of([RIGHT], [RIGHT], tests=WRONG_TEST), suspecting(suspect_tests=True))
    assert reply.facts["tests"]["generated"] == 2


def test_a_full_trace_tells_events_as_they_happen() -> None:
    coder = forest_of([FIRST], [ZERO, RIGHT])
    search = made(k=5, seeds=1)

    async def events(runtime: Any) -> list[dict[str, Any]]:
        generation = asking(TASK, 1000, None, 7)
        run = SearchRun(search, runtime, generation, sandbox=BENCH.sandbox, prompt_text=TASK, question=TASK)
        return [record async for delta in run.streams[0] for record in delta.trace or ()]

    with coder.serving() as runtime:
        told = BENCH.runner.run(events(runtime))
    own = [record for record in told if record["event"] not in ("node", "note")]
    kinds = [record["event"] for record in own]
    assert kinds == ["tests", "program", "directions", "program", "lessons", "program", "summary"]
    assert [one["origin"] for one in own[0]["tests"]] == ["given"] * 6
    assert own[1] == {"event": "program", "program": 0, "score": round(2 / 6, 6), "passed": 2, "of": 6, "solved": False}
    assert own[2] == {"event": "directions", "program": 0, "directions": ["use way 0", "use way 1"]}
    assert own[4]["lessons"] == "- add both"
    assert own[5]["solved"]
