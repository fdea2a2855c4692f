"""What `bench engines` reports: an engine's answers beside Luthier's, and the tables of docs/deploy.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.engine_programs.program import before_stop
from bench.field.engine_models import BASES, Artefact

BEGIN, END = "<!-- bench engines -->", "<!-- end of bench engines -->"
TITLES = {
    "transformers": "transformers + PEFT", "ctranslate2": "CTranslate2", "openvino": "OpenVINO GenAI", "mlx": "mlx-lm",
    "onnxruntime": "onnxruntime-genai", "llama-cpp": "llama.cpp",
}  # fmt: skip
STAGES = {
    "tokenizer": "tokenizer", "convert": "conversion", "convert_adapter": "conversion of the adapter",
    "open": "loading", "ids": "tokenization", "chat_ids": "chat template", "tokens": "generation", "program": "program",
}  # fmt: skip
MOST = 160  # characters of an engine's own words


def compare(artefact: Artefact, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of equal tokens and ids, what the engine ignores, and what it says.

    It ignores one thing if its tokens equal those of the model without it in every row, and differ from the model's.
    Tokens are compared up to the first end token; `past_end` counts the rows in which the engine went on after one.
    """
    generated = answer.get("tokens")
    tokens = None if generated is None else [before_stop(ids, artefact.stops) for ids in generated]
    folders = {str(artefact.model): "MODEL", str(artefact.adapter): "ADAPTER"}
    errors = {stage: _without(reason, folders) for stage, reason in answer["errors"].items()}
    ignored = [name for name, other in artefact.variants.items()
               if tokens is not None and tokens == other and other != artefact.tokens]  # fmt: skip
    return {
        "rows": len(artefact.prompts), "tokens": equal(tokens, artefact.tokens),
        "past_end": sum(len(own) > len(cut) for own, cut in zip(generated or (), tokens or (), strict=True)),
        "ids": equal(answer.get("ids"), artefact.prompts), "chat_ids": equal(answer.get("chat_ids"), artefact.prompts),
        "ignored": ignored, "errors": errors, "notes": answer["notes"], "versions": answer["versions"],
    }  # fmt: skip


def equal(found: Sequence[Any] | None, expected: Sequence[Any]) -> int | None:
    """Rows that are equal; None where the engine gave none."""
    return None if found is None else sum(one == other for one, other in zip(found, expected, strict=True))


def verdict(found: Mapping[str, Any]) -> str:
    """The result in a few words."""
    if found.get("tokens") is None:
        stage, reason = next(iter(found["errors"].items()))
        return f"{STAGES[stage]} refused: {reason[:MOST]}"
    return f"{found['tokens']}/{found['rows']}{_differences(found)}"


def render(found: Mapping[str, Any]) -> str:
    """The tables and remarks in Markdown."""
    results: Sequence[Mapping[str, Any]] = found["results"]
    engines = list(dict.fromkeys(result["engine"] for result in results))
    remarks: list[str] = []
    lines = ["model", "artefact", *(TITLES[engine] for engine in engines)]
    table = [lines, ["---"] * len(lines)]
    for base, form in dict.fromkeys((result["base"], result["form"]) for result in results):
        cells = {result["engine"]: _cell(result, remarks) for result in results
                 if (result["base"], result["form"]) == (base, form)}  # fmt: skip
        table.append([base, form, *(cells.get(engine, "") for engine in engines)])
    facts = found["machine"]
    text = [
        f"{facts['date']}, {facts['processor']}, {found['threads']} thread(s), Python {facts['python']}, "
        f"Luthier {facts['versions']['luthier']} (source {facts['luthier_source']}).",
        "",
        *_lines(table),
        "",
        *_lines(_tokenizers(results, engines, remarks)),
        "",
        *(f"{number}. {remark}" for number, remark in enumerate(remarks, 1)),
        "",
        *(f"- {base.name}: {base.note}" for base in BASES.values() if any(r["base"] == base.name for r in results)),
        *(f"- {name} is not included: {reason}" for name, reason in found["missing"].items()),
    ]
    return "\n".join(text).rstrip() + "\n"


def _cell(result: Mapping[str, Any], remarks: list[str]) -> str:
    """Equal rows of all, or the refusal, with the numbers of its remarks."""
    if result.get("tokens") is None:
        reasons = [f"{STAGES[stage]}: {_code(reason)}" for stage, reason in result["errors"].items()
                   if stage not in ("ids", "chat_ids")]  # fmt: skip
        return f"refused {_numbers(reasons, remarks)}"
    share = f"{result['tokens']}/{result['rows']}"
    return (share if result["tokens"] == result["rows"] else f"**{share}**") + _differences(result)


def _differences(found: Mapping[str, Any]) -> str:
    ignored = f", ignores {' or '.join(found['ignored'])}" if found["ignored"] else ""
    return ignored + (f", goes on after the end token in {found['past_end']}" if found["past_end"] else "")


def _tokenizers(results: Sequence[Mapping[str, Any]], engines: Sequence[str], remarks: list[str]) -> list[list[str]]:
    """Prompts that each engine's own tokenizer and chat template turn into the trained ids, over all artefacts."""
    table = [["engine", "versions", "ids of prompts", "ids by chat template", "remarks"], ["---"] * 5]
    for engine in engines:
        own = [result for result in results if result["engine"] == engine and "rows" in result]
        notes = {note for result in own for note in result["notes"]}
        notes |= {f"{STAGES[stage]}: {_code(reason)}" for result in own for stage, reason in result["errors"].items()
                  if stage in ("ids", "chat_ids")}  # fmt: skip
        versions = {name: number for result in own for name, number in result["versions"].items()}
        table.append([
            TITLES[engine], ", ".join(f"{name} {number}" for name, number in versions.items()), _share(own, "ids"),
            _share(own, "chat_ids"), _numbers(sorted(notes), remarks),
        ])  # fmt: skip
    return table


def _share(results: Sequence[Mapping[str, Any]], name: str) -> str:
    counted = [result for result in results if result[name] is not None]
    return f"{sum(r[name] for r in counted)}/{sum(r['rows'] for r in counted)}" if counted else "none"


def _numbers(reasons: Sequence[str], remarks: list[str]) -> str:
    """The reasons' numbers in the list of remarks, to which new ones are added."""
    remarks += [reason for reason in dict.fromkeys(reasons) if reason not in remarks]
    return " ".join(f"[{remarks.index(reason) + 1}]" for reason in dict.fromkeys(reasons))


def _without(words: str, folders: Mapping[str, str]) -> str:
    """An engine's words without this machine's folders."""
    for folder, name in sorted(folders.items(), key=lambda item: -len(item[0])):
        words = words.replace(folder, name)
    return words


def _code(words: str) -> str:
    short = words if len(words) <= MOST else words[:MOST].rstrip() + " ..."
    return f"`{short.replace('`', chr(39))}`"


def _lines(table: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in table]


def insert(page: str, table: str) -> str:
    """The page with the table between its two markers. ValueError without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{begin}\n{table}{end}{after}"
