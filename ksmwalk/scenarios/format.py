"""Scenarios: small programs for a few processes and the KSM daemon.

This module holds the file format: what a scenario may say, its check on the way in, its canonical text on the way
out. What could be seen after each operation, the records, is built in :mod:`ksmwalk.records` and compared in
:mod:`ksmwalk.compare`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = 4096
#: vpns stay below this: 57 bits of address are what five levels of tables hold
VPN_END = 1 << 45

ADVICE = {
    "normal": 0,
    "random": 1,
    "sequential": 2,
    "willneed": 3,
    "dontneed": 4,
    "free": 8,
    "remove": 9,
    "dontfork": 10,
    "dofork": 11,
    "mergeable": 12,
    "unmergeable": 13,
    "hugepage": 14,
    "nohugepage": 15,
    "dontdump": 16,
    "dodump": 17,
    "wipeonfork": 18,
    "keeponfork": 19,
    "cold": 20,
    "pageout": 21,
    "populate_read": 22,
    "populate_write": 23,
    "dontneed_locked": 24,
    "collapse": 25,
    "guard_install": 102,
    "guard_remove": 103,
}

#: knobs of /sys/kernel/mm/ksm that a scenario may write: `run` has its own operation, `sleep_millisecs` drives `step`
KNOBS = (
    "pages_to_scan",
    "smart_scan",
    "use_zero_pages",
    "max_page_sharing",
    "merge_across_nodes",
    "stable_node_chains_prune_millisecs",
    "advisor_mode",
    "advisor_max_cpu",
    "advisor_min_pages_to_scan",
    "advisor_max_pages_to_scan",
    "advisor_target_scan_time",
)

MMAP_OPTIONS = ("prot", "shared", "noreserve", "populate")

Op = list[Any]


class ScenarioError(ValueError):
    """A scenario that says something it may not.

    Attributes
    ----------
    where : str
        File and operation, e.g. ``churn.json: op 3 ["mmap", "A", -1, 2]``.
    value : object
        The value that was refused.
    """

    def __init__(self, where: str, what: str, value: object):
        super().__init__(f"{where}: {what}: {value!r}")
        self.where = where
        self.value = value


@dataclass
class Scenario:
    """A name, the tunables to start with and the operations.

    Models: the scenario half of the scenario and record format.
    Differs: nothing known.
    """

    name: str
    ops: list[Op]
    note: str = ""
    tunables: dict[str, int | str] = field(default_factory=dict)

    def steps(self) -> Iterator[tuple[int, Op]]:
        """Yield (index of the operation, operation) once per record, ``["step", k]`` as k times ``["step"]``."""
        for index, op in enumerate(self.ops):
            if op[0] == "step":
                for _ in range(op[1] if len(op) > 1 else 1):
                    yield index, ["step"]
            else:
                yield index, op

    def to_json(self) -> dict[str, Any]:
        """Return the scenario as what a file holds."""
        return {"name": self.name, "note": self.note, "tunables": self.tunables, "ops": self.ops}


@dataclass
class Recording:
    """A scenario and, where it was run, what was seen: kernel, runs, fields that differed between runs, records."""

    scenario: Scenario
    kernel: str = ""
    runs: int = 0
    nondet: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the recording as what a file holds; a bare scenario where there are no records."""
        if self.records is None:
            return self.scenario.to_json()
        return {
            "scenario": self.scenario.to_json(),
            "kernel": self.kernel,
            "runs": self.runs,
            "nondet": self.nondet,
            "records": self.records,
        }


