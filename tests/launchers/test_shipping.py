"""The contract holds for a launcher that ships the folder, and the supervisor sees a job through with it."""

from __future__ import annotations

import sys
from pathlib import Path

from launchers.launcher_contract import LauncherContract
from launchers.shipping_launcher import ShippingLauncher
from supervisor.supervisor_harness import FAKE_ENGINE, supervisor_harness


def python_launcher() -> ShippingLauncher:
    return ShippingLauncher({"training": (sys.executable,)})


class TestShippingLauncher(LauncherContract):
    factory = "launchers.test_shipping:python_launcher"


def test_the_supervisor_collects_what_a_shipped_run_wrote(tmp_path: Path) -> None:
    with supervisor_harness(tmp_path) as harness:
        launcher = ShippingLauncher({"training": FAKE_ENGINE})
        harness.new_supervisor(launcher=launcher)
        first = harness.create_job("first", steps=5)
        (done,) = harness.run_to_end(first)
        assert (done.status, launcher.collected) == ("Completed", 1)
        assert harness.weights(first)
        killed = harness.create_job("killed", steps=6, hang_at=3)
        steps = harness.settings.home / "jobs-elsewhere" / killed.id / "checkpoints" / "step-000003"
        harness.run_until(steps.exists)
        harness.new_supervisor(launcher=ShippingLauncher({"training": FAKE_ENGINE}))  # as after a restart
        harness.supervisor.recover()
        settings = harness.folder(killed) / "input/config/hyperparameters.json"
        settings.write_text('{"steps": "6"}')
        (done,) = harness.run_to_end(killed)
        assert done.status == "Completed"
        assert harness.run_count(killed) == 2
        assert "resuming after step 3" in (harness.folder(killed) / "logs" / "engine.log").read_text()
        for child in launcher._local._children.values():  # the launcher after it killed them
            child.wait()
