"""The operations of a scenario: one row of data each.

A row says what an operation's arguments are, and so how they are checked and written, which pages it speaks of and
which process it acts on, makes or ends. What an operation *does* stands elsewhere: `do_NAME` of the model
(:mod:`ksmwalk.scenarios.replay`), `do_NAME` of the one that drives the real kernel (:mod:`ksmwalk.kernel.run`), and in C
(:mod:`ksmwalk.kernel.reproduce`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..layout import PAGE_SIZE
from .kinds import (
    ADVICE_NAME,
    ALL_CONTENTS,
    BATCHES,
    BYTE,
    BYTES,
    CONTENTS,
    CPU,
    FLAG,
    HEAP_PAGES,
    HEAP_VPN,
    KNOB,
    KNOB_VALUE,
    LOCK_FLAGS,
    MOVE_FLAGS,
    MOVE_OPTIONS,
    NEW_PAGES,
    NEW_VPN,
    NEWBORN,
    NODE,
    OFFSET,
    OPTIONS,
    PAGES,
    PAIRS,
    PART,
    PROCESS,
    PROT,
    RUN,
    RUNNER,
    SECONDS,
    UFFD_COPY_OPTIONS,
    UFFD_MODES,
    VPN,
    VPNS,
    WORD,
    Kind,
    Op,
    Span,
)  # fmt: skip

if TYPE_CHECKING:
    from .format import Scenario

# ---------------------------------------------------------------- pages an operation speaks of


def _span(op: Op) -> list[Span]:
    return [(op[2], op[3])]


def _other(op: Op) -> list[Span]:
    return [(op[3], op[4])]


def _to_and_from(op: Op) -> list[Span]:
    return [(op[2], op[4]), (op[3], op[4])]


def _one(op: Op) -> list[Span]:
    return [(op[2], 1)]


def _old_and_new(op: Op) -> list[Span]:
    _, _, vpn, n, new_n, new_vpn = op[:6]
    return [(vpn, max(n, new_n)), (vpn if new_vpn is None else new_vpn, new_n)]


def _heap(op: Op) -> list[Span]:
    return [(HEAP_VPN, op[2])] if op[2] else []


def _row_of_pages(op: Op) -> list[Span]:
    return [(op[2], len(op[3]))] if op[3] else []


def _each_first(op: Op) -> list[Span]:
    return [(vpn, 1) for vpn, _ in op[2]]


def _each(op: Op) -> list[Span]:
    return [(vpn, 1) for vpn in op[2]]


def _bytes(op: Op) -> list[Span]:
    return [(op[2], -(-op[4] // PAGE_SIZE))]


def _nothing(op: Op) -> Iterable[Any]:
    return ()


# ---------------------------------------------------------------- what it may bring into memory, and store


def _all(op: Op) -> bool:
    return True


def _none(op: Op) -> bool:
    return False


def _populates(op: Op) -> bool:
    return len(op) > 4 and bool(op[4].get("populate") or op[4].get("locked"))


def _advised_to(op: Op) -> bool:
    return op[4] in ("populate_read", "populate_write")


def _listed(op: Op) -> list[int | None]:
    contents: list[int | None] = op[3]
    return contents


def _paired(op: Op) -> list[int]:
    return [number for _, number in op[2]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a scenario, as data.

    Attributes
    ----------
    args : tuple of kinds
        What stands after its name.
    optional : int
        How many of the last of them may be left out.
    spans : callable of an operation, returning (vpn, n) pairs
        The pages it speaks of.
    present : callable of an operation, returning bool
        Whether it may make each of these pages present.
    contents : callable of an operation, returning content ids
        What it stores; none where it stores nothing, or bytes.
    bytes : bool
        Whether it stores bytes that need no content id be.
    maps : bool
        Whether these pages, or some of them, come to be mapped by it.
    ends : bool
        Whether the process it acts on ends.
    needs : str
        What a kernel must have for it, in words; empty where all have it.
    """

    args: tuple[Kind, ...] = ()
    optional: int = 0
    spans: Callable[[Op], Iterable[Span]] = _nothing
    present: Callable[[Op], bool] = _none
    contents: Callable[[Op], Iterable[int | None]] = _nothing
    bytes: bool = False
    maps: bool = False
    ends: bool = False
    needs: str = ""

    def arg(self, op: Op, kind: Kind, default: Any = None) -> Any:
        """Return the first argument of a kind."""
        place = 1 + self.args.index(kind) if kind in self.args else len(op)
        return op[place] if place < len(op) else default

    def process(self, op: Op) -> str | None:
        """Return the process an operation acts on, which must be there; None where it acts on none."""
        name: str | None = self.arg(op, PROCESS)
        return name

    def processes(self, op: Op) -> list[str]:
        """Return all processes that must be there."""
        return [
            value
            for kind, value in zip(self.args, op[1:], strict=False)
            if kind is PROCESS or (kind is RUNNER and value != "ksmd")
        ]

    def made(self, op: Op) -> str | None:
        """Return the process an operation makes."""
        name: str | None = self.arg(op, NEWBORN)
        return name


