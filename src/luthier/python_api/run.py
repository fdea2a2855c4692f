"""A run folder as an object: its scores, its report, its tuned model's answers."""

from __future__ import annotations

import html
import importlib
import json
from pathlib import Path
from typing import Any, Literal, overload

from luthier.errors import RunFolderError
from luthier.jobfolder import JobFolder
from luthier.python_api import score
from luthier.python_api.comparison import Comparison
from luthier.python_api.program import command, run_program
from luthier.python_api.score import Prompt
from luthier.python_api.train import train


class Run:
    """One run of `luthier.tune` or `luthier tune`, finished or not; RunFolderError where `path` holds none."""

    def __init__(self, path: str | Path) -> None:
        self._folder = JobFolder(path)
        self._folder.read_spec()

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def path(self) -> Path:
        """The run folder."""
        return self._folder.root

    @property
    def finished(self) -> bool:
        """Whether the run was trained and scored to its end."""
        return self._folder.report.exists()

    @property
    def metrics(self) -> dict[str, Any]:
        """metrics.json: base and tuned scores on held-out rows, differences with 95 % intervals, the best step."""
        content: dict[str, Any] = json.loads(self._finished(self._folder.metrics).read_text("utf-8"))
        return content

    @property
    def history(self) -> list[dict[str, Any]]:
        """metrics.jsonl: a dict for each logged step (loss, learning_rate, ...) and validation (eval_loss, ...)."""
        path = self._folder.metrics_lines
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    @property
    def report(self) -> Path:
        """report.html, which needs no network and no other file."""
        return self._finished(self._folder.report)

    def compare(self) -> Comparison:
        """Base against tuned, metric by metric: a table when printed or shown in a notebook."""
        return Comparison.from_metrics(self.metrics)

    def to_frame(self) -> Any:
        """The comparison as a pandas DataFrame; ImportError without pandas."""
        return self.compare().to_frame()

    def show(self, height: int = 800) -> Any:
        """Show the report in a notebook, in a frame of `height` pixels."""
        page = html.escape(self.report.read_text("utf-8"), quote=True)
        frame = f'<div><iframe srcdoc="{page}" style="width:100%; height:{height}px; border:0"></iframe></div>'
        return importlib.import_module("IPython.display").HTML(frame)

    def _repr_html_(self) -> str:
        heading = f"<p><code>{html.escape(str(self.path))}</code></p>"
        return heading + (self.compare()._repr_html_() if self.finished else "<p>not finished</p>")

    @overload
    def generate(self, prompt: Prompt, **options: Any) -> str: ...
    @overload
    def generate(self, prompt: list[Prompt], **options: Any) -> list[str]: ...
    def generate(self, prompt: Prompt | list[Prompt], **options: Any) -> str | list[str]:
        """The tuned model's answers, through the template it was trained with; options as luthier.generate."""
        return score.generate(self.path, prompt, **options)

    def evaluate(self, data: str | Path, **options: Any) -> dict[str, Any]:
        """Scores of the tuned model on rows of yours; options as luthier.evaluate."""
        return score.evaluate(self.path, data, **options)

    def export(
        self, form: Literal["merged", "adapter"] = "merged", *, plain: bool = False, fp32: bool = False,
        out: str | Path | None = None, verbose: bool = False,
    ) -> Path:  # fmt: skip
        """Write the tuned model in Hugging Face layout (whole weights, or the adapter alone); return the folder."""
        flags = (f"--{form}", *(["--plain"] * plain), *(["--fp32"] * fp32))
        program = command("export", self.path, flags=flags, out=out)
        run_program(program, verbose)
        assert program.request is not None
        return Path(program.request["out"])

    def resume(self, *, ranks: int | None = None, verbose: bool = False, progress: bool | None = None) -> Run:
        """Go on from the newest checkpoint; options as luthier.tune."""
        train(command("tune", flags=("--resume",), out=self.path, ranks=ranks), verbose, progress)
        return self

    def _finished(self, path: Path) -> Path:
        if not path.exists():
            raise RunFolderError(f"{self.path}: not finished (no {path.name}); resume with: run.resume()")
        return path
