"""Canonical forms: what counts as one answer, and what must not."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.scoring.canonical import answers_equal, canonical, number

SEARCHED = settings(max_examples=400, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("0.75", "3/4"),
        (r"\dfrac{6}{8}", "3/4"),
        (r"\frac34", "3/4"),
        (r"\frac{3}4", "3/4"),
        (r"\frac3{4}", "3/4"),
        (r"-\frac{3}{4}", "-3/4"),
        (r"\frac{-3}{4}", "-3/4"),
        (r"\frac{1{,}000}{3}", "1000/3"),
        (r"1\frac{1}{2}", "3/2"),
        ("-1 1/2", "-3/2"),
        ("1,234,567", "1234567"),
        (r"1{,}000", "1000"),
        (r"1,\!000", "1000"),
        ("+5", "5"),
        ("-0", "0"),
        ("007", "7"),
        ("7.", "7"),
        (".5", "1/2"),
        ("1e3", "1000"),
        ("$18", "18"),
        (r"\$18.50", "37/2"),
        ("-$5", "-5"),
        ("5 €", "5"),
        ("£1,000", "1000"),
        ("$18$", "18"),
        (r"\(18\)", "18"),
        ("25%", "25"),
        (r"25\%", "25"),
        (r"25\%$", "25"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90"),
        ("90°", "90"),
        (r"12\text{ cm}", "12"),
        (r"12\,\mathrm{cm}^2", "12"),
        ("12 apples", "12"),
        ("12 square feet.", "12"),
        ("12cm", "12"),
        ("- 5 apples", "-5"),
        ("$5 dollars", "5"),
        ("−5", "-5"),
        ("１２", "12"),
        ("٣", "3"),
        ("**42**", "42"),
        ("B", "b"),
        ("(B)", "b"),
        ("B)", "b"),
        (r"\text{(B)}", "b"),
        ("Tuesday.", "tuesday"),
        ("New York", "new york"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        ("(0.5, 3)", "(1/2,3)"),
        (r"x^{2}", "x^2"),
        (r"2 \pi", r"2\pi"),
        (r"\pi r", r"\pi r"),
    ],
)
def test_forms(answer: str, form: str) -> None:
    assert canonical(answer) == form


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("1 2", "12"),
        ("(1,2)", "12"),
        ("1,20", "120"),
        ("3 and 5", "3"),
        ("5 or more", "5"),
        ("5 million", "5"),
        ("5 and a half", "5"),
        ("2 pi", "2"),
        ("3x", "3"),
        ("3 x", "3"),
        ("9 am", "9 pm"),
        ("25%", "0.25"),
        ("10^3", "1000"),
        (r"\frac{1}{0}", "0"),
        ("5", "-5"),
        ("0.333", "1/3"),
        ("[2,5)", "(2,5)"),
        ("x=5", "5"),
        (r"\pi r", r"\pir"),
        (r"5\text{ million}", "5"),
    ],
)
def test_answers_that_must_not_be_merged(a: str, b: str) -> None:
    assert not answers_equal(a, b)


@pytest.mark.parametrize("nothing", [None, "", "  ", "$", "**", ".", r"\,"])
def test_nothing_has_no_form_and_equals_nothing(nothing: str | None) -> None:
    assert canonical(nothing) is None
    assert not answers_equal(nothing, nothing)


@SEARCHED
@given(st.text(alphabet="0123456789.,/-+$%{}\\fracetx ()[]apB^", max_size=24))
def test_a_form_is_its_own_form(answer: str) -> None:
    form = canonical(answer)
    assert form is None or canonical(form) == form


@SEARCHED
@given(st.fractions(min_value=-10_000, max_value=10_000, max_denominator=1000))
def test_every_spelling_of_a_fraction_is_one_answer(value: Fraction) -> None:
    sign, top, bottom = "-" if value < 0 else "", abs(value.numerator), value.denominator
    spellings = [
        f"{sign}{top}/{bottom}",
        rf"{sign}\frac{{{top}}}{{{bottom}}}",
        rf"\dfrac{{{sign}{3 * top}}}{{{3 * bottom}}}",
    ]
    if bottom == 1:
        spellings += [f"{sign}{top:,}", f"{sign}${top:,}.00", f"{sign}{top} apples", rf"{sign}{top}\text{{ kg}}"]
    for spelling in spellings:
        assert number(spelling) == value
        assert canonical(spelling) == str(value)


def test_long_digit_strings_are_text() -> None:
    assert number("9" * 400) == int("9" * 400)
    assert number("9" * 401) is None
    assert canonical("9" * 100_000) == "9" * 100_000
    assert number("1e99") == 10**99
    assert number("1e100") is None
