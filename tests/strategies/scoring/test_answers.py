"""Finding answers: every rule on what models really write, and on what is meant to hurt."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.errors import InvalidRequest
from strategies.scoring.answer_pattern import AnswerPattern
from strategies.scoring.answers import AnswerRule, choice_letter, extract, is_final_step, last_boxed

SEARCHED = settings(max_examples=300, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("text", "raw", "rule", "canonical"),
    [
        # boxed
        (r"so \boxed{\text{(B)}}", r"\text{(B)}", "boxed", "b"),
        (r"\boxed {5}", "5", "boxed", "5"),
        (r"\boxed{\{1,2\}} done", r"\{1,2\}", "boxed", r"\{1,2\}"),
        (r"\boxed{a_{n+1}}", "a_{n+1}", "boxed", "a_{n+1}"),
        (r"\boxed{4} and then \boxed{5", "4", "boxed", "4"),
        (r"\boxed{} so 12", "12", "last_number", "12"),
        (r"{ \boxed{3}", "3", "boxed", "3"),
        (r"\boxed{-7}", "-7", "boxed", "-7"),
        (r"\boxed{2\sqrt3}", r"2\sqrt3", "boxed", r"2\sqrt{3}"),
        # hash
        ("#### $1,234.50 ", "1,234.50", "hash", "2469/2"),
        ("#### 3\n#### 4\n", "4", "hash", "4"),
        ("####\nso 6", "6", "last_number", "6"),
        # phrase
        ("The answer is **42**.", "42", "phrase", "42"),
        ("**Answer:** 7", "7", "phrase", "7"),
        ("The final answer is: $\\frac{1}{2}$.", r"\frac{1}{2}", "phrase", "1/2"),
        ("The answer is 12 apples because 3 times 4 is 12.", "12 apples", "phrase", "12"),
        ("The answer is 3. Wait, the answer is 5. Done", "5", "phrase", "5"),
        ("The answer is:\n\n42", "42", "phrase", "42"),
        ("Answer = 3.5. Check: 7/2", "3.5", "phrase", "7/2"),
        ("答案是：42。", "42", "phrase", "42"),
        ("The answers are 3 and 5.", "3 and 5", "phrase", "3 and 5"),
        # last number
        ("It is 3/4 of it", "3/4", "last_number", "3/4"),
        ("It costs -$5 then", "-5", "last_number", "-5"),
        ("10-5", "5", "last_number", "5"),
        ("3 - 5 = -2", "-2", "last_number", "-2"),
        ("about $1,234,567.", "1,234,567", "last_number", "1234567"),
        ("gives .5", ".5", "last_number", "1/2"),
        (r"it is \frac{3}{4}", r"\frac{3}{4}", "last_number", "3/4"),
        ("１２ 个", "12", "last_number", "12"),
        ("version 1.2.3", "3", "last_number", "3"),
        ("on 1/2/2020", "2020", "last_number", "2020"),
        ("", None, None, None),
        ("no idea", None, None, None),
    ],
)
def test_default_rules(text: str, raw: str | None, rule: str | None, canonical: str | None) -> None:
    answer = extract(text)
    assert (answer.raw, answer.rule, answer.canonical) == (raw, rule, canonical)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (B).", "B"),
        ("The answer is B because the rest fail", "B"),
        ("the answer is c", "C"),
        ("Answer: **D**", "D"),
        ("Answer: option C", "C"),
        (r"so \boxed{\text{C}}", "C"),
        (r"\boxed{A) 12}", "A"),
        ("(A) is wrong, (B) is right", "B"),
        ("Let me see.\nC", "C"),
        ("C) 12 apples", None),
        ("The answer is a cat", None),
        ("The answer is A cat", None),
        ("The answer is A.", "A"),
        ("The answer is I think (C)", "C"),
        ("The answer is Banana", None),
        ("The answer is X", None),
        ("答案是：B", "B"),
        ("none", None),
    ],
)
def test_choice_letters(text: str, letter: str | None) -> None:
    assert choice_letter(text) == letter
    assert extract(text, ("choice",)).canonical == (None if letter is None else letter.lower())


def test_only_the_choices_that_there_are_count() -> None:
    assert choice_letter("The answer is E", "ABCD") is None
    assert choice_letter("The answer is X", "XYZ") == "X"


def test_rules_run_in_the_order_given() -> None:
    text = "\\boxed{1}\n#### 2\nThe answer is 3, not 4"
    order: list[AnswerRule] = ["last_number", "phrase", "hash", "boxed"]
    assert [extract(text, order[i:]).rule for i in range(4)] == order
    assert extract(text).raw == "1"
    assert extract("\\boxed{1}", ()).raw is None


def test_the_last_of_nested_boxes_is_the_inner_one() -> None:
    assert last_boxed(r"\boxed{1 + \boxed{2}}") == "2"


@pytest.mark.parametrize(
    ("step", "final"),
    [
        ("She has 9 apples.", False),
        ("#### 9", True),
        ("so\n  #### 9", True),
        ("note #### 9", False),
        (r"Thus \boxed{9}", True),
        (r"Thus \boxed{9", False),
        ("The answer is 9.", True),
        ("Answer: 9", True),
    ],
)
def test_steps_are_final_by_the_rules_of_extraction(step: str, final: bool) -> None:
    assert is_final_step(step) is final


def test_a_pattern_of_ones_own() -> None:
    pattern = AnswerPattern(r"RESULT\s*=\s*(\S+)")
    answer = extract("RESULT = 3, RESULT= 1,200", ("pattern", "last_number"), pattern=pattern)
    assert (answer.raw, answer.rule, answer.canonical) == ("1,200", "pattern", "1200")
    assert extract("nothing but 7", ("pattern", "last_number"), pattern=pattern).rule == "last_number"
    assert AnswerPattern(r"\d+").last_match("1 22 333") == "333"
    assert AnswerPattern(r"\{(.*?)\}").last_match("{a} {b}") == "b"
    with pytest.raises(ValueError, match="needs a pattern"):
        extract("text", ("pattern",))


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        "a{1000}{1000}",
        "(?:a{100}b){11}",
        "a{99999999}",
        "a{9999999999999}",
        "a{}",
        "a{x}",
        r"\\{x",
        "(?R)",
        "(?:x){e<=2}",
        r"\p{L}",
        "a" * 301,
        "(?<=a+)b",
        "[",
    ],
)
def test_patterns_that_could_hurt_are_refused(pattern: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        AnswerPattern(pattern, "decoding.search.pattern")
    assert caught.value.param == "decoding.search.pattern"


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"(a|aa)+$", "a" * 20_000 + "b"),
        (r"(x+x+)+y", "x" * 20_000),
        (r"(?:a?){30}a{30}", "a" * 29),
        (r"(.*?,){25}P", "1,2,3,4,5,6,7,8,9,10,11,12,13" * 400),
        (r"(?:(?:(?:a{1,9}){1,9}){1,9})b", "a" * 20_000),
        (r"(?:(?:|a){999})b", "a" * 20_000),
        (r"((((a*)*)*)*)*b", "a" * 20_000),
        (r"(\w+\s?)*$", "word " * 4000 + "!"),
    ],
)
def test_backtracking_ends_at_the_deadline(pattern: str, text: str) -> None:
    started = time.process_time()
    AnswerPattern(pattern).last_match(text, seconds=0.05)
    assert time.process_time() - started < 1.0


def test_only_the_end_of_a_long_text_is_searched() -> None:
    assert AnswerPattern("needle").last_match("needle" + " " * 20_000) is None
    assert AnswerPattern("needle").last_match(" " * 20_000 + "needle") == "needle"


@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{",
        "{",
        "}",
        "answer ",
        "answer is ",
        "1,",
        "1,111",
        "9",
        "-",
        "####",
        "\\text{",
        "(A)",
        "a\n",
        " \n",
        "\\frac{1",
    ],
)
def test_the_time_is_linear_in_the_text(piece: str) -> None:
    """Twenty times the text may cost a hundred times as much; quadratic time would be four hundred."""
    seconds = []
    for repeats in (2000, 40_000):
        text = piece * repeats
        started = time.process_time()
        extract(text)
        extract(text, ("choice",))
        seconds.append(time.process_time() - started)
    assert seconds[1] < max(100 * seconds[0], 1.0)


@SEARCHED
@given(st.text(alphabet="\\boxed{}#$answer is:1,2.3/-+( )AB\n*%", max_size=60))
def test_any_text_is_read_without_a_fault(text: str) -> None:
    for rules in (("boxed", "hash", "phrase", "last_number"), ("choice",)):
        answer = extract(text, rules)  # type: ignore[arg-type]
        assert (answer.raw is None) == (answer.rule is None) == (answer.canonical is None)
    is_final_step(text)
