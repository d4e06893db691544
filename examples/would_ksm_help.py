"""Would KSM help here? What merging would free, process by process, as a table that goes into a DataFrame as it is.

    python examples/would_ksm_help.py                 every process that may be read
    python examples/would_ksm_help.py 4711 4712       these
    python examples/would_ksm_help.py before          a capture that `ksmwalk capture -o before` kept

With pandas: `pandas.DataFrame(would_ksm_help.table(memory(["4711"])))`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ksmwalk.estimates.advice import advise
from ksmwalk.estimates.estimate import Estimate, estimate
from ksmwalk.proc.processes import every_pid, has_memory, printable
from ksmwalk.signatures import RecordArray
from ksmwalk.sources.captures import is_capture, open_capture
from ksmwalk.sources.contents import MemoryCapture, capture_memory

COLUMNS = ["pid", "name", "anonymous_bytes", "freed_bytes", "ksm_merging_pages", "ksm_rmap_items", "ksm_zero_pages"]
MIB = 1 << 20


def memory(words: Sequence[str], samples: int = 2, interval: float = 2.0) -> MemoryCapture:
    """What is named, or everything that may be read."""
    if len(words) == 1 and is_capture(words[0]):
        return open_capture(words[0])
    pids = [int(word) for word in words] or [pid for pid in every_pid() if has_memory(pid)]
    return capture_memory(pids, samples=samples, interval=interval)


def table(found: Estimate) -> RecordArray:
    """A row a process, those that free the most first."""
    rows: RecordArray = found.table("process")[COLUMNS]
    return rows


def main(words: Sequence[str]) -> None:
    """Print the answer, then the table."""
    found = estimate(memory(words), mark="all")
    advice = advise(found)
    names = ", ".join(f"{printable(name)} ({number})" for name, number in advice.names)
    print(f"worth it: {names}" if advice.worth else f"not worth it: {advice.why}")
    for row in table(found)[:10]:
        freed, anonymous = row["freed_bytes"] / MIB, row["anonymous_bytes"] / MIB
        print(f"{row['pid']:>8}  {freed:>8.1f} of {anonymous:>8.1f} MiB  {printable(row['name'])}")
    for note in found.notes:
        print(printable(note))


if __name__ == "__main__":
    main(sys.argv[1:])
