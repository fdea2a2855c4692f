"""docs/python.md, executed block by block in one process, as a reader would."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


def test_the_page_runs_as_it_is_written(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    checks = """
import sys
assert "torch" not in sys.modules
assert run.finished and run.report.exists() and (folder / "adapter_config.json").exists()
assert counts["kept"] == 100 and counts["dropped"] == 0
assert isinstance(answer, str) and len(answers) == 2 and isinstance(base_answer, str)
assert answers == [run.generate(row, max_new_tokens=8) for row in ({"question": "1 + 1?"}, {"question": "3 + 4?"})]
"""
    (tmp_path / "page.py").write_text("\n".join([*blocks, checks]), "utf-8")
    command = [sys.executable, "-W", "ignore::UserWarning", "page.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=900)
    assert (done.returncode, done.stderr) == (0, "")
    printed = done.stdout.splitlines()
    assert printed[0] == "100 rows kept, 0 dropped"
    assert any(line.startswith("loss ") and "held" not in line for line in printed)
    assert (
        "unknown hyperparameter 'epochs_count'; did you mean 'epochCount'?" in done.stdout
        or "did you mean" in done.stdout
    )
    assert "[('more.jsonl', 1)]" in printed
    assert any(line.startswith("luthier/tiny ") for line in printed)
