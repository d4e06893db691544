"""Traces that drive a Host: arrays of events, applied at array speed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..errors import Settled, check
from ..gate import as_flag, as_int, as_row, shown
from ..layout import TRACE_EVENT, Code, Operation
from ..signatures import AnyArray, I32Array, I64Array, Integer, Integers, RecordArray
from . import _trace
from .mm import Mm
from .tasks import ADVICE

if TYPE_CHECKING:
    from .host import Host

MAX_IDS = 1 << 22  # processes of a trace are numbered below it: MAX_IDS of _trace.pxd
_AT_ONCE = 1 << 17  # events in one compiled call
_CHANGES = 1 << 10  # processes that may come and go in one
_NO_TRACE = "must be one row of layout.TRACE_EVENT (`trace_events` makes one), or give such rows one after the other"
_FULL = int(Code.FULL)
_ADVICE_OF = {number: name for name, number in ADVICE.items()}


def trace_events(
    operation: Integer | Integers | str,
    addr: Integer | Integers = 0,
    key: Integer | Integers = 0,
    *,
    mm: Integer | Integers = 0,
    arg: Integer | Integers | str = 0,
    time: Integer | Integers = 0,
) -> RecordArray:
    """Make an array of events from its columns.

    Parameters
    ----------
    operation : str, layout.Operation, or array of them as numbers
        "read", "write", "map", "unmap", "advise", "fork" or "exit".
    addr : int, or array of uint64
        Bytes. Of a load or store: anywhere within its page.
    key : int, or array of uint64
        Content that a write leaves; length in bytes of map, unmap and advise; the child's number of a fork.
    mm : int, or array of int32
        Number of the process, within the trace, from 0 to 4194303.
    arg : int, str, or array of uint16
        Of a map: `layout.Perm` bits, 0 for reading and writing. Of an advice: its number or its name.
    time : int, or array of int64
        Nanoseconds since the trace began.

    Returns
    -------
    ndarray of layout.TRACE_EVENT, shape (n,)
        As many as the longest column has; what is one number goes for all.

    Raises
    ------
    ValueError, TypeError
        A number beyond its column; columns of different lengths; a name that there is not.

    Examples
    --------
    >>> trace_events("write", addr=[0x1000, 0x2000], key=7)["addr"].tolist()
    [4096, 8192]
    """
    if isinstance(operation, str):
        if operation.upper() not in Operation.__members__:
            raise ValueError(f"operation {shown(operation)}: must be one of {', '.join(Operation.__members__).lower()}")
        operation = Operation[operation.upper()]
    if isinstance(arg, str):
        if arg not in ADVICE:
            raise ValueError(f"arg {shown(arg)}: must be a number, or an advice: one of {', '.join(ADVICE)}")
        arg = ADVICE[arg]
    given: dict[str, tuple[AnyArray, bool]] = {
        "time": as_row(time, "time", np.int64),
        "addr": as_row(addr, "addr"),
        "key": as_row(key, "key"),
        "mm": as_row(mm, "mm", np.int32, 0, MAX_IDS - 1),
        "operation": as_row(operation, "operation", np.uint16, 1, max(Operation)),
        "arg": as_row(arg, "arg", np.uint16),
    }
    lengths = {name: len(column) for name, (column, one) in given.items() if not one}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of different lengths: {', '.join(f'{name} {n}' for name, n in lengths.items())}")
    out = np.zeros(next(iter(lengths.values()), 1), TRACE_EVENT)
    for name, (column, _) in given.items():
        out[name] = column
    return out


def describe(event: np.void) -> str:
    """One event in words, for a message.

    Examples
    --------
    >>> describe(trace_events("advise", 0x1000, 8192, mm=3, arg="mergeable")[0])
    'advise mergeable, 8192 bytes at 0x1000, of process 3'
    """
    number, arg, of = int(event["operation"]), int(event["arg"]), f"of process {int(event['mm'])}"
    if number not in list(Operation):
        return f"operation {number}: there is none"
    name, addr, key = Operation(number).name.lower(), f"{int(event['addr']):#x}", int(event["key"])
    if number in (Operation.READ, Operation.WRITE):
        return f"{name} at {addr} {of}"
    if number == Operation.FORK:
        return f"{name} {of} to {key}"
    if number == Operation.EXIT:
        return f"{name} {of}"
    if number == Operation.ADVISE:
        name += f" {_ADVICE_OF.get(arg, arg)}"
    elif arg:
        name += f" (arg {arg})"
    return f"{name}, {key} bytes at {addr}, {of}"


def as_events(events: object) -> RecordArray:
    """What came from outside as events, if it is one row of them; TypeError if not."""
    if not isinstance(events, np.ndarray) or events.dtype != TRACE_EVENT or events.ndim != 1:
        raise TypeError(f"events {shown(events)}: {_NO_TRACE}")
    return unmasked(events)


def unmasked(events: RecordArray) -> RecordArray:
    """The plain array of one that may be masked; TypeError if something is, which no event can be without."""
    if not isinstance(events, np.ma.MaskedArray):
        return events
    mask: Any = np.ma.getmaskarray(events)
    of = [mask[name] for name in mask.dtype.names] if mask.dtype.names else [mask]
    if hidden := np.flatnonzero(np.any(of, axis=0)).tolist():
        raise TypeError(f"events {shown(events)}: event {hidden[0]} is masked: leave it out")
    return np.asarray(events.data)


def as_pieces(events: object) -> Iterable[RecordArray]:
    """The arrays of a trace one by one, checked as they come; TypeError if there are none."""
    if not isinstance(events, Iterable):
        raise TypeError(f"events {shown(events)}: {_NO_TRACE}")
    return map(as_events, [events] if isinstance(events, np.ndarray) else events)


class Player(Settled):
    """Applies a trace to a Host, piece by piece; `Host.player` makes one.

    Attributes
    ----------
    host : Host
    mms : dict of int to Mm
        Whom the trace's numbers stand for now: who came with a map or a fork is added, who exited is taken out.
    done : int
        Events applied so far, those passed over included. After an error or Ctrl-C in an `apply` of one array the
        rest is `events[done - before:]`.
    failed : dict of int to int
        With errors="count": how many events failed, by errno.
    """

    host: Host
    mms: dict[int, Mm]

    def __init__(
        self, host: Host, mms: Mapping[int, Mm] | None = None, *, errors: str = "stop", map_missing: bool = False
    ) -> None:
        if not hasattr(host, "mm_by_number"):
            raise TypeError(f"host {shown(host)}: must be a Host")
        if not isinstance(errors, str) or errors not in ("stop", "count"):
            raise ValueError(f'errors {shown(errors)}: must be "stop" or "count"')
        if mms is not None and not isinstance(mms, Mapping):
            raise TypeError(f"mms {shown(mms)}: must map numbers to address spaces")
        self.__dict__.update(host=host, mms=dict(mms or {}))
        self._missing = as_flag(map_missing, "map_missing")
        self._done = 0
        self._errors: I64Array | None = np.zeros(4096, np.int64) if errors == "count" else None
        self._changes = np.zeros((_CHANGES, 2), np.int32)
        self._table()

    @property
    def done(self) -> int:
        return self._done

    @property
    def failed(self) -> dict[int, int]:
        if self._errors is None:
            return {}
        return {int(code): int(self._errors[code]) for code in np.flatnonzero(self._errors)}

    def apply(self, events: RecordArray | Iterable[RecordArray]) -> int:
        """Apply events in the order they stand in.

        Parameters
        ----------
        events : ndarray of layout.TRACE_EVENT, or iterable of such arrays
            `trace_events` makes one; the readers of `sources.traces` give them one after the other.

        Returns
        -------
        int
            Events applied, those passed over included.

        Raises
        ------
        OSError
            An event failed as its system call or access would: EFAULT, EINVAL, ENOMEM; ESRCH where the process is not
            there, EEXIST where a fork's child is there already. Its index, over all the arrays, is named; all before it are
            applied, it and those behind it are not (a call that fails on its way has done what the system call does
            before it fails).
        ArenaFullError, BadEntryError
            The same, whatever `errors` says.
        KeyboardInterrupt
            Between two events; `done` says how many were applied.
        TypeError
            No array of layout.TRACE_EVENT.

        Models: loads and stores, their faults, mmap, munmap, madvise, fork and exit of Linux 6.18. Differs: a load or
        store of a present page looks at its page-table entry only, as the processor does.
        """
        before = self._done
        for one in as_pieces(events):
            self._apply(one, before)
        return self._done - before

    def _apply(self, events: RecordArray, before: int) -> None:
        """One array; `before`: events done when the trace began that it is a piece of."""
        world, at = self.host.world, 0
        with world:
            table = self._table()
            while at < len(events):
                # A piece that can't be used where it lies is copied: one at a time.
                part = np.require(events[at : at + _AT_ONCE], None, ["C", "A"])
                words = part.view(np.uint64).reshape(-1, TRACE_EVENT.itemsize // 8)
                account = np.zeros((1, 2), np.int64)
                try:
                    code = _trace.apply(world, words, table, self._changes, self._errors, account, self._missing)
                finally:  # Ctrl-C may come as it returns
                    done, changes = account[0].tolist()
                    self._done += done
                    self._follow(self._changes[:changes])
                at += done
                if code == _FULL and not done and not changes:
                    table = self._larger(table, events[at])
                elif code < 0 and code != _FULL:
                    check(code, f"event {self._done - before}: {describe(events[at])}", world.arrays["bad"])

    def _table(self) -> I32Array:
        """Numbers in the Host by number in the trace, 0: nobody."""
        most = 0
        for number, mm in self.mms.items():
            most = max(most, as_int(number, "a number of mms", 0, MAX_IDS - 1))
            if not isinstance(mm, Mm) or mm.host is not self.host:
                raise ValueError(f"mms[{number}] {shown(mm)}: must be an Mm of this Host")
        table = np.zeros(max(256, 1 << most.bit_length()), np.int32)
        seen: dict[int, int] = {}
        for number, mm in self.mms.items():
            index = table[number] = mm._at()
            if seen.setdefault(index, number) != number:
                raise ValueError(f"mms[{number}] and mms[{seen[index]}] are the same address space")
        return table

    def _larger(self, table: I32Array, event: np.void) -> I32Array:
        """With room for the process that an event is about."""
        wanted = int(event["key"]) if event["operation"] == Operation.FORK else int(event["mm"])
        new = np.zeros(1 << wanted.bit_length(), np.int32)
        new[: len(table)] = table
        return new

    def _follow(self, changes: I32Array) -> None:
        """Let the doors know who exited, and make those of who came."""
        host = self.host
        for _, index in changes.tolist():
            if index < 0 and (life := host._lives.get(-index)) is not None:
                life.end()
        now: dict[int, int] = dict(changes.tolist())
        for number, index in now.items():
            if index < 0:
                self.mms.pop(number, None)
            else:
                self.mms[number] = host.mm_by_number(index)

    def __repr__(self) -> str:
        failed = sum(self.failed.values())
        return f"<Player of {len(self.mms)} processes, {self._done} events done{f', {failed} of them failed' if failed else ''}>"


class Driven(Settled):
    """What a Host can be driven with."""

    def player(
        self, mms: Mapping[int, Mm] | None = None, *, errors: str = "stop", map_missing: bool = False
    ) -> Player:
        """Make what applies a trace to this Host piece by piece.

        Parameters
        ----------
        mms : dict of int to Mm, optional
            Whom the numbers of the trace stand for. A number that nobody has is a new, empty address space from its
            first map on.
        errors : {"stop", "count"}
            What happens when an event fails with an errno: raise it, or pass the event over and count it.
        map_missing : bool
            A load or store where no area is maps the 2 MiB around it first, as far as they are free, for reading and
            writing: for traces that tell of accesses only.

        Raises
        ------
        ValueError, TypeError
            An address space of another Host, or the same one twice; a word that there is not.
        ProcessLookupError
            One of the address spaces has exited.
        """
        return Player(cast("Host", self), mms, errors=errors, map_missing=map_missing)

    def apply(
        self,
        events: RecordArray | Iterable[RecordArray],
        mms: Mapping[int, Mm] | None = None,
        *,
        errors: str = "stop",
        map_missing: bool = False,
    ) -> Player:
        """Apply a trace in one go: `player` with the same arguments, and `Player.apply`.

        Returns
        -------
        Player
            With who is there now, and for the rest of the trace if there is more.

        Examples
        --------
        >>> host = ksmwalk.Host(4096)
        >>> played = host.apply(np.concatenate([
        ...     trace_events("map", 0x10000, 8192),
        ...     trace_events("write", [0x10000, 0x11000], [7, 8]),
        ... ]))
        >>> played.done, played.mms[0].read(0x10000, 2).tolist()
        (3, [7, 8])
        """
        player = self.player(mms, errors=errors, map_missing=map_missing)
        player.apply(events)
        return player
