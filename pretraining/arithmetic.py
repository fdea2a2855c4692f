"""Sums and word problems with worked steps."""

import random
from collections.abc import Callable

from formats import Maker, Task
from grammar import Scope, expand, new_scope, pick, tidy

Numbers = tuple[int, int, int]


def plus(n: Numbers) -> tuple[str, int]:
    """First and second together."""
    return f"{n[0]} + {n[1]} = {n[0] + n[1]}", n[0] + n[1]


def minus(n: Numbers) -> tuple[str, int]:
    """First and second together, less the second: the larger less the smaller."""
    return f"{n[0] + n[1]} - {n[1]} = {n[0]}", n[0]


def times(n: Numbers) -> tuple[str, int]:
    """First by third."""
    return f"{n[0]} * {n[2]} = {n[0] * n[2]}", n[0] * n[2]


def times_plus(n: Numbers) -> tuple[str, int]:
    """First by third, then the second added."""
    product = n[0] * n[2]
    return f"{n[0]} * {n[2]} = {product}\n{product} + {n[1]} = {product + n[1]}", product + n[1]


def share(n: Numbers) -> tuple[str, int]:
    """The product of first and third shared among the third."""
    return f"{n[0] * n[2]} / {n[2]} = {n[0]}", n[0]


PROBLEMS: list[tuple[str, Callable[[Numbers], tuple[str, int]]]] = [
    ("{a} has {n0} {things:things} and buys {n1} more. How many {things} does {a_he} have now?", plus),
    ("there are {n0} people in the {place}. {n1} more come in. How many people are there?", plus),
    ("{a} read {n0} pages on {day} and {n1} pages on {day}. How many pages is that?", plus),
    ("{a} is {n0} years old. {b} is {n1} years older. How old is {b}?", plus),
    ("a {job} in {town} sold {n0} tickets in the {time} and {n1} later. How many were sold in all?", plus),
    ("{a} had {s} dollars and spent {n1}. How many dollars are left?", minus),
    ("there were {s} birds in the {plant}. {n1} flew away. How many stayed?", minus),
    ("{a} has to walk {s} miles. {a_he} has walked {n1} of them. How many miles are left?", minus),
    ("a box holds {n0} pencils. How many pencils do {n2} boxes hold?", times),
    ("{a} earns {n0} dollars a day. How much does {a_he} earn in {n2} days?", times),
    ("each of {n2} children eats {n0} cherries. How many cherries do they eat?", times),
    ("{a} buys {n2} {things:things} for {n0} dollars each and a {thing2:thing} for {n1} dollars. What does {a_he} pay?",
     times_plus),
    ("a {job} works {n0} hours a day for {n2} days and {n1} hours at the weekend. How many hours is that?", times_plus),
    ("{a} shares {p} coins among {n2} friends. How many coins does each friend get?", share),
    ("{p} chairs stand in {n2} equal rows. How many chairs are in a row?", share),
]


def word_problems(rng: random.Random) -> Maker:
    """Small stories with numbers."""
    final = rng.choice(["#### {x}", "The answer is {x}.", "{x}", "Answer: {x}", "So the answer is {x}."])
    worked = rng.random() < 0.7 or final != "{x}"

    def make() -> Task:
        scope: Scope = new_scope(rng)
        numbers = (rng.randint(2, 60), rng.randint(1, 40), rng.randint(2, 9))
        scope |= {f"n{at}": str(number) for at, number in enumerate(numbers)}
        scope |= {"s": str(numbers[0] + numbers[1]), "p": str(numbers[0] * numbers[2])}
        problem, solve = rng.choice(PROBLEMS)
        steps, result = solve(numbers)
        answer = final.replace("{x}", str(result))
        return Task(tidy(expand(rng, problem, scope)), "", f"{steps}\n{answer}" if worked else answer)

    return make


def sums(rng: random.Random) -> Maker:
    """Bare sums."""
    sign = rng.choice("+-*")
    form = rng.choice(["What is {s}?", "{s} =", "Calculate {s}.", "Work out {s}.", "How much is {s}?"])
    top = rng.choice((9, 20, 99))

    def make() -> Task:
        left, right = rng.randint(0, top), rng.randint(0, top)
        if sign == "-":
            left, right = max(left, right), min(left, right)
        result = {"+": left + right, "-": left - right, "*": left * right}[sign]
        return Task(form.replace("{s}", f"{left} {sign} {right}"), "", str(result))

    return make


def comparing(rng: random.Random) -> Maker:
    """Which of some numbers is the largest or smallest, or how they go on."""
    kind = rng.choice(["largest", "smallest", "next"])
    instruction = "Continue the row of numbers." if kind == "next" else f"Find the {kind} number."

    def make() -> Task:
        if kind == "next":
            start, step, count = rng.randint(0, 30), rng.choice((1, 2, 3, 5, 10)), rng.randint(3, 5)
            row = [start + step * at for at in range(count + 1)]
            return Task(instruction, ", ".join(map(str, row[:-1])), str(row[-1]))
        row = rng.sample(range(100), rng.randint(3, 6))
        return Task(instruction, ", ".join(map(str, row)), str(max(row) if kind == "largest" else min(row)))

    return make


def prices(rng: random.Random) -> Maker:
    """A price list and a question on it."""

    def make() -> Task:
        scope = new_scope(rng)
        table = {pick(rng, "food", scope): rng.randint(2, 30) for _ in range(rng.randint(3, 5))}
        wanted, other = rng.sample(sorted(table), 2) if len(table) > 1 else (next(iter(table)),) * 2
        text = "\n".join(f"{name}: {price} dollars" for name, price in table.items())
        if rng.random() < 0.6:
            return Task(f"What is the price of {wanted}?", text, f"{table[wanted]} dollars")
        total = table[wanted] + table[other]
        return Task(f"How much are {wanted} and {other} together?", text,
                    f"{table[wanted]} + {table[other]} = {total}\n{total} dollars")

    return make


FAMILIES = [word_problems, word_problems, word_problems, sums, comparing, prices]
