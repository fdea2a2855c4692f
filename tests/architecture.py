"""The checks behind test_architecture.py: they read source text, import nothing of what they judge."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

OPEN = frozenset(
    {"errors", "storage", "jobspec", "jobfolder", "entrypoint", "home", "defaults", "allocator", "exhaustion", "rights"}
)
CONTROL = frozenset({"catalog", "protocol", "jobs", "launchers", "endpoint_connection", "objects", "api", "supervisor"})
ENGINE = OPEN | {"catalog", "gguf", "layers", "data", "weights"}
# Room -> the rooms whose modules it may import, beside its own.
FLOORS: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "storage": frozenset({"errors"}),
    "jobspec": frozenset({"errors"}),
    "jobfolder": frozenset({"errors", "jobspec"}),
    "entrypoint": frozenset({"errors", "exhaustion"}),
    "exhaustion": frozenset({"errors"}),
    "rights": frozenset({"errors"}),
    "home": frozenset(),
    "defaults": frozenset(),
    "allocator": frozenset({"errors"}),
    "catalog": OPEN,
    "layers": OPEN | {"catalog"},
    "gguf": OPEN | {"catalog"},
    "data": OPEN | {"catalog", "gguf", "layers"},
    "weights": OPEN | {"catalog", "gguf", "layers"},
    "evaluation": ENGINE,
    "serving": ENGINE,
    "training": ENGINE | {"evaluation"},
    "protocol": OPEN,
    "jobs": OPEN | {"catalog", "protocol"},
    "launchers": OPEN,
    "endpoint_connection": frozenset({"errors"}),
    "objects": OPEN | {"protocol", "jobs"},
    "api": OPEN | {"catalog", "protocol", "jobs", "endpoint_connection"},
    "supervisor": OPEN | {"catalog", "jobs", "launchers", "endpoint_connection"},
    "service": OPEN | CONTROL,
    "server": OPEN | CONTROL | {"service"},
    "client": OPEN,
    "cli": OPEN | {"catalog", "client"},
    "python_api": OPEN | {"catalog", "client", "cli"},
    "__main__": frozenset({"cli"}),
    "__init__": frozenset({"errors", "python_api"}),
}
CONTROL_PLANE = OPEN | CONTROL | {"service", "server", "client", "cli", "python_api", "__main__", "__init__"}
HEAVY = frozenset({"torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "tokenizers"})
FORBIDDEN_NAMES = ("manager", "helper", "utils", "util", "common", "misc", "processor")
LINES, FUNCTION_LINES, PARAMETERS, FIELDS = 500, 60, 8, 20
POSITIONAL_FIELDS = 4  # a dataclass with more is built by keyword
SHARED_CLASS_NAMES: Mapping[str, str] = {}
"""Class names that several modules define, with the reason."""


@dataclass(frozen=True, slots=True)
class Source:
    """One module: its dotted name, its text, and the names of all modules of the package."""

    module: str
    text: str
    known: Set[str]
    is_package: bool = False

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.module)

    @property
    def room(self) -> str:
        parts = self.module.split(".")
        return parts[1] if len(parts) > 1 else "__init__"


def read_sources(folder: Path) -> list[Source]:
    """Every module below `folder`, which is the package's own folder."""
    paths = {_name(path, folder): path for path in sorted(folder.rglob("*.py"))}
    texts = {name: path.read_text("utf-8") for name, path in paths.items()}
    return [Source(name, text, paths.keys(), paths[name].name == "__init__.py") for name, text in texts.items()]