#: what `prctl` needs; a kernel without it says so
MERGE_ANY = "PR_SET_MEMORY_MERGE"
#: where an operation needs these, a scenario runs on two
NODES = "two NUMA nodes"
SWAP = "a swap device"
HEAPS = "PR_SET_MM_MAP"
USERFAULTFD, IO_URING = "userfaultfd", "io_uring"
#: every operation there is, by its name
OPS: dict[str, Operation] = {
    "spawn": Operation((NEWBORN,)),
    "exit": Operation((PROCESS,), ends=True),
    "exec": Operation((PROCESS,)),
    "fork": Operation((PROCESS, NEWBORN)),
    "mmap": Operation((PROCESS, VPN, PAGES, OPTIONS), 1, spans=_span, present=_populates, maps=True),
    "brk": Operation((PROCESS, HEAP_PAGES), spans=_heap, maps=True, needs=HEAPS),
    "munmap": Operation((PROCESS, VPN, PAGES), spans=_span),
    "mremap": Operation((PROCESS, VPN, PAGES, NEW_PAGES, NEW_VPN, MOVE_OPTIONS), 1, spans=_old_and_new, maps=True),
    "mprotect": Operation((PROCESS, VPN, PAGES, PROT), spans=_span),
    "madvise": Operation((PROCESS, VPN, PAGES, ADVICE_NAME), spans=_span, present=_advised_to),
    "advise": Operation((PROCESS, PROCESS, VPN, PAGES, ADVICE_NAME), spans=_other),
    "mlock": Operation((PROCESS, VPN, PAGES), spans=_span, present=_all),
    "mlock2": Operation((PROCESS, VPN, PAGES, LOCK_FLAGS), spans=_span, present=_all),
    "munlock": Operation((PROCESS, VPN, PAGES), spans=_span),
    "mlockall": Operation((PROCESS, LOCK_FLAGS)),
    "munlockall": Operation((PROCESS,)),
    "fill": Operation((PROCESS, VPN, CONTENTS), spans=_row_of_pages, present=_all, contents=_listed),
    "write": Operation((PROCESS, PAIRS), spans=_each_first, present=_all, contents=_paired),
    "pwrite": Operation((PROCESS, PAIRS), spans=_each_first, present=_all, contents=_paired),
    "touch": Operation((PROCESS, VPNS), spans=_each, present=_all),
    "store": Operation((PROCESS, VPN, OFFSET, PART), spans=_one, present=_all, bytes=True),
    "memset": Operation((PROCESS, VPN, BYTE, BYTES), spans=_bytes, present=_all, bytes=True),
    "prctl": Operation((PROCESS, FLAG), needs=MERGE_ANY),
    "prctl_get": Operation((PROCESS,), needs=MERGE_ANY),
    "thpdisable": Operation((PROCESS, FLAG)),
    "uffd_wp": Operation((PROCESS, VPN, PAGES), spans=_span, needs=USERFAULTFD),
    "uffd": Operation((PROCESS, VPN, PAGES, UFFD_MODES), spans=_span, needs=USERFAULTFD),
    "uffd_unregister": Operation((PROCESS, VPN, PAGES), spans=_span, needs=USERFAULTFD),
    "uffd_protect": Operation((PROCESS, VPN, PAGES, FLAG), spans=_span, needs=USERFAULTFD),
    "uffd_copy": Operation(
        (PROCESS, VPN, ALL_CONTENTS, UFFD_COPY_OPTIONS), 1, spans=_row_of_pages, present=_all, contents=_listed, needs=USERFAULTFD
    ),
    "uffd_zero": Operation((PROCESS, VPN, PAGES), spans=_span, present=_all, needs=USERFAULTFD),
    "uffd_move": Operation((PROCESS, VPN, VPN, PAGES), spans=_to_and_from, needs=USERFAULTFD),
    "pin": Operation((PROCESS, VPN), spans=_one, present=_all),
    "unpin": Operation((PROCESS, VPN), spans=_one),
    "dmapin": Operation((PROCESS, VPN, PAGES), spans=_span, present=_all, needs=IO_URING),
    "dmaunpin": Operation((PROCESS, VPN), spans=_one, needs=IO_URING),
    "clone": Operation((PROCESS, NEWBORN)),
    "vfork": Operation((PROCESS, NEWBORN)),
    "vforked": Operation((PROCESS,)),
    "watch": Operation((PROCESS, VPN, PAGES), spans=_span),
    "cpu": Operation((RUNNER, CPU)),
    "place": Operation((PROCESS, VPN, PAGES, NODE, MOVE_FLAGS), 1, spans=_span, needs=NODES),
    "move": Operation((PROCESS, VPNS, NODE, MOVE_FLAGS), 1, spans=_each, needs=NODES),
    "movepid": Operation((PROCESS, VPNS, NODE), spans=_each, needs=NODES),
    "migrate": Operation((PROCESS, NODE, NODE), needs=NODES),
    "syscall": Operation((PROCESS, *[WORD] * 7), 6),
    "set": Operation((KNOB, KNOB_VALUE)),
    "run": Operation((RUN,)),
    "step": Operation((BATCHES,), 1),
    "sleep": Operation((SECONDS,)),
    "drain": Operation(),
    "reclaim": Operation(),
    "swapoff": Operation(needs=SWAP),
    "swapon": Operation(needs=SWAP),
    "khuge": Operation(),
}

#: what moves pages from one NUMA node to another, KSM pages too
MOVING = tuple(name for name, one in OPS.items() if one.needs == NODES)
#: what moves mappings of pages to other addresses
REMAPPING = ("mremap", "uffd_move")
#: what leaves markers where a page is absent; not so ``uffd_wp``, which is older than the code for them
_MARKING = ("uffd", "uffd_protect", "uffd_copy")


def row(op: Op) -> Operation:
    """Return the row of an operation."""
    return OPS[op[0]]


def singles(op: Op) -> Iterable[Op]:
    """Return an operation as those that make one record each: ``["step", k]`` is k times ``["step"]``."""
    if BATCHES not in OPS[op[0]].args:
        return (op,)
    return ([op[0]] for _ in range(OPS[op[0]].arg(op, BATCHES, 1)))


def shows_swap_entries(scenario: Scenario) -> bool:
    """Whether records tell swap entries and markers of userfaultfd from pages that are absent: where there are any."""
    return "swap_mib" in scenario.env or any(op[0] in _MARKING for op in scenario.ops)


def nr_records(op: Op) -> int:
    """Return how many records an operation makes."""
    n: int = OPS[op[0]].arg(op, BATCHES, 1)
    return n
