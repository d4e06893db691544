"""Which tunables? Settings of KSM against each other: memory freed, ksmd's CPU, time, and those that no other one beats.

    ksmwalk capture --all -o before
    python examples/sweep_tunables.py before
    python examples/sweep_tunables.py before 8        on 8 processes instead of threads
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor

from ksmwalk.estimates.sweep import front, grid, sweep
from ksmwalk.signatures import RecordArray
from ksmwalk.sources.captures import open_capture
from ksmwalk.sources.contents import MemoryCapture

COLUMNS = ["pages_to_scan", "use_zero_pages", "max_page_sharing", "freed_bytes", "cpu_share", "seconds_to_90"]
SETTINGS = grid(
    use_zero_pages=[0, 1],
    max_page_sharing=[64, 256],
    pages_to_scan=[100, 1000, 10_000],
)


def best(memory: MemoryCapture, workers: int = 0) -> RecordArray:
    """The settings that no other one beats, those that free the most first."""

    def processes() -> Executor:
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))

    # a callable, so that a pool of which a worker died is made anew
    rows = sweep(memory, SETTINGS, mark="all", executor=processes if workers else None)
    kept = rows[front(rows)][COLUMNS]
    ordered: RecordArray = kept[(-kept["freed_bytes"]).argsort(kind="stable")]
    return ordered


def main(words: Sequence[str]) -> None:
    """Print the best settings of a capture."""
    if not words:
        raise SystemExit(__doc__)
    print("pages_to_scan  zero pages  sharing     freed     CPU  90 % after")
    for row in best(open_capture(words[0]), int(words[1]) if len(words) > 1 else 0):
        pages, zeros, sharing, freed, share, seconds = row.tolist()
        print(f"{pages:>13,}  {zeros:>10}  {sharing:>7}  {freed >> 20:>5} MiB  {share:>6.2%}  {seconds:>8.1f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