# ---------------------------------------------------------------- the check on the way in


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class _Checker:
    """Checks operations one after the other, keeping who is alive."""

    def __init__(self, file: str):
        self.file = file
        self.where = file
        self.alive: set[str] = set()

    def fail(self, what: str, value: object):
        raise ScenarioError(self.where, what, value)

    def name(self, value: object) -> str:
        if not isinstance(value, str) or not value.isalnum() or not value.isascii():
            self.fail("a process name is made of letters and digits, not", value)
        return value

    def process(self, value: object):
        if self.name(value) not in self.alive:
            self.fail("no such process at this point", value)

    def newborn(self, value: object):
        if self.name(value) in self.alive:
            self.fail("there is a process of this name already", value)
        self.alive.add(value)

    def number(self, value: object, what: str, low: int, high: int):
        """Check low <= value < high."""
        if not _is_int(value) or not low <= value < high:
            self.fail(f"{what} is a whole number of {low} to {high - 1}, not", value)

    def vpn(self, value: object):
        self.number(value, "a page number", 0, VPN_END)

    def span(self, vpn: object, n: object):
        self.vpn(vpn)
        self.number(n, "a number of pages", 1, VPN_END - vpn + 1)

    def content(self, value: object):
        self.number(value, "a content id", 0, 1 << 64)

    def prot(self, value: object):
        if value != "none" and (
            not isinstance(value, str) or not value or len(set(value)) != len(value) or set(value) - set("rwx")
        ):
            self.fail("a protection is none or some of r, w, x, not", value)

    def length(self, op: Op, *allowed: int):
        if len(op) - 1 not in allowed:
            self.fail(f"{op[0]} takes {' or '.join(map(str, allowed))} arguments, not", len(op) - 1)

    def listed(self, value: object) -> list:
        if not isinstance(value, list):
            self.fail("a list is wanted, not", value)
        return value

    def pairs(self, value: object):
        for pair in self.listed(value):
            if not isinstance(pair, list) or len(pair) != 2:
                self.fail("a pair [vpn, id] is wanted, not", pair)
            self.vpn(pair[0])
            self.content(pair[1])

    def knob(self, name: object, value: object):
        if name not in KNOBS:
            self.fail("no knob that a scenario may write", name)
        if not _is_int(value) and not (isinstance(value, str) and value and value.isprintable()):
            self.fail(f"a value of {name} is a whole number or a word, not", value)

    def op(self, op: object):
        if not isinstance(op, list) or not op or not isinstance(op[0], str):
            self.fail("an operation is a list that starts with its name, not", op)
        check = getattr(self, "op_" + op[0], None)
        if check is None:
            self.fail("no operation of this name", op[0])
        check(op)

    def op_spawn(self, op: Op):
        self.length(op, 1)
        self.newborn(op[1])

    def op_exit(self, op: Op):
        self.length(op, 1)
        self.process(op[1])
        self.alive.discard(op[1])

    def op_exec(self, op: Op):
        self.length(op, 1)
        self.process(op[1])

    op_prctl_get = op_exec

    def op_fork(self, op: Op):
        self.length(op, 2)
        self.process(op[1])
        self.newborn(op[2])

    def op_mmap(self, op: Op):
        self.length(op, 3, 4)
        self.process(op[1])
        self.span(op[2], op[3])
        options = op[4] if len(op) > 4 else {}
        if not isinstance(options, dict):
            self.fail("options of mmap are an object, not", options)
        for key, value in options.items():
            if key not in MMAP_OPTIONS:
                self.fail("no option of mmap", key)
            if key == "prot":
                self.prot(value)
            elif value not in (0, 1):
                self.fail(f"mmap's {key} is 0 or 1, not", value)

    def op_munmap(self, op: Op):
        self.length(op, 3)
        self.process(op[1])
        self.span(op[2], op[3])

    op_uffd_wp = op_munmap

    def op_mremap(self, op: Op):
        self.length(op, 5)
        self.process(op[1])
        self.span(op[2], op[3])
        self.span(op[2] if op[5] is None else op[5], op[4])

    def op_mprotect(self, op: Op):
        self.length(op, 4)
        self.process(op[1])
        self.span(op[2], op[3])
        self.prot(op[4])

    def op_madvise(self, op: Op):
        self.length(op, 4)
        self.process(op[1])
        self.span(op[2], op[3])
        if op[4] not in ADVICE:
            self.fail("no advice of this name", op[4])

    def op_fill(self, op: Op):
        self.length(op, 3)
        self.process(op[1])
        self.vpn(op[2])
        for content in self.listed(op[3]):
            if content is not None:
                self.content(content)
        if op[3]:
            self.span(op[2], len(op[3]))

    def op_write(self, op: Op):
        self.length(op, 2)
        self.process(op[1])
        self.pairs(op[2])

    op_pwrite = op_write

    def op_touch(self, op: Op):
        self.length(op, 2)
        self.process(op[1])
        for vpn in self.listed(op[2]):
            self.vpn(vpn)

    def op_memset(self, op: Op):
        self.length(op, 4)
        self.process(op[1])
        self.vpn(op[2])
        self.number(op[3], "a byte", 0, 256)
        self.number(op[4], "a number of bytes", 1, (VPN_END - op[2]) * PAGE + 1)

    def op_prctl(self, op: Op):
        self.length(op, 2)
        self.process(op[1])
        self.number(op[2], "the argument", 0, 2)

    op_thpdisable = op_prctl

    def op_syscall(self, op: Op):
        self.length(op, *range(2, 9))
        self.process(op[1])
        for value in op[2:]:
            self.number(value, "a system call number or argument", -(1 << 63), 1 << 64)

    def op_set(self, op: Op):
        self.length(op, 2)
        self.knob(op[1], op[2])

    def op_run(self, op: Op):
        self.length(op, 1)
        if not _is_int(op[1]):
            self.fail("run is a whole number, not", op[1])

    def op_step(self, op: Op):
        self.length(op, 0, 1)
        if len(op) > 1:
            self.number(op[1], "a number of batches", 1, 1 << 31)

    def op_sleep(self, op: Op):
        self.length(op, 1)
        if not (_is_int(op[1]) or isinstance(op[1], float)) or not 0 <= op[1] <= 3600:
            self.fail("a time is a number of 0 to 3600 seconds, not", op[1])

    def op_drain(self, op: Op):
        self.length(op, 0)


