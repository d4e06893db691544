"""The process that `ksmwalk demo` starts: a huge mergeable mapping with a few pages in it."""

from __future__ import annotations

import subprocess
import sys
import time

from ..errors import KsmwalkError

_PROGRAM = """
import ctypes, mmap, os, sys
span, pages, mark = (int(word) for word in sys.argv[1:])
try:
    area = mmap.mmap(-1, span, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000))
except (OSError, ValueError, OverflowError) as error:
    print("failed", 0, error, flush=True)
    sys.exit()
words = ["ready"]
try:
    area.madvise(mmap.MADV_NOHUGEPAGE)  # one page is to stay one page
except OSError:
    pass
if mark:
    try:
        area.madvise(mmap.MADV_MERGEABLE)
    except OSError as error:
        words = ["unmarked", error.strerror]
step = span // mmap.PAGESIZE // pages
for page in range(pages):
    at = (page * step + step // 2) * mmap.PAGESIZE
    area[at : at + 8] = (page + 1).to_bytes(8, "little")
address = ctypes.addressof(ctypes.c_char.from_buffer(area))
os.write(1, (" ".join([words[0], str(address), *words[1:]]) + "\\n").encode())
os.read(0, 1)
"""


class Giant:
    """A live process with `span` bytes of address space marked mergeable and `pages` pages in it, evenly spread.

    A context manager; the process ends with it, and with this program however that ends.

    Parameters
    ----------
    span : int
        Bytes.
    pages : int
    mark : bool
        Whether to ask the kernel to mark the mapping.

    Attributes
    ----------
    pid : int
    address : int
        Where the mapping begins, bytes.
    marked : bool
        Whether the kernel did mark it.
    unmarked : str or None
        Why the kernel refused to.
    """

    def __init__(self, span: int, pages: int, mark: bool = True):
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _PROGRAM, str(span), str(pages), str(int(mark))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        state, address, *rest = [*self._process.stdout.readline().strip().split(" ", 2), "", ""][:3]
        if state not in ("ready", "unmarked"):
            self.close()
            raise KsmwalkError(f"no process with {span} bytes of address space: {rest[0] or 'it did not start'}")
        self.address = int(address)
        self.marked = mark and state == "ready"
        self.unmarked = rest[0] if state == "unmarked" else None
        self._wait_for_rest()

    def _wait_for_rest(self) -> None:
        """Wait until it sleeps at its end, where it touches no further memory."""
        end = time.monotonic() + 1
        while time.monotonic() < end:
            with open(f"/proc/{self.pid}/stat", encoding="utf-8", errors="replace") as file:
                if file.read().rpartition(")")[2].split()[0] == "S":
                    return
            time.sleep(0.001)

    def close(self) -> None:
        """End the process and wait until it is gone."""
        self._process.kill()
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def __enter__(self) -> Giant:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()


def footprint(pid: int) -> tuple[int, int]:
    """(resident bytes, page-table bytes) of a process: what looking must not change."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        rows = dict(line.split(":", 1) for line in file)
    return int(rows["VmRSS"].split()[0]) << 10, int(rows["VmPTE"].split()[0]) << 10
