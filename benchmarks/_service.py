"""A running service for benchmarks: started as a user would, watched from outside, stopped or killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Self

START_LIMIT_S = 120.0


class RunningService:
    """``llm-rerank serve`` in a process of its own. arguments: further words of the command line."""

    def __init__(self, model: Path, arguments: Sequence[str] = (), *, port: int | None = None) -> None:
        self.model, self.arguments = model, list(arguments)
        self.port = free_port() if port is None else port
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "llm_rerank", "serve", str(self.model), "--port", str(self.port)]
        process = subprocess.Popen([*command, *self.arguments])
        began = time.monotonic()
        while time.monotonic() - began < START_LIMIT_S:
            if process.poll() is not None:
                raise RuntimeError(f"the service ended with code {process.returncode} before it was ready")
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as answer:
                    if answer.status == 200:
                        return process
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        process.kill()
        raise RuntimeError(f"the service was not ready within {START_LIMIT_S:.0f} s")

    def kill(self) -> None:
        """Kill it where it stands (signal 9)."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        """Start it again on the same port."""
        self.process = self._start()

    def stop(self) -> None:
        """Ask it to finish."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=60)

    def memory_mib(self) -> float:
        """Resident memory of the process, in MiB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return float("nan")

    def cpu_s(self) -> float:
        """Processor seconds that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
