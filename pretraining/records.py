"""Records: JSON and CSV snippets, tables in words, and the extraction of names, dates, prices and places."""

import json
import random

from formats import Maker, Task
from grammar import RULES, Scope, expand, new_scope, pick, tidy

FIELDS = ["name", "town", "job", "date", "price", "item", "age", "phone"]
RECORD_SENTENCES = [
    "on {date}, {name} from {town} paid {price} for a {item}.",
    "{name}, a {job} aged {age}, bought a {item} in {town} for {price} on {date}.",
    "this is {name} calling from {town}. I ordered a {item} for {price} on {date}. My number is {phone}.",
    "order of {date}: one {item}, {price}, to be sent to {name} in {town}.",
    "{name} has worked as a {job} in {town} since {date}. You can reach {b_him} at {phone}.",
    "the {job} {name} lost a {item} worth {price} in {town} on {date}.",
    "invoice for {name} in {town}: {item}, {price}. Please pay by {date}.",
    "{date}: {name}, {age}, won a {item} at the fair in {town}.",
]
QUESTIONS = {
    "name": ["What is the name of the person?", "Extract the name.", "Who is it?", "Find the name."],
    "town": ["Which town is named?", "Extract the place.", "Where was it?"],
    "date": ["What is the date?", "Extract the date.", "When was it?"],
    "price": ["What is the price?", "Extract the price.", "How much is it?"],
    "item": ["Which item is named?", "Extract the item.", "What thing is it about?"],
    "job": ["What is the job of the person?", "Extract the job."],
    "age": ["How old is the person?", "Extract the age."],
    "phone": ["What is the telephone number?", "Extract the number to call."],
}


def record(rng: random.Random) -> dict[str, str]:
    """One invented person with a purchase."""
    scope = new_scope(rng)
    return {
        "name": f"{scope['a']} {rng.choice(RULES['surname'])}",
        "town": scope["town"],
        "job": rng.choice(RULES["job"]),
        "date": f"{rng.randint(1, 28)} {rng.choice(RULES['month'])} {rng.randint(1950, 2025)}",
        "price": rng.choice(["${}", "{} dollars", "{}.50 euros", "£{}"]).replace("{}", str(rng.randint(2, 900))),
        "item": rng.choice(RULES["thing"] + RULES["ware"]),
        "age": str(rng.randint(5, 90)),
        "phone": f"{rng.randint(100, 999)}-{rng.randint(1000, 9999)}",
    }


def extraction(rng: random.Random) -> Maker:
    """Sentences from which one field is to be copied."""
    field = rng.choice(FIELDS)
    instruction = rng.choice(QUESTIONS[field])
    forms = [form for form in RECORD_SENTENCES if "{" + field + "}" in form]

    def make() -> Task:
        fields = record(rng)
        scope: Scope = new_scope(rng) | fields
        text = expand(rng, rng.choice(forms), scope)
        if rng.random() < 0.3:
            text += " " + pick(rng, "plain_fact", scope)
        return Task(instruction, tidy(text), fields[field])

    return make


def to_json(rng: random.Random) -> Maker:
    """Sentences to be written as a small JSON object."""
    form = rng.choice(RECORD_SENTENCES)
    present = [field for field in FIELDS if "{" + field + "}" in form]
    chosen = rng.sample(present, rng.randint(2, min(4, len(present))))
    instruction = f"Write the {', '.join(chosen)} as JSON."

    def make() -> Task:
        fields = record(rng)
        text = tidy(expand(rng, form, new_scope(rng) | fields))
        return Task(instruction, text, json.dumps({name: fields[name] for name in chosen}, ensure_ascii=False))

    return make


def from_json(rng: random.Random) -> Maker:
    """A JSON object and a question on one of its fields."""
    field = rng.choice(FIELDS)
    others = [name for name in FIELDS if name != field]
    instruction = rng.choice([f"What is the {field}?", f"Give the value of {field}.", f"Read the {field}."])

    def make() -> Task:
        fields, names = record(rng), [field, *rng.sample(others, rng.randint(1, 4))]
        rng.shuffle(names)
        return Task(instruction, json.dumps({name: fields[name] for name in names}, ensure_ascii=False), fields[field])

    return make


def tables(rng: random.Random) -> Maker:
    """A CSV table and a question on one cell."""
    columns = ["name", *rng.sample(FIELDS[1:], rng.randint(1, 3))]
    asked = rng.choice(columns[1:])
    comma = rng.choice([",", ",", " | ", ";"])

    def make() -> Task:
        rows = [record(rng) for _ in range(rng.randint(2, 5))]
        lines = [comma.join(columns), *(comma.join(row[name] for name in columns) for row in rows)]
        row = rng.choice(rows)
        return Task(f"What is the {asked} of {row['name']}?", "\n".join(lines), row[asked])

    return make


def plain_records(rng: random.Random) -> str:
    """A table, a JSON list or a page of fields without any task."""
    rows = [record(rng) for _ in range(rng.randint(2, 6))]
    names = rng.sample(FIELDS, rng.randint(2, 5))
    chosen = [{name: row[name] for name in names} for row in rows]
    kind = rng.randrange(4)
    if kind == 0:
        return json.dumps(chosen, ensure_ascii=False, indent=rng.choice([None, 2]))
    if kind == 1:
        return "\n".join([",".join(names), *(",".join(row.values()) for row in chosen)])
    if kind == 2:
        return "\n".join(json.dumps(row, ensure_ascii=False) for row in chosen)
    return "\n\n".join("\n".join(f"{name.capitalize()}: {value}" for name, value in row.items()) for row in chosen)


def event_questions(rng: random.Random) -> Maker:
    """A notice and a headline for it."""
    instruction = rng.choice(["Write a headline.", "Sum this up in a few words.", "Give a short title.", "Summarise."])
    subject = rng.choice([
        ("a {job:job} from {town} found a {adj} {thing} in the {place} on {day}.", "{job} finds {thing} in {town}"),
        ("the {place} in {town} will be closed until {day} because of a {weather} {time}.", "{place} closed in {town}"),
        ("{a} won the {hobby:hobby} contest in {town} and was very {glad}.", "{a} wins {hobby} contest"),
        ("a {animal:animal} has escaped from the zoo in {town}. People should stay at home.",
         "{animal} escapes in {town}"),
        ("the {shop:shop} in {town} opens again on {day:day}, says {c_title} {surname}.", "{shop} opens on {day}"),
        ("the {vehicle:vehicle} to {town} was {2-9} hours late on {day}. Many were {sad}.", "{vehicle} to {town} late"),
    ])

    def make() -> Task:
        scope = new_scope(rng)
        text = expand(rng, subject[0], scope)
        text += "".join(" " + pick(rng, "plain_fact", scope) for _ in range(rng.randint(0, 2)))
        return Task(instruction, tidy(text), tidy(expand(rng, subject[1], scope)))

    return make


FAMILIES = [extraction, extraction, to_json, from_json, tables, event_questions, event_questions]
