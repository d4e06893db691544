"""Scenarios: small programs for a few processes and the KSM daemon.

This module holds the file format: scenarios and recordings, their check on the way in, their canonical text on the way
out. What an operation may say stands in :mod:`ksmwalk.scenarios.ops`. What could be seen after each operation, the
records, is built in :mod:`ksmwalk.scenarios.records` and compared in :mod:`ksmwalk.scenarios.compare`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ..host import ADVICE
from ..layout import PAGE_SIZE as PAGE
from . import environment, kinds
from . import ops as operations
from .kinds import KNOBS, MOST_RECORDS, VPN_END, Check, Op, ScenarioError, is_int
from .record_check import check_record

__all__ = [
    "ADVICE", "KNOBS", "PAGE", "VPN_END", "Op", "Recording", "Scenario", "ScenarioError", "dumps", "load",
    "record_text", "recording_from_json", "save", "scenario_from_json",
]  # fmt: skip

#: bytes of a file that are read at most
MOST_FILE_BYTES = 1 << 26
#: lists in lists that a file may have: twice what the format needs
_MOST_DEEP = 16
#: characters of a scenario's name: it names files
_MOST_NAME = 200


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
    #: settings of the machine around it (`scenarios.environment`)
    env: dict[str, Any] = field(default_factory=dict)
    #: whether the batches of all CPUs are drained before each operation
    settle: bool = True
    #: counters of /proc/vmstat that records hold
    vmstat: list[str] = field(default_factory=list)

    def steps(self) -> Iterator[tuple[int, Op]]:
        """Yield (index of the operation, operation) once per record, ``["step", k]`` as k times ``["step"]``."""
        for index, op in enumerate(self.ops):
            for single in operations.singles(op):
                yield index, single

    @property
    def nr_records(self) -> int:
        """How many records it makes."""
        return sum(map(operations.nr_records, self.ops))

    def to_json(self) -> dict[str, Any]:
        """Return the scenario as what a file holds."""
        out: dict[str, Any] = {"name": self.name, "note": self.note, "tunables": self.tunables, "ops": self.ops}
        if self.env:
            out["env"] = self.env
        if not self.settle:
            out["settle"] = 0
        if self.vmstat:
            out["vmstat"] = self.vmstat
        return out


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


def scenario_from_json(data: object, file: str = "scenario") -> Scenario:
    """Check what a file holds and return it as a scenario.

    Parameters
    ----------
    data : object
        Decoded JSON: an object with ``name``, ``ops`` and perhaps ``note``, ``tunables``, ``env``, ``settle`` and
        ``vmstat``.
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
    check = Check(file)
    if not isinstance(data, dict):
        check.fail("a scenario is an object, not", data)
    for key in data:
        if key not in ("name", "note", "tunables", "ops", "env", "settle", "vmstat"):
            check.fail("no part of a scenario", key)
    name, note = data.get("name", _stem(file)), data.get("note", "")
    tunables, ops = data.get("tunables", {}), data.get("ops")
    parts = (("name", name, str), ("note", note, str), ("tunables", tunables, dict), ("ops", ops, list))
    for what, value, kind in parts:
        if not isinstance(value, kind):
            check.fail(f"{what} of a scenario must be a {kind.__name__}, not", value)
    if not name or not name.isprintable() or "/" in name or name.startswith(".") or len(name) > _MOST_NAME:
        # shrunk scenarios are saved under it
        check.fail(f"a name is 1 to {_MOST_NAME} letters to be printed, no slash, no dot in front, not", name)
    check.where = f"{file}: tunables"
    tunables = {
        kinds.KNOB(check, [], knob): kinds.KNOB_VALUE(check, [knob], value)
        for knob, value in tunables.items()
    }
    check.where = file
    env = environment.checked(check, data.get("env", {}))
    settle = environment.checked_settle(check, data.get("settle", 1))
    vmstat = environment.checked_vmstat(check, data.get("vmstat", []))
    done = [check.op(index, op, operations.OPS) for index, op in enumerate(check.listed(ops))]
    made = Scenario(name, done, note, tunables, env, settle, vmstat)
    check.where = file
    if (steps := made.nr_records) > MOST_RECORDS:
        check.fail(f"a scenario makes {MOST_RECORDS} records at most, not", steps)
    return made