def scenario_from_json(data: object, file: str = "scenario") -> Scenario:
    """Check what a file holds and return it as a scenario.

    Parameters
    ----------
    data : object
        Decoded JSON: an object with ``name``, ``ops`` and perhaps ``note`` and ``tunables``.
    file : str
        Name used in errors.

    Returns
    -------
    Scenario

    Raises
    ------
    ScenarioError
        Names the file, the operation's index and the value refused.
    """
    check = _Checker(file)
    if not isinstance(data, dict):
        check.fail("a scenario is an object, not", data)
    for key in data:
        if key not in ("name", "note", "tunables", "ops"):
            check.fail("no part of a scenario", key)
    name, note = data.get("name", Path(file).stem), data.get("note", "")
    tunables, ops = data.get("tunables", {}), data.get("ops")
    parts = (("name", name, str), ("note", note, str), ("tunables", tunables, dict), ("ops", ops, list))
    for what, value, kind in parts:
        if not isinstance(value, kind):
            check.fail(f"{what} of a scenario must be a {kind.__name__}, not", value)
    check.where = f"{file}: tunables"
    for knob, value in tunables.items():
        check.knob(knob, value)
    for index, op in enumerate(ops):
        shown = json.dumps(op)
        check.where = f"{file}: op {index} {shown if len(shown) < 100 else shown[:96] + ' ...'}"
        check.op(op)
    return Scenario(name, ops, note, tunables)


def recording_from_json(data: object, file: str = "scenario") -> Recording:
    """Check what a file holds, a bare scenario or one with its records, and return it as a recording.

    Parameters
    ----------
    data : object
        Decoded JSON.
    file : str
        Name used in errors.

    Returns
    -------
    Recording
        Its ``records`` are None where the file has none.

    Raises
    ------
    ScenarioError
        Names the file and the value refused.
    """
    if not isinstance(data, dict) or "scenario" not in data:
        return Recording(scenario_from_json(data, file))
    check = _Checker(file)
    for key in data:
        if key not in ("scenario", "kernel", "runs", "nondet", "records"):
            check.fail("no part of a recording", key)
    scenario = scenario_from_json(data["scenario"], file)
    nondet, records = data.get("nondet", []), data.get("records")
    if not isinstance(nondet, list) or not all(isinstance(name, str) for name in nondet):
        check.fail("nondet is a list of field names, not", nondet)
    if records is not None:
        if not isinstance(records, list):
            check.fail("records are a list, not", records)
        for index, (record, (_, op)) in enumerate(zip(records, scenario.steps(), strict=False)):
            check.where = f"{file}: record {index}"
            if not isinstance(record, dict) or set(record) - {"op", "ret", "c", "s", "p", "t"}:
                check.fail("no record", record)
            if record.get("op") != op:
                check.fail(f"the record of {json.dumps(op)} is said to be of", record.get("op"))
        steps = sum(1 for _ in scenario.steps())
        check.where = file
        if len(records) != steps:
            check.fail(f"{steps} records are wanted, one per operation and batch, not", len(records))
    return Recording(scenario, str(data.get("kernel", "")), data.get("runs", 0), nondet, records)


def load(path: str | Path) -> Recording:
    """Read a scenario or a recording from a JSON file.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Recording
        Its ``records`` are None where the file has none.

    Raises
    ------
    ScenarioError
        The file holds no JSON, or says what a scenario may not; the file, the operation and the value are named.
    OSError
        The file can't be read.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        where, seen = f"{path}: line {error.lineno} column {error.colno}", error.doc[error.pos :][:20]
        raise ScenarioError(where, error.msg, seen) from None
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: byte {error.start}", "not UTF-8", error.object[error.start : error.end]) from None
    return recording_from_json(data, str(path))


# ---------------------------------------------------------------- the canonical text on the way out


def _text(value: object, sort: bool) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=sort, allow_nan=False)


def record_text(record: dict[str, Any]) -> str:
    """Return the one canonical line of a record: keys sorted, no blanks."""
    return _text(record, True)


def dumps(what: Recording | Scenario) -> str:
    """Return the canonical text of a scenario or a recording: equal ones give equal bytes.

    Parameters
    ----------
    what : Recording or Scenario

    Returns
    -------
    str
        JSON in one line without blanks; parts in the order of the format, keys of records sorted.
    """
    scenario = what.scenario if isinstance(what, Recording) else what
    if isinstance(what, Scenario) or what.records is None:
        return _text(scenario.to_json(), False)
    parts = {
        "scenario": _text(scenario.to_json(), False),
        "kernel": _text(what.kernel, False),
        "runs": _text(what.runs, False),
        "nondet": _text(what.nondet, False),
        "records": "[" + ",".join(map(record_text, what.records)) + "]",
    }
    return "{" + ",".join(f'"{key}":{text}' for key, text in parts.items()) + "}"


def save(what: Recording | Scenario, path: str | Path) -> None:
    """Write the canonical text of a scenario or a recording into a file.

    Parameters
    ----------
    what : Recording or Scenario
    path : str or Path
    """
    Path(path).write_text(dumps(what), encoding="utf-8")