def _name(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: Source) -> Iterator[tuple[str, int]]:
    """Every module imported, wherever the import stands, with its line; `import_module("x")` counts."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(source, node)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in source.known else base), node.lineno
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value), node.lineno


def _absolute(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = source.module.split(".")
    parts = parts[: len(parts) - node.level + (1 if source.is_package else 0)]
    return ".".join([*parts, node.module] if node.module else parts)


def floor_faults(source: Source) -> list[str]:
    """Imports that go up, sideways, or into a room that is not drawn."""
    if source.room not in FLOORS:
        return [f"{source.module}: the room {source.room} is not on the floor plan"]
    faults = []
    for name, line in imports(source):
        parts = name.split(".")
        if parts[0] != "luthier" or len(parts) == 1:
            continue
        if parts[1] != source.room and parts[1] not in FLOORS[source.room]:
            faults.append(f"{source.module}:{line}: {source.room} imports {name}")
    return faults


def heavy_faults(source: Source) -> list[str]:
    """Imports of torch and its kin in the control plane."""
    if source.room not in CONTROL_PLANE:
        return []
    found = [(name, line) for name, line in imports(source) if name.split(".")[0] in HEAVY]
    return [f"{source.module}:{line}: the control plane imports {name}" for name, line in found]


def hidden_faults(source: Source) -> list[str]:
    """Imports of Luthier's own modules inside functions."""
    faults = []
    for function in ast.walk(source.tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if any(name.split(".")[0] == "luthier" for name in names):
                    faults.append(f"{source.module}:{function.lineno}: {function.name} hides an import of {names[0]}")
    return faults


def size_faults(source: Source, excepted: Set[str] = frozenset()) -> list[str]:
    """Files, functions, parameter lists and classes over the limits; `excepted` functions may have any parameters."""
    faults = []
    lines = source.text.count("\n") + 1
    if lines > LINES + 1:
        faults.append(f"{source.module}: {lines} lines, limit {LINES}")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            where = f"{source.module}:{node.lineno}: {node.name}"
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                faults.append(f"{where} has {length} lines, limit {FUNCTION_LINES}")
            count = len(_parameters(node))
            if count > PARAMETERS and f"{source.module}.{node.name}" not in excepted:
                faults.append(f"{where} has {count} parameters, limit {PARAMETERS}")
        elif isinstance(node, ast.ClassDef):
            fields = sum(isinstance(item, ast.AnnAssign) for item in node.body)
            if fields > FIELDS:
                faults.append(f"{source.module}:{node.lineno}: {node.name} has {fields} fields, limit {FIELDS}")
    return faults


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    given = node.args
    names = [item.arg for item in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def class_name_faults(sources: Iterable[Source], shared: Mapping[str, str] = SHARED_CLASS_NAMES) -> list[str]:
    """Class names that more than one module defines, leading underscores aside; entries of `shared` without use."""
    modules: dict[str, list[str]] = {}
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef):
                modules.setdefault(node.name.lstrip("_"), []).append(source.module)
    repeated = {name: places for name, places in modules.items() if len(places) > 1}
    faults = [f"{name} is defined in {', '.join(places)}" for name, places in repeated.items() if name not in shared]
    return faults + [f"{name} is not defined twice any more" for name in shared.keys() - repeated.keys()]


def positional_faults(source: Source) -> list[str]:
    """Dataclasses of more than POSITIONAL_FIELDS fields that can be built by position."""
    faults = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            fields = sum(isinstance(item, ast.AnnAssign) for item in node.body)
            positional = any("dataclass" in text and "kw_only=True" not in text for text in decorators)
            if positional and fields > POSITIONAL_FIELDS:
                faults.append(f"{source.module}:{node.lineno}: {node.name} has {fields} fields: kw_only=True")
    return faults


def name_faults(source: Source) -> list[str]:
    """Modules without a docstring, or with a name that says nothing."""
    faults = [] if ast.get_docstring(source.tree) else [f"{source.module}: has no docstring"]
    words = {word.rstrip("s") for part in source.module.split(".") for word in part.lower().split("_")}
    wrong = sorted(words & {word.rstrip("s") for word in FORBIDDEN_NAMES})
    return faults + [f"{source.module}: {word!r} is not a name for a module" for word in wrong]


def reached(sources: Mapping[str, Source], start: Set[str]) -> set[str]:
    """Every module of the package that importing `start` brings in, packages on the way included."""
    todo, seen = list(start), set(start)
    while todo:
        source = sources[todo.pop()]
        targets = {name for name, _ in imports(source)} | {source.module}
        for name in targets:
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                part = ".".join(parts[:end])
                if part in sources and part not in seen:
                    seen.add(part)
                    todo.append(part)
    return seen
