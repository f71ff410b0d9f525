"""School mathematics questions with answers, of the kinds of the Pile's DM Mathematics.

The original generator does not run on current numerical libraries, so questions of its
kinds are generated here (after Saxton et al. 2019, "Analysing Mathematical Reasoning
Abilities of Neural Models"). A document is a page of questions of one kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from random import Random

from .documents import Document

Question = tuple[str, str]
_LETTERS = "abcdefghijklmnopqrstuvwxyz".replace("e", "").replace("i", "").replace("o", "")


def _integer(rng: Random, digits: int) -> int:
    """A signed integer whose number of digits, not its value, is uniform."""
    return rng.choice((-1, 1)) * rng.randrange(10 ** rng.randint(1, digits))


def _term(coefficient: int, variable: str, power: int, first: bool) -> str:
    sign = "-" if coefficient < 0 else ("" if first else "+")
    size = abs(coefficient)
    body = "" if power == 0 else variable if power == 1 else f"{variable}**{power}"
    number = str(size) if power == 0 or size != 1 else ""
    text = f"{number}*{body}" if number and body else number or body
    return f"{sign}{text}" if first else f" {sign} {text}"


def polynomial(coefficients: list[int], variable: str) -> str:
    """``[c0, c1, c2]`` as ``c2*x**2 + c1*x + c0``."""
    parts: list[str] = []
    for power in reversed(range(len(coefficients))):
        if coefficients[power]:
            parts.append(_term(coefficients[power], variable, power, first=not parts))
    return "".join(parts) or "0"


def _coefficients(rng: Random, degree: int, size: int = 2) -> list[int]:
    coefficients = [_integer(rng, size) for _ in range(degree)]
    return [*coefficients, rng.choice((-1, 1)) * rng.randint(1, 10**size - 1)]


def add_or_subtract(rng: Random) -> Question:
    a, b = _integer(rng, 6), _integer(rng, 6)
    return rng.choice(
        (
            (f"What is {a} + {b}?" if b >= 0 else f"What is {a} - {-b}?", str(a + b)),
            (f"Total of {a} and {b}.", str(a + b)),
            (f"What is {a} minus {b}?", str(a - b)),
            (f"What is the distance between {a} and {b}?", str(abs(a - b))),
        )
    )


def multiply(rng: Random) -> Question:
    a, b = _integer(rng, 4), _integer(rng, 3)
    return rng.choice((f"Multiply {a} and {b}.", f"What is {a} times {b}?")), str(a * b)


def divide(rng: Random) -> Question:
    b = rng.choice((-1, 1)) * rng.randint(1, 400)
    a = b * _integer(rng, 3) if rng.random() < 0.5 else _integer(rng, 5)
    return rng.choice((f"Divide {a} by {b}.", f"What is {a} divided by {b}?")), str(Fraction(a, b))


def mixed_arithmetic(rng: Random) -> Question:
    a, b, c, d = (rng.randint(-30, 30) for _ in range(4))
    return f"Evaluate ({a} - {b}) + {c}*({d}).".replace("- -", "+ "), str(a - b + c * d)


def linear_1d(rng: Random) -> Question:
    x = rng.choice(_LETTERS)
    root, slope = rng.randint(-40, 40), rng.choice((-1, 1)) * rng.randint(2, 90)
    shift, other = rng.randint(-200, 200), rng.randint(-60, 60)
    left = polynomial([shift, slope + other], x)
    right = polynomial([slope * root + shift, other], x)
    return f"Solve {left} = {right} for {x}.", str(root)


def linear_2d(rng: Random) -> Question:
    x, y = rng.sample(_LETTERS, 2)
    u, v = rng.randint(-30, 30), rng.randint(-30, 30)
    while True:
        a, b, c, d = (rng.choice((-1, 1)) * rng.randint(1, 9) for _ in range(4))
        if a * d != b * c:
            break

    def side(p: int, q: int) -> str:
        return f"{polynomial([0, p], x)} {'+' if q > 0 else '-'} {polynomial([0, abs(q)], y)}"

    question = f"Solve {side(a, b)} = {a * u + b * v}, {side(c, d)} = {c * u + d * v} for {x}."
    return question, str(u)


def differentiate(rng: Random) -> Question:
    x = rng.choice(_LETTERS)
    coefficients = _coefficients(rng, rng.randint(1, 5))
    order = rng.randint(1, min(3, len(coefficients) - 1))
    result = coefficients
    for _ in range(order):
        result = [power * c for power, c in enumerate(result)][1:]
    name = {1: "first", 2: "second", 3: "third"}[order]
    text = polynomial(coefficients, x)
    question = (
        f"Differentiate {text} wrt {x}."
        if order == 1 and rng.random() < 0.5
        else f"What is the {name} derivative of {text} wrt {x}?"
    )
    return question, polynomial(result, x)


def evaluate(rng: Random) -> Question:
    f, x = rng.sample(_LETTERS, 2)
    coefficients = _coefficients(rng, rng.randint(1, 3), 1)
    at = rng.randint(-12, 12)
    value = sum(c * at**power for power, c in enumerate(coefficients))
    return f"Let {f}({x}) = {polynomial(coefficients, x)}. Calculate {f}({at}).", str(value)


def expand(rng: Random) -> Question:
    x = rng.choice(_LETTERS)
    first, second = _coefficients(rng, 1, 1), _coefficients(rng, rng.randint(1, 2), 1)
    product = [0] * (len(first) + len(second) - 1)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            product[i + j] += a * b
    question = f"Expand ({polynomial(first, x)})*({polynomial(second, x)})."
    return question, polynomial(product, x)


def compose(rng: Random) -> Question:
    f, g, x = rng.sample(_LETTERS, 3)
    a, b = _coefficients(rng, 1, 1), _coefficients(rng, 1, 1)
    result = [a[0] + a[1] * b[0], a[1] * b[1]]
    text = f"Let {f}({x}) = {polynomial(a, x)}. Let {g}({x}) = {polynomial(b, x)}."
    return f"{text} Determine {f}({g}({x})).", polynomial(result, x)


def common_divisor(rng: Random) -> Question:
    common = rng.randint(1, 60)
    a, b = common * rng.randint(1, 90), common * rng.randint(1, 90)
    if rng.random() < 0.5:
        return f"Calculate the greatest common factor of {a} and {b}.", str(math.gcd(a, b))
    return f"What is the smallest common multiple of {a} and {b}?", str(math.lcm(a, b))


def prime_factors(rng: Random) -> Question:
    number = rng.randint(2, 9999)
    rest, factors = number, []
    for p in range(2, 100):
        if rest % p == 0:
            factors.append(p)
            while rest % p == 0:
                rest //= p
    if rest > 1:
        factors.append(rest)
    if rng.random() < 0.5:
        return f"List the prime factors of {number}.", ", ".join(map(str, factors))
    return f"Is {number} a prime number?", str(factors == [number])


def remainder(rng: Random) -> Question:
    b = rng.randint(2, 300)
    a = rng.randint(b, 99999)
    return f"Calculate the remainder when {a} is divided by {b}.", str(a % b)


def base_conversion(rng: Random) -> Question:
    base, number = rng.randint(2, 9), rng.randint(1, 9999)
    digits, rest = "", number
    while rest:
        digits, rest = str(rest % base) + digits, rest // base
    if rng.random() < 0.5:
        return f"{digits} (base {base}) to base 10", str(number)
    return f"What is {number} (base 10) in base {base}?", digits


def place_value(rng: Random) -> Question:
    number = str(rng.randint(1000, 99999999))
    names = (
        "units",
        "tens",
        "hundreds",
        "thousands",
        "ten thousands",
        "hundred thousands",
        "millions",
        "ten millions",
    )
    place = rng.randrange(len(number))
    return f"What is the {names[place]} digit of {number}?", number[-1 - place]


def round_number(rng: Random) -> Question:
    number, power = rng.randint(1000, 9999999), rng.randint(1, 3)
    name = {1: "ten", 2: "one hundred", 3: "one thousand"}[power]
    unit = 10**power
    return f"Round {number} to the nearest {name}.", str((number + unit // 2) // unit * unit)


def sort_numbers(rng: Random) -> Question:
    numbers = rng.sample(range(-99, 500), rng.randint(4, 7))
    listed = ", ".join(map(str, numbers))
    if rng.random() < 0.5:
        down = ", ".join(map(str, sorted(numbers, reverse=True)))
        return f"Sort {listed} in descending order.", down
    return f"Put {listed} in increasing order.", ", ".join(map(str, sorted(numbers)))


def compare(rng: Random) -> Question:
    a, b = _integer(rng, 5), _integer(rng, 5)
    if rng.random() < 0.5:
        return f"Is {a} less than {b}?", str(a < b)
    c = _integer(rng, 5)
    return f"What is the biggest value in {a}, {b}, {c}?", str(max(a, b, c))


def convert_units(rng: Random) -> Question:
    units = (
        ("kilometers", "meters", 1000),
        ("meters", "centimeters", 100),
        ("hours", "minutes", 60),
        ("minutes", "seconds", 60),
        ("days", "hours", 24),
        ("kilograms", "grams", 1000),
        ("liters", "milliliters", 1000),
        ("weeks", "days", 7),
    )
    large, small, factor = rng.choice(units)
    number = rng.randint(1, 999)
    if rng.random() < 0.6:
        return f"How many {small} are there in {number} {large}?", str(number * factor)
    return f"What is {number * factor} {small} in {large}?", str(number)


def sequence_next(rng: Random) -> Question:
    x = rng.choice(_LETTERS)
    coefficients = _coefficients(rng, rng.randint(1, 2), 1)
    values = [sum(c * n**power for power, c in enumerate(coefficients)) for n in range(1, 7)]
    if rng.random() < 0.5:
        return f"What is next in {', '.join(map(str, values[:5]))}?", str(values[5])
    term = polynomial(coefficients, x)
    return f"What is the {x}'th term of {', '.join(map(str, values[:5]))}?", term


KINDS: tuple[Callable[[Random], Question], ...] = (
    add_or_subtract,
    multiply,
    divide,
    mixed_arithmetic,
    linear_1d,
    linear_2d,
    differentiate,
    evaluate,
    expand,
    compose,
    common_divisor,
    prime_factors,
    remainder,
    base_conversion,
    place_value,
    round_number,
    sort_numbers,
    compare,
    convert_units,
    sequence_next,
)


def generate(domain: str, size: int, seed: int) -> Iterator[Document]:
    """Documents of about 3 kB until ``size`` bytes are out. The same seed, the same text."""
    rng = Random(seed)
    written = number = 0
    while written < size:
        kind = KINDS[number % len(KINDS)]
        page = ""
        while len(page) < 3000:
            question, answer = kind(rng)
            page += f"{question}\n{answer}\n"
        yield Document(domain, f"{kind.__name__}-{number}", page)
        written += len(page)
        number += 1
