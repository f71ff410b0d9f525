"""Every answer of the question generator, held against sympy."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from random import Random

import pytest
import sympy
from sympy.parsing.sympy_parser import parse_expr

from susceptibilities.corpora import mathematics
from susceptibilities.corpora.mathematics import KINDS, generate, polynomial

INTEGER = r"-?\d+"
PLACES = (
    *("units", "tens", "hundreds", "thousands", "ten thousands", "hundred thousands"),
    *("millions", "ten millions"),
)
UNITS = {
    ("kilometers", "meters"): 1000,
    ("meters", "centimeters"): 100,
    ("hours", "minutes"): 60,
    ("minutes", "seconds"): 60,
    ("days", "hours"): 24,
    ("kilograms", "grams"): 1000,
    ("liters", "milliliters"): 1000,
    ("weeks", "days"): 7,
}


def expression(text: str) -> sympy.Expr:
    # Single letters only: sympy would read some of them as its constants.
    letters = {letter: sympy.Symbol(letter) for letter in re.findall(r"[a-z]", text)}
    return parse_expr(text, local_dict=letters)


def match(pattern: str, question: str) -> tuple[str, ...]:
    found = re.fullmatch(pattern, question)
    assert found, question
    return found.groups()


def integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(INTEGER, text)]


def add_or_subtract(question: str) -> object:
    if question.startswith("What is the distance"):
        a, b = match(rf"What is the distance between ({INTEGER}) and ({INTEGER})\?", question)
        return abs(int(a) - int(b))
    if question.startswith("Total"):
        a, b = match(rf"Total of ({INTEGER}) and ({INTEGER})\.", question)
        return int(a) + int(b)
    (body,) = match(r"What is (.*)\?", question.replace("minus", "-"))
    return expression(body.replace("- -", "+ "))


def multiply(question: str) -> object:
    a, b = integers(question)
    return a * b


def divide(question: str) -> object:
    a, b = integers(question)
    return sympy.Rational(a, b)


def mixed_arithmetic(question: str) -> object:
    return expression(match(r"Evaluate (.*)\.", question)[0])


def solve(question: str) -> object:
    body, variable = match(r"Solve (.*) for ([a-z])\.", question)
    equations = []
    for equation in body.split(", "):
        left, right = equation.split(" = ")
        equations.append(expression(left) - expression(right))
    (solution,) = sympy.solve(equations, dict=True)
    return solution[sympy.Symbol(variable)]


def differentiate(question: str) -> object:
    name, text, variable = match(
        r"(?:Differentiate|What is the (\w+) derivative of) (.*) wrt ([a-z])[.?]", question
    )
    order = {None: 1, "first": 1, "second": 2, "third": 3}[name]
    return sympy.diff(expression(text), sympy.Symbol(variable), order)


def evaluate(question: str) -> object:
    _, x, text, _, at = match(
        rf"Let ([a-z])\(([a-z])\) = (.*)\. Calculate ([a-z])\(({INTEGER})\)\.", question
    )
    return expression(text).subs(sympy.Symbol(x), int(at))


def expand(question: str) -> object:
    return sympy.expand(expression(match(r"Expand (.*)\.", question)[0]))


def compose(question: str) -> object:
    definition = r"Let ([a-z])\(([a-z])\) = (.*)\. Let ([a-z])\([a-z]\) = (.*)\."
    f, x, first, g, second, outer, inner, _ = match(
        rf"{definition} Determine ([a-z])\(([a-z])\(([a-z])\)\)\.", question
    )
    assert (f, g) == (outer, inner)
    return expression(first).subs(sympy.Symbol(x), expression(second))


def common_divisor(question: str) -> object:
    a, b = integers(question)
    return sympy.gcd(a, b) if "greatest common factor" in question else sympy.lcm(a, b)


def prime_factors(question: str) -> object:
    (number,) = integers(question)
    if question.startswith("List"):
        return ", ".join(map(str, sorted(sympy.factorint(number))))
    return sympy.isprime(number)


def remainder(question: str) -> object:
    a, b = integers(question)
    return sympy.Mod(a, b)


def base_conversion(question: str) -> object:
    if question.startswith("What"):
        number, _, base = integers(question)
        digits = sympy.ntheory.digits(number, base)[1:]
        return "".join(map(str, digits))
    digits, base, _ = integers(question)
    return int(str(digits), base)


def place_value(question: str) -> object:
    place, number = match(r"What is the (.*) digit of (\d+)\?", question)
    return int(number) // 10 ** PLACES.index(place) % 10


def round_number(question: str) -> object:
    number, name = match(r"Round (\d+) to the nearest (.*)\.", question)
    unit = {"ten": 10, "one hundred": 100, "one thousand": 1000}[name]
    # A half is rounded up.
    return int(sympy.floor(sympy.Rational(int(number), unit) + sympy.Rational(1, 2))) * unit


def sort_numbers(question: str) -> object:
    ordered = sorted(integers(question), reverse="descending" in question)
    return ", ".join(map(str, ordered))


def compare(question: str) -> object:
    numbers = integers(question)
    return numbers[0] < numbers[1] if "less than" in question else max(numbers)


def convert_units(question: str) -> object:
    if question.startswith("How many"):
        small, number, large = match(r"How many (\w+) are there in (\d+) (\w+)\?", question)
        return int(number) * UNITS[large, small]
    number, small, large = match(r"What is (\d+) (\w+) in (\w+)\?", question)
    return sympy.Rational(int(number), UNITS[large, small])


ORACLES: dict[str, Callable[[str], object]] = {
    name: value for name, value in globals().items() if hasattr(mathematics, name)
} | {"linear_1d": solve, "linear_2d": solve}


def agrees(expected: object, answer: str) -> bool:
    if isinstance(expected, str | bool):
        return str(expected) == answer
    return sympy.simplify(sympy.sympify(expected) - expression(answer)) == 0


@pytest.mark.parametrize("kind", [k for k in KINDS if k.__name__ != "sequence_next"])
def test_answers(kind: Callable[[Random], tuple[str, str]]) -> None:
    rng = Random(kind.__name__)
    for _ in range(60):
        question, answer = kind(rng)
        assert agrees(ORACLES[kind.__name__](question), answer), (question, answer)


def test_sequences() -> None:
    """The numbers are those of the named term; more than one rule can fit five numbers."""
    rng = Random(1)
    for _ in range(100):
        question, answer = mathematics.sequence_next(rng)
        values = integers(question)
        n = sympy.Symbol("n")
        fitted = sympy.interpolate(list(enumerate(values, 1)), n)
        if question.startswith("What is next"):
            assert fitted.subs(n, 6) == int(answer)
        else:
            (variable,) = match(r"What is the ([a-z])'th term of .*\?", question)
            assert sympy.expand(expression(answer).subs(sympy.Symbol(variable), n) - fitted) == 0


@pytest.mark.parametrize(
    ("coefficients", "text"),
    [
        ([], "0"),
        ([0, 0], "0"),
        ([-3], "-3"),
        ([0, 1], "x"),
        ([1, -1, 2], "2*x**2 - x + 1"),
        ([0, -7, 0, -1], "-x**3 - 7*x"),
    ],
)
def test_polynomials(coefficients: list[int], text: str) -> None:
    assert polynomial(coefficients, "x") == text


def test_the_text_is_the_one_the_shipped_model_was_trained_on() -> None:
    text_hash = hashlib.sha256()
    documents = list(generate("mathematics", 4_000_000, 0))
    for document in documents:
        text_hash.update(document.text.encode() + b"\0")
    assert len(documents) == 1323
    assert len({document.text for document in documents}) == 1323
    expected = "1ae2ac648047d3cb9d8f1becf585211f2af1025cbbe9d17aa90694ef9e236812"
    assert text_hash.hexdigest() == expected


def test_another_seed_gives_other_questions() -> None:
    one, two = (next(generate("m", 1000, seed)).text for seed in (0, 1))
    assert one != two
