"""The house as drawn: floors, no torch in the control plane, sizes, names; and the checker, on bad sources."""

from __future__ import annotations

from pathlib import Path

import architecture
import pytest
from architecture import Source, read_sources

import luthier
from reference_pages.cli_page import commands

ROOT = Path(__file__).resolve().parent.parent
SOURCES = read_sources(ROOT / "src" / "luthier")
# Their parameters are the options that a user has.
COMMANDS = frozenset(f"{function.__module__}.{function.__name__}" for _, function in commands()) | frozenset(
    f"{function.__module__}.{function.__name__}"
    for function in (luthier.tune, luthier.generate, luthier.evaluate, luthier.inspect, luthier.models)
)
BESIDE = [
    Source(str(path.relative_to(ROOT)), path.read_text("utf-8"), frozenset())
    for folder in ("tests", "bench", "examples", "pretraining", "reference_pages")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def test_imports_only_go_down() -> None:
    assert [fault for source in SOURCES for fault in architecture.floor_faults(source)] == []


def test_the_control_plane_is_free_of_torch() -> None:
    assert [fault for source in SOURCES for fault in architecture.heavy_faults(source)] == []


def test_nothing_that_the_cli_reaches_imports_torch() -> None:
    by_name = {source.module: source for source in SOURCES}
    reached = architecture.reached(by_name, {name for name in by_name if name.startswith("luthier.cli")})
    heavy = [
        f"{name} imports {imported}"
        for name in sorted(reached)
        for imported, _ in architecture.imports(by_name[name])
        if imported.split(".")[0] in architecture.HEAVY | {"huggingface_hub"}
    ]
    assert "luthier.errors" in reached
    assert heavy == []


def test_no_import_hides_in_a_function() -> None:
    assert [fault for source in SOURCES for fault in architecture.hidden_faults(source)] == []


def test_sizes() -> None:
    run_py = Source("run", (ROOT / "run.py").read_text("utf-8"), frozenset())
    faults = [fault for source in (*SOURCES, *BESIDE, run_py) for fault in architecture.size_faults(source, COMMANDS)]
    assert faults == []


def test_a_class_name_is_used_once() -> None:
    assert architecture.class_name_faults(SOURCES) == []


def test_large_dataclasses_are_built_by_keyword() -> None:
    assert [fault for source in SOURCES for fault in architecture.positional_faults(source)] == []


def test_names_and_docstrings() -> None:
    assert [fault for source in SOURCES for fault in architecture.name_faults(source)] == []


KNOWN = frozenset({"luthier", "luthier.cli", "luthier.cli.app", "luthier.data", "luthier.data.split", "luthier.weights",
                   "luthier.weights.load", "luthier.training", "luthier.errors", "luthier.catalog"})  # fmt: skip


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("luthier.data.split", "import luthier.weights.load"),
        ("luthier.data.split", "from luthier.weights import load"),
        ("luthier.data.split", "from luthier import weights"),
        ("luthier.data.split", "from ..weights import load"),
        ("luthier.data.split", "def f():\n    from luthier.training import x"),
        ("luthier.cli.app", "from luthier.data.split import SplitAssignment"),
        ("luthier.cli.app", "import importlib\nimportlib.import_module('luthier.data')"),
        ("luthier.weights.load", "if TYPE_CHECKING:\n    from luthier.data.split import SplitAssignment"),
        ("luthier.errors", "from luthier.catalog import find"),
        ("luthier.cellar.wine", "import json"),
    ],
)
def test_the_checker_sees_a_broken_floor(module: str, text: str) -> None:
    assert len(architecture.floor_faults(Source(module, text, KNOWN))) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (
            "luthier.data.split",
            "from luthier.errors import DataError\nfrom .split import assign_splits\nimport torch",
        ),
        ("luthier.training", "from luthier.data import split\nfrom luthier.weights.load import load"),
        ("luthier.cli.app", "from luthier import __version__, errors\nfrom luthier.cli import tune"),
    ],
)
def test_the_checker_lets_good_imports_pass(module: str, text: str) -> None:
    assert architecture.floor_faults(Source(module, text, KNOWN)) == []


@pytest.mark.parametrize("text", ["import torch.nn", "def f():\n    from transformers import x", "__import__('peft')"])
def test_the_checker_sees_torch_in_the_control_plane(text: str) -> None:
    assert len(architecture.heavy_faults(Source("luthier.cli.app", text, KNOWN))) == 1
    assert architecture.heavy_faults(Source("luthier.training", text, KNOWN)) == []


def test_the_checker_follows_imports_through_packages() -> None:
    texts = {
        "luthier": "",
        "luthier.cli": "from luthier.cli import app",
        "luthier.cli.app": "from luthier.catalog import entry",
        "luthier.catalog": "import torch",
        "luthier.catalog.entry": "",
        "luthier.data": "",
    }
    sources = {name: Source(name, text, texts.keys()) for name, text in texts.items()}
    assert architecture.reached(sources, {"luthier.cli"}) == texts.keys() - {"luthier.data"}


@pytest.mark.parametrize(
    "text",
    [
        "\n" * 501,
        "def f():\n" + "    x = 1\n" * 60,
        "def f(a, b, c, d, e, *, g, h, i, j): ...",
        "class C:\n    def f(self, a, b, c, d, e, f, g, h, i): ...",
        "class C:\n" + "".join(f"    x{n}: int\n" for n in range(21)),
    ],
)
def test_the_checker_sees_what_is_too_large(text: str) -> None:
    assert len(architecture.size_faults(Source("luthier.data.split", text, KNOWN))) == 1


def test_the_checker_sees_repeated_class_names_and_positional_dataclasses() -> None:
    sources = [
        Source("luthier.data.a", "class Row: ...\nclass A: ...", KNOWN),
        Source("luthier.cli.b", "class _Row: ...", KNOWN),
    ]
    assert architecture.class_name_faults(sources) == ["Row is defined in luthier.data.a, luthier.cli.b"]
    assert architecture.class_name_faults(sources, {"Row": "reason"}) == []
    assert architecture.class_name_faults(sources[:1], {"Row": "reason"}) == ["Row is not defined twice any more"]
    fields = "".join(f"    x{number}: int\n" for number in range(5))
    assert len(architecture.positional_faults(Source("m", f"@dataclass(frozen=True)\nclass C:\n{fields}", KNOWN))) == 1
    assert architecture.positional_faults(Source("m", f"@dataclass(kw_only=True)\nclass C:\n{fields}", KNOWN)) == []


def test_the_checker_keeps_the_limits_themselves() -> None:
    text = "\n" * 100 + "def f(a, b, c, d, e, f, g, h):\n" + "    x = 1\n" * 59 + "class C:\n    def g(self, a): ...\n"
    assert architecture.size_faults(Source("luthier.data.split", text, KNOWN)) == []
    assert architecture.size_faults(Source("m", "def f(a,b,c,d,e,f,g,h,i): ...", KNOWN), {"m.f"}) == []


def test_the_checker_sees_bad_names_and_hidden_imports() -> None:
    assert len(architecture.name_faults(Source("luthier.data.utils", '"""Words."""', KNOWN))) == 1
    assert len(architecture.name_faults(Source("luthier.data.row_helpers", "x = 1", KNOWN))) == 2
    assert len(architecture.hidden_faults(Source("luthier.data", "def f():\n    import luthier.errors", KNOWN))) == 1
