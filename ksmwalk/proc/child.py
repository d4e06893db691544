"""A live process that maps memory as it is told and waits: for `ksmwalk demo`, the tests and the benchmarks."""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

PROGRAM = Path(__file__).with_name("child_program.py")


class ChildError(RuntimeError):
    """A line failed in the child, or the child is gone: `why` says which."""

    def __init__(self, line: str, why: str):
        super().__init__(f"{line!r} in the child: {why}")
        self.why = why


class Child:
    """A child process; `do` runs a line of Python in it and gives its value.

    A line has the names of `child_program` at hand: `new` maps memory, `write` and `read` touch pages, `put` writes words,
    `call` calls munmap, madvise or mprotect, `numbers` takes data that was sent behind the line.

    A context manager; the process ends with it. It is killed when the thread that made it ends, however that ends, and
    is in a process group of its own, so that Ctrl-C is its parent's alone.

    Attributes
    ----------
    pid : int
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-S", "-E", "-P", PROGRAM, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        self.pid: int = self.process.pid
        try:
            # its own start, with all that Python maps in it, is over when it answers
            self.do("None")
        except BaseException:
            self.close()
            raise

    def tell(self, line: str, data: bytes = b"") -> None:
        """Start a line, with `data` behind it, without waiting for its end."""
        self._stdin.write(line.encode() + b"\n" + data)
        self._stdin.flush()

    def do(self, line: str, data: bytes = b"") -> Any:
        """Run a line, with `data` behind it, and return its value.

        Raises
        ------
        ChildError
            The line failed, or the child is gone.
        """
        try:
            self.tell(line, data)
            answer = self._stdout.readline().decode().strip()
        except BrokenPipeError:
            answer = ""
        if not answer.startswith("="):
            raise ChildError(line, ast.literal_eval(answer[1:]) if answer else "it is gone")
        return ast.literal_eval(answer[1:])

    def rest(self) -> None:
        """Wait until it sleeps, where it touches no further memory."""
        end = time.monotonic() + 1
        while time.monotonic() < end:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                if file.read().rpartition(b")")[2].split()[0] == b"S":
                    return
            time.sleep(0.001)

    def close(self) -> None:
        """End the process and wait until it is gone."""
        self.process.kill()
        # what was not sent any more is nobody's loss
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        self._stdout.close()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
