"""Endpoint's process in milliseconds: ``python fake_server.py --socket PATH TARGET --device DEVICE``.

A file in TARGET tells it what to do: `refuse` ends it with exit code 2, `die` with 1, `slow` never becomes ready,
`chatty` writes numbered lines, as many as it says. It writes its number to TARGET/../pids, and answers /ping with 200
and everything else with TARGET's name.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer

SOCKET, TARGET = sys.argv[2], Path(sys.argv[3])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        slow = (TARGET / "slow").exists()
        body = TARGET.name.encode()
        self.send_response(503 if slow else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *arguments: object) -> None: ...


def main() -> None:
    print("loading", TARGET.name, flush=True)
    if TARGET.is_dir():
        with open(TARGET.parent / "pids", "a") as handle:
            handle.write(f"{os.getpid()}\n")
    for name, code in (("refuse", 2), ("die", 1)):
        if (TARGET / name).exists():
            print(f"luthier: error: told to {name}", flush=True)
            sys.exit(code)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if (TARGET / "chatty").exists():
        count = int((TARGET / "chatty").read_text())
        threading.Thread(target=lambda: [print(f"line {number}", flush=True) for number in range(count)]).start()
    with UnixStreamServer(SOCKET, Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
