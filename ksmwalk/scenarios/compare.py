"""Two answers to one scenario compared: the first difference in full, with the state around it."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..kernels import Profile
from .format import record_text
from .ops import row
from .records import COUNTERS, STATS, Record


@dataclass
class State:
    """The full state that records add up to."""

    counters: dict[str, int]
    stats: dict[str, list[int]]
    pages: dict[str, dict[int, str]]

    def text(self) -> str:
        """Return the state as lines of text, pages as runs."""
        lines = ["counters  " + " ".join(f"{name}={value}" for name, value in sorted(self.counters.items()))]
        for name in sorted(self.stats):
            lines.append(
                f"{name:9} " + " ".join(f"{key}={value}" for key, value in zip(STATS, self.stats[name], strict=False))
            )
            runs: list[list[Any]] = []
            for vpn, code in sorted(self.pages.get(name, {}).items()):
                if runs and runs[-1][0] + runs[-1][1] == vpn and runs[-1][2] == code:
                    runs[-1][1] += 1
                else:
                    runs.append([vpn, 1, code])
            lines.append(f"{name:9} " + (" ".join(f"{vpn}+{n}:{code}" for vpn, n, code in runs) or "no page present"))
        return "\n".join(lines)


    def apply(self, record: Record) -> None:
        """Let a record change the state."""
        op = record["op"]
        if row(op).ends and (name := row(op).process(op)) is not None:
            self.stats.pop(name, None)
            self.pages.pop(name, None)
        self.counters.update(record.get("c", {}))
        self.stats.update(record.get("s", {}))
        for name, runs in record.get("p", {}).items():
            pages = self.pages.setdefault(name, {})
            for vpn, n, code in runs:
                for page in range(vpn, vpn + n):
                    if code == "-":
                        pages.pop(page, None)
                    else:
                        pages[page] = code.rstrip("'")

    def copy(self) -> State:
        """Return a state that goes its own way."""
        return State(dict(self.counters), dict(self.stats), {name: dict(mine) for name, mine in self.pages.items()})


def at_start() -> State:
    """Return the state before the first record."""
    return State(dict.fromkeys(COUNTERS, 0), {}, {})


def states(records: Iterable[Record]) -> Iterator[State]:
    """Yield the full state after each record (one object, changed from step to step)."""
    state = at_start()
    for record in records:
        state.apply(record)
        yield state


def without_events(records: Iterable[Record]) -> list[Record]:
    """Return the records as a kernel that shows no events would give them.

    Parameters
    ----------
    records : iterable of dict

    Returns
    -------
    list of dict
        Without ``t``, and KSM pages numbered as they first appear.
    """
    return list(as_shown(records, events=False))


def as_shown(
    records: Iterable[Record], missing: Collection[str] = (), stats: Collection[str] = STATS, events: bool = True
) -> Iterator[Record]:
    """Yield the records as a kernel would give them that shows less.

    Parameters
    ----------
    records : iterable of dict
    missing : collection of str
        Counters it does not have.
    stats : collection of str
        Statistics of a process that it has, of `STATS`; the others are None.
    events : bool
        Whether it has trace events; without them KSM pages are numbered as they first appear.
    """
    number: dict[str, str] = {}
    rows: dict[str, list[int | None]] = {}
    lacking = [place for place, name in enumerate(STATS) if name not in stats]
    for record in records:
        record = dict(record)
        if row(record["op"]).ends:
            rows.pop(str(row(record["op"]).process(record["op"])), None)
        if "c" in record:
            record["c"] = {name: value for name, value in record["c"].items() if name not in missing}
        if "s" in record and lacking:
            seen = {name: [None if at in lacking else value for at, value in enumerate(line)] for name, line in record["s"].items()}
            record["s"] = {name: line for name, line in seen.items() if rows.get(name) != line}
            rows.update(seen)
        if not events:
            record.pop("t", None)
            if "p" in record:
                record["p"] = {name: _renumbered(record["p"][name], number) for name in sorted(record["p"])}
        yield {key: value for key, value in record.items() if value or key not in ("c", "s")}


def _renumbered(runs: list[list[Any]], number: dict[str, str]) -> list[list[Any]]:
    """Runs of pages with KSM pages numbered anew."""
    out = []
    for vpn, n, code in runs:
        if code[0] == "k":
            bare = code.rstrip("'")
            code = number.setdefault(bare, f"k{len(number)}") + code[len(bare) :]
        out.append([vpn, n, code])
    return out


def alike(
    expected: Sequence[Record], theirs: Profile, actual: Iterable[Record], ours: Profile
) -> tuple[Iterable[Record], Iterable[Record]]:
    """Return two answers without what only one of them shows; both as they are where they show the same.

    Parameters
    ----------
    expected : sequence of dict
        A recording.
    theirs : Profile
        The kernel it is of.
    actual : iterable of dict
        The model's answer.
    ours : Profile
        The kernel it was.
    """
    lines = [line for record in expected for line in record.get("s", {}).values()]
    lacking = {name for at, name in enumerate(STATS) if any(line[at] is None for line in lines)}
    # a scan without a word of it: whoever made this recording could see no events
    quiet = any("full_scans" in record.get("c", {}) for record in expected) and not any("t" in record for record in expected)
    shows = [
        (frozenset(theirs.missing), frozenset(theirs.stats) - lacking, theirs.events and not quiet),
        (frozenset(ours.missing), frozenset(ours.stats), ours.events),
    ]
    missing, stats, events = shows[0][0] | shows[1][0], shows[0][1] & shows[1][1], shows[0][2] and shows[1][2]
    mine, yours = (
        side if show == (missing, stats, events) and not lacking else as_shown(side, missing, stats, events)
        for side, show in zip((expected, actual), shows, strict=True)
    )
    return mine, yours


def _fields(record: Record, ignore: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield (field, value) of one record, finely enough to be named: ``c.full_scans``, ``s.A``, ``p.A``, ``t``."""
    for key in ("ret", "c", "s", "p", "t", "v", "n"):
        if key not in record or key in ignore:
            continue
        if key in ("ret", "t"):
            yield key, record[key]
            continue
        for name, value in record[key].items():
            if f"{key}.{name}" in ignore or (key == "c" and name in ignore):
                continue
            if key == "s":
                value = [
                    number for stat, number in zip(STATS, value, strict=False) if not {stat, f"s.{stat}"} & {*ignore}
                ]
            yield f"{key}.{name}", value


