"""The AWS SDK for JavaScript v3 against a live server: objects, an Autopilot job, an endpoint whole and streamed."""

from __future__ import annotations

from pathlib import Path

from wire.driver import Driver
from wire.rows import autopilot_file


def test_objects_a_job_and_its_endpoint(signing_driver: Driver, tmp_path: Path) -> None:
    rows = autopilot_file(tmp_path / "rows" / "train.csv")
    seen = signing_driver.script("javascript", "javascript.mjs", rows)
    assert seen["checksum"]
    assert seen["tail"] == "the end"
    assert seen["keys"] == [[["large/parts.bin", 5 * 1024 * 1024 + 7]], [["rows/train.csv", rows.stat().st_size]]]
    assert seen["job"] == ["Completed", None, True], seen["job"]
    assert {"Rouge1", "Perplexity"} <= set(seen["metrics"])
    assert [list(item) for item in seen["answer"]] == [["generated_text"]]
    assert "generated_text" in seen["streamed"]
    assert seen["deleted"] == ["large/parts.bin"]
    assert seen["missing"] == ["NoSuchKey", 404]
