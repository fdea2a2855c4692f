"""Several ranks in a test: processes that torchrun would start, started from one that has torch loaded already."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from io import StringIO
from multiprocessing.connection import Connection
from typing import Any

import torch
from rich.console import Console

from luthier.jobfolder import JobFolder
from luthier.training.job import run_job
from luthier.training.process_group import ProcessGroup, init_process_group

PROCESSES = multiprocessing.get_context("forkserver")
TIMEOUT = 240


def run_on_ranks(size: int, work: Callable[..., Any], *arguments: Any, **environment: str) -> list[Any]:
    """What `work(group, *arguments)` returns on each of `size` ranks; an error of a rank is raised here as it was.

    `work` is a function of a test module. `environment` is set in the ranks alone.
    """
    PROCESSES.set_forkserver_preload(["luthier.training.job", "luthier.training.launch"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [PROCESSES.Pipe(duplex=False) for _ in range(size)]
    ranks = []
    for rank, (_, theirs) in enumerate(pipes):
        place = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        settings = dict(os.environ) | {name: str(value) for name, value in place.items()} | environment
        settings["TEST_STDERR"] = f"/proc/{os.getpid()}/fd/2"
        process = PROCESSES.Process(target=_rank, args=(theirs, settings, work, arguments), daemon=True)
        process.start()
        theirs.close()
        ranks.append(process)
    try:
        return [_received(ours, rank) for rank, (ours, _) in enumerate(pipes)]
    finally:
        for process in ranks:
            process.kill()
            process.join()


def _received(pipe: Connection, rank: int) -> Any:
    assert pipe.poll(TIMEOUT), f"rank {rank} did not finish"
    result, error, trace = pickle.loads(pipe.recv_bytes())
    if error is not None:
        error.add_note(f"on rank {rank}:\n{trace}")
        raise error
    return result


def _rank(pipe: Connection, environment: dict[str, str], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment | {"GLOO_SOCKET_IFNAME": _loopback()})
    torch.set_num_threads(1)
    # The test's own, not that of the process the ranks are forked from, which an earlier test may have started.
    os.dup2(os.open(os.environ.pop("TEST_STDERR"), os.O_WRONLY | os.O_APPEND), 2)
    try:
        with init_process_group() as group:
            result = work(group, *arguments)
            group.all_gather(None)  # nobody leaves while another still listens
        outcome: tuple[Any, BaseException | None, str] = (result, None, "")
    except BaseException as error:
        outcome = (None, error, traceback.format_exc())
    pipe.send_bytes(pickle.dumps(outcome))  # `send` would pass tensors by reference to an exited process
    os._exit(0)


def _loopback() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return next(name for name in names if name.startswith("lo"))


def run_job_on_rank(group: ProcessGroup, root: str, resume: bool = False, stop_at: int = 0) -> str:
    """Run the job in the folder `root`; return what this rank said. It is asked to stop once `stop_at` is saved."""
    screen = StringIO()
    folder = JobFolder(root)
    if stop_at:
        group.poll_stop = (folder.checkpoints / f"step-{stop_at:06d}").exists
    run_job(folder, resume, Console(file=screen, width=120, quiet=not group.is_main), group, locked=bool(stop_at))
    return screen.getvalue()
