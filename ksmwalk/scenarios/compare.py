"""Two answers to one scenario compared: the first difference in full, with the state around it."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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
    number: dict[str, str] = {}
    plain = []
    for record in records:
        record = {key: value for key, value in record.items() if key != "t"}
        if "p" in record:
            runs: dict[str, list[list[Any]]] = {}
            for name in sorted(record["p"]):
                runs[name] = []
                for vpn, n, code in record["p"][name]:
                    if code[0] == "k":
                        bare = code.rstrip("'")
                        code = number.setdefault(bare, f"k{len(number)}") + code[len(bare) :]
                    runs[name].append([vpn, n, code])
            record["p"] = runs
        plain.append(record)
    return plain


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
