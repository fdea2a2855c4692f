"""The prompt formats a task is written in: instruction blocks, questions, chats and lists of examples."""

import random
from collections.abc import Callable
from typing import NamedTuple


class Task(NamedTuple):
    """One thing to do: the instruction, the text it is about (may be empty) and the right answer."""

    instruction: str
    context: str
    response: str


Maker = Callable[[], Task]
Family = Callable[[random.Random], Maker]

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{i}\n\n### Input:\n{c}"
    "\n\n### Response:\n{r}"
)
NO_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{i}\n\n### Response:\n{r}"
)

# The weight of each way to write a single task that has a context.
CONTEXT_FORMATS = {
    WITH_INPUT: 22,
    "### Instruction:\n{i}\n\n### Input:\n{c}\n\n### Response:\n{r}": 8,
    "{c}\n\n{i}\n\n### Response:\n{r}": 12,
    "{i}\n\n{c}\n\n### Response:\n{r}": 10,
    "{i}\n{c}\n\n### Response:\n{r}": 5,
    "question: {c} {i}\n\n### Response:\n{r}": 5,
    "question: {c} {i}\n{r}": 5,
    "{c}\n{i}\n{r}": 5,
    "{i} {c}\n{r}": 4,
    "Text: {c}\nQuestion: {i}\nAnswer: {r}": 5,
    "Q: {c} {i}\nA: {r}": 5,
    "Task: {i}\nInput: {c}\nOutput: {r}": 5,
    "User: {i}\n{c}\nAssistant: {r}": 3,
    "{c}\n\n{i}\n{r}": 5,
    "{i}\n\n{c}\n\n{r}": 4,
}
PLAIN_FORMATS = {
    NO_INPUT: 22,
    "### Instruction:\n{i}\n\n### Response:\n{r}": 10,
    "{i}\n\n### Response:\n{r}": 20,
    "question: {i}\n\n### Response:\n{r}": 10,
    "question: {i}\n{r}": 10,
    "Q: {i}\nA: {r}": 8,
    "Q: {i} A: {r}": 4,
    "{i}\n{r}": 8,
    "Question: {i}\nAnswer: {r}": 6,
    "User: {i}\nAssistant: {r}": 4,
}
EXAMPLE_FORMATS = [
    "{c} -> {r}",
    "{c} => {r}",
    "{c}: {r}",
    "Input: {c}\nOutput: {r}",
    "Text: {c}\nAnswer: {r}",
    "Q: {c}\nA: {r}",
    "{c}\n{r}",
    "{c}\n\n### Response:\n{r}",
    "### Input:\n{c}\n\n### Response:\n{r}",
]
SYSTEM_TEXTS = [
    "You are a helpful assistant.",
    "You answer in one short sentence.",
    "You are a friendly helper who loves plain words.",
    "Answer the question. Do not explain.",
    "You are an assistant in a library.",
    "You help people with small tasks.",
    "Be brief and polite.",
    "You read texts carefully and answer questions about them.",
    "You are a careful clerk.",
    "Reply with the answer only.",
]
GREETINGS = [
    ("Hello!", "Hello! How can I help you?"),
    ("Hi there.", "Hi! What can I do for you?"),
    ("Good morning.", "Good morning! What would you like to know?"),
    ("Can you help me?", "Of course. What is it about?"),
    ("Are you there?", "Yes, I am here. What do you need?"),
    ("I have a question for you.", "Please go ahead."),
]
FAREWELLS = [
    ("Thank you!", "You are welcome!"),
    ("Thanks, that was helpful.", "I am glad to hear that."),
    ("That is all for today.", "Goodbye, and have a nice day!"),
    ("Great, bye.", "Goodbye!"),
    ("You are very kind.", "Thank you. I am happy to help."),
]
TURN = "<|im_start|>{role}\n{text}<|im_end|>\n"


def weighted(rng: random.Random, weights: dict[str, int]) -> str:
    """One key, drawn by its weight."""
    return rng.choices(list(weights), list(weights.values()))[0]


def fill(form: str, task: Task) -> str:
    """The form with the parts of the task put in (texts may hold braces, so no str.format)."""
    answer = form.split("{r}")[0].replace("{i}", "\0i").replace("{c}", "\0c")
    return answer.replace("\0i", task.instruction).replace("\0c", task.context) + task.response


def single(rng: random.Random, task: Task) -> str:
    """A document with one task."""
    return fill(weighted(rng, CONTEXT_FORMATS if task.context else PLAIN_FORMATS), task)


def examples(rng: random.Random, maker: Maker) -> str:
    """A document with two to five tasks of one kind, so that the later ones follow from the earlier."""
    tasks = [maker() for _ in range(rng.randint(2, 5))]
    if not tasks[0].context:
        form = rng.choice(["Q: {i}\nA: {r}", "question: {i}\n{r}", "{i}\n\n### Response:\n{r}", "{i} -> {r}"])
        return "\n\n".join(fill(form, task) for task in tasks)
    form = rng.choice(EXAMPLE_FORMATS)
    gap = "\n\n" if "\n" in form or len(tasks[0].context) > 60 else rng.choice(["\n", "\n\n"])
    head = f"{tasks[0].instruction}{gap}" if rng.random() < 0.6 else ""
    return head + gap.join(fill(form, task) for task in tasks)


def turn(role: str, text: str) -> str:
    """One message of a chat in control-token form."""
    return TURN.replace("{role}", role).replace("{text}", text)


def exchange(rng: random.Random, task: Task) -> tuple[str, str]:
    """The user's message and the assistant's answer for one task."""
    if not task.context:
        return task.instruction, task.response
    first, second = (task.instruction, task.context) if rng.random() < 0.5 else (task.context, task.instruction)
    return first + rng.choice(["\n", "\n\n", " "]) + second, task.response


def chat(rng: random.Random, makers: list[Maker]) -> str:
    """A chat of one to four exchanges, often with a system text, a greeting or a farewell."""
    parts = [exchange(rng, maker()) for maker in makers]
    if rng.random() < 0.2:
        parts.insert(0, rng.choice(GREETINGS))
    if rng.random() < 0.2:
        parts.append(rng.choice(FAREWELLS))
    text = turn("system", rng.choice(SYSTEM_TEXTS)) if rng.random() < 0.6 else ""
    return text + "".join(turn("user", asked) + turn("assistant", answer) for asked, answer in parts)