def _stem(file: str) -> str:
    """A name for what has none, out of the file's."""
    text = "".join(letter if letter.isprintable() else "?" for letter in Path(file).stem)
    return text.lstrip(".")[:_MOST_NAME] or "scenario"


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
        Names the file, the record's index and the value refused.
    """
    if not isinstance(data, dict) or "scenario" not in data:
        return Recording(scenario_from_json(data, file))
    check = Check(file)
    for key in data:
        if key not in ("scenario", "kernel", "runs", "nondet", "records"):
            check.fail("no part of a recording", key)
    scenario = scenario_from_json(data["scenario"], file)
    kernel, runs = data.get("kernel", ""), data.get("runs", 0)
    nondet, records = data.get("nondet", []), data.get("records")
    if not isinstance(kernel, str):
        check.fail("kernel is a text, not", kernel)
    if not is_int(runs) or not 0 <= runs < 1 << 31:
        check.fail("runs is a whole number, not", runs)
    if not isinstance(nondet, list) or not all(isinstance(name, str) for name in nondet):
        check.fail("nondet is a list of field names, not", nondet)
    if records is not None:
        _check_records(check, scenario, records)
    return Recording(scenario, kernel, runs, nondet, records)


def _check_records(check: Check, scenario: Scenario, records: object) -> None:
    if not isinstance(records, list):
        check.fail("records are a list, not", records)
    for index, (record, (_, op)) in enumerate(zip(records, scenario.steps(), strict=False)):
        check.where = f"{check.file}: record {index}"
        check_record(record, check.fail)
        if record.get("op") != op:
            check.fail(f"the record of {json.dumps(op)} is said to be of", record.get("op"))
    check.where = check.file
    if len(records) != scenario.nr_records:
        check.fail(f"{scenario.nr_records} records are wanted, one per operation and batch, not", len(records))


# ---------------------------------------------------------------- files


def load(path: str | Path) -> Recording:
    """Read a scenario or a recording from a JSON file.

    Parameters
    ----------
    path : str or Path
        A file, or a pipe somebody writes into.

    Returns
    -------
    Recording
        Its ``records`` are None where the file has none.

    Raises
    ------
    ScenarioError
        The file holds no JSON, or more than 64 MiB, or says what a scenario may not; the file, the operation and the
        value are named.
    OSError
        The file can't be read.
    """
    data = _bytes_of(path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: byte {error.start}", "not UTF-8", error.object[error.start : error.end]) from None
    where = str(path)
    try:
        made = json.loads(
            text, parse_constant=lambda word: _refuse(where, "no number of JSON", word),
            object_pairs_hook=lambda pairs: _once(where, pairs),
        )  # fmt: skip
    except json.JSONDecodeError as error:
        at, seen = f"{path}: line {error.lineno} column {error.colno}", error.doc[error.pos :][:20]
        raise ScenarioError(at, error.msg, seen) from None
    except ScenarioError:
        raise
    except ValueError as error:  # a number of more digits than Python reads
        raise ScenarioError(where, "a number that can't be read", str(error)) from None
    except RecursionError:
        _refuse(where, "lists in lists may go this deep", _MOST_DEEP)
    _check_depth(where, made)
    return recording_from_json(made, where)


def _refuse(where: str, what: str, value: object) -> NoReturn:
    raise ScenarioError(where, what, value)


def _once(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON in which each name stands once."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        _refuse(where, "stands twice in one object", next(name for name in names if names.count(name) > 1))
    return made


def _check_depth(where: str, data: object) -> None:
    """Refuse what other code, which calls itself, would not come to the end of."""
    level = [data]
    for _ in range(_MOST_DEEP):
        below = []
        for one in level:
            if isinstance(one, list):
                below += one
            elif isinstance(one, dict):
                below += one.values()
        level = [one for one in below if isinstance(one, (list, dict))]
        if not level:
            return
    _refuse(where, "lists in lists may go this deep", _MOST_DEEP)


def _bytes_of(path: str | Path) -> bytes:
    """What a file holds, if that is of a size that can be meant."""
    try:
        # a pipe that nobody writes into would be waited for otherwise
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except ValueError as error:  # a zero byte in the name
        raise ScenarioError(repr(path), "no name of a file", str(error)) from None
    with open(fd, "rb", buffering=0) as file:
        kind = os.fstat(fd).st_mode
        if stat.S_ISDIR(kind):
            _refuse(str(path), "a file is wanted, not", "a directory")
        if not stat.S_ISREG(kind) and not stat.S_ISFIFO(kind):
            _refuse(str(path), "a file is wanted, not", "a device or a socket")
        os.set_blocking(fd, True)
        data = bytearray()
        while len(data) <= MOST_FILE_BYTES and (some := file.read(1 << 20)):
            data += some
    if len(data) > MOST_FILE_BYTES:
        _refuse(str(path), "a file of more bytes than are read", MOST_FILE_BYTES)
    return bytes(data)


# ---------------------------------------------------------------- the canonical text on the way out


def _text(value: object, sort: bool) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=sort, allow_nan=False)


def record_text(record: Any) -> str:
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