@dataclass
class Difference:
    """The first record in which two answers differ.

    Attributes
    ----------
    index : int
        Number of the record.
    op : list
        Its operation.
    fields : list of (str, object, object)
        Field, what was expected, what came; None where a side has nothing to say.
    before : str
        The state in which the operation started, in the expected answer.
    after : tuple of str
        The state after it as expected, and as it came.
    """

    index: int
    op: list[Any]
    fields: list[tuple[str, Any, Any]]
    before: str
    after: tuple[str, str]

    def text(self, expected: str = "expected", actual: str = "actual") -> str:
        """Return the difference in full, the two sides called by the given names."""
        wide = max(len(expected), len(actual))
        lines = [f"record {self.index} {_short(self.op)} differs in {', '.join(field for field, _, _ in self.fields)}"]
        for field, want, got in self.fields:
            lines += [
                f"  {field}",
                f"    {expected:{wide}}  {_short(want, 4000)}",
                f"    {actual:{wide}}  {_short(got, 4000)}",
            ]
        lines += ["  state before"] + ["    " + line for line in self.before.splitlines()]
        for side, text in zip((expected, actual), self.after, strict=True):
            lines += [f"  state after: {side}"] + ["    " + line for line in text.splitlines()]
        return "\n".join(lines)


def _short(value: object, limit: int = 300) -> str:
    text = "nothing" if value is None else record_text(value)
    return text if len(text) <= limit else f"{text[:limit]} ... ({len(text)} characters)"


def first_difference(
    expected: Iterable[Record], actual: Iterable[Record], ignore: Collection[str] = ()
) -> Difference | None:
    """Compare two answers to one scenario, as they come: neither is kept.

    Parameters
    ----------
    expected, actual : iterable of dict
        Records.
    ignore : collection of str
        Fields left out: ``t``, ``c``, ``s``, ``p``, ``ret``, a counter (``c.pages_volatile`` or its bare name), a
        process (``s.A``, ``p.A``), a statistic (``s.mergeable`` or its bare name). The `nondet` of a recording.

    Returns
    -------
    Difference or None
        The first record that differs; None when all agree. A side that ends early differs there.
    """
    # one state for both sides as long as they say the same
    here = there = at_start()
    for index, (want, got) in enumerate(itertools.zip_longest(expected, actual)):
        if want == got:
            here.apply(want)
            if there is not here:
                there.apply(got)
            continue
        fields = _differing(want, got, ignore)
        before = here.text() if fields and index else "the start"
        if there is here:
            there = here.copy()
        for state, record in ((here, want), (there, got)):
            if record is not None:
                state.apply(record)
        if fields:
            return Difference(index, (want or got)["op"], fields, before, (here.text(), there.text()))
    return None


def _differing(want: Record | None, got: Record | None, ignore: Collection[str]) -> list[tuple[str, Any, Any]]:
    """(field, what was expected, what came) wherever two records differ."""
    if want is None or got is None or want["op"] != got["op"]:
        return [("record", want, got)]
    left, right = dict(_fields(want, ignore)), dict(_fields(got, ignore))
    return [
        (name, left.get(name), right.get(name)) for name in {**left, **right} if left.get(name) != right.get(name)
    ]


def differing_fields(one: Sequence[Record], other: Sequence[Record]) -> set[str]:
    """Return the names of the fields in which two answers to one scenario differ anywhere.

    Parameters
    ----------
    one, other : sequence of dict
        Records of the same operations.

    Returns
    -------
    set of str
        Names that `first_difference` can ignore: ``t``, ``ret``, ``c.full_scans``, ``s.A``, ``p.A``.
    """
    found = set()
    for left, right in zip(one, other, strict=True):
        if left != right:
            mine, yours = dict(_fields(left, ())), dict(_fields(right, ()))
            found |= {name for name in {**mine, **yours} if mine.get(name) != yours.get(name)}
    return found
