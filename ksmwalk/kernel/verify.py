"""The model held against the real kernel of this machine or of an emulated one, record for record."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..scenarios import shrink as shrinking
from ..scenarios.compare import Difference, differing_fields, first_difference, states, without_events
from ..scenarios.format import Recording, Scenario, ScenarioError, save
from ..scenarios.records import COUNTERS, STATS, Record
from ..scenarios.replay import NotModelled
from ..scenarios.said import said
from .guest import Guest
from .stepper import Session
from .worker import WorkerDied

Replay = Callable[[Scenario], Sequence[Record]]

#: what can come of a scenario besides that it agrees or differs
_OTHER = ("not modelled", "left out", "not repeatable", "not run")

#: how often a scenario that differs is run again, to see whether the kernel agrees with itself
_RERUNS = 12


@dataclass
class Verdict:
    """What came of one scenario.

    Attributes
    ----------
    scenario : Scenario
    status : str
        ``agrees``, ``differs``, ``not modelled``, ``left out`` (about something that this kernel does not have),
        ``not repeatable`` (the kernel does not agree with itself, and the model with none of its answers) or ``not
        run`` (it says what can't be done here).
    difference : Difference or None
        The first one.
    reason : str
        Why it is not modelled or left out, or what the model died of.
    nondet : list of str
        Fields in which the kernel's own answers differ.
    minimal : Scenario or None
        A shrunk scenario that still differs.
    saved : Path or None
        Where that is.
    """

    scenario: Scenario
    status: str
    records: int = 0
    difference: Difference | None = None
    reason: str = ""
    nondet: list[str] = field(default_factory=list)
    minimal: Scenario | None = None
    saved: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as plain data."""
        out: dict[str, Any] = {"name": self.scenario.name, "status": self.status, "records": self.records}
        if self.difference:
            out["record"] = self.difference.index
            out["op"] = self.difference.op
            out["fields"] = [
                {"field": name, "model": want, "kernel": got} for name, want, got in self.difference.fields
            ]
        for key, value in (("reason", self.reason), ("nondet", self.nondet), ("saved", self.saved)):
            if value:
                out[key] = value if isinstance(value, list) else str(value)
        return out


@dataclass
class Results:
    """What came of a verify run.

    Attributes
    ----------
    kernel : str
    left_out : list of str
        What this kernel does not show.
    verdicts : list of Verdict
    seconds, kernel_seconds, model_seconds : float
    values : int
        Single values compared: every counter and statistic, the code of every page present, every event.
    changes : Counter
        How many records show a change of a field: ``c.full_scans``, ``s.rmap_items``, ``p.k``, ``t.new``.
    ops : Counter
        Operations run, by name.
    said, agreed : Counter
        In how many of the scenarios that were run each thing is said (`scenarios.said`), and how many of these agree.
    lacking : list of str
        What operations need and this machine has not.
    """

    kernel: str
    left_out: list[str]
    verdicts: list[Verdict] = field(default_factory=list)
    seconds: float = 0.0
    kernel_seconds: float = 0.0
    model_seconds: float = 0.0
    values: int = 0
    changes: Counter[str] = field(default_factory=Counter)
    ops: Counter[str] = field(default_factory=Counter)
    said: Counter[str] = field(default_factory=Counter)
    agreed: Counter[str] = field(default_factory=Counter)
    lacking: list[str] = field(default_factory=list)

    def count(self, status: str) -> int:
        """Return how many scenarios came to a status."""
        return sum(verdict.status == status for verdict in self.verdicts)

    @property
    def records(self) -> int:
        """Records compared in all."""
        return sum(verdict.records for verdict in self.verdicts)

    def last_line(self) -> str:
        """Return ``N of M agree``, with what else there was."""
        line = f"{self.count('agrees')} of {len(self.verdicts)} agree"
        more = [
            f"{n} {status}" for status in _OTHER if (n := self.count(status))
        ]
        return f"{line} ({', '.join(more)})" if more else line

    def to_json(self) -> dict[str, Any]:
        """Return the results as plain data."""
        return {
            "kernel": self.kernel,
            "left_out": self.left_out,
            "scenarios": len(self.verdicts),
            "agree": self.count("agrees"),
            "records": self.records,
            "values": self.values,
            "seconds": round(self.seconds, 3),
            "kernel_seconds": round(self.kernel_seconds, 3),
            "model_seconds": round(self.model_seconds, 3),
            "changes": dict(sorted(self.changes.items())),
            "ops": dict(sorted(self.ops.items())),
            "said": {word: [number, self.agreed[word]] for word, number in sorted(self.said.items())},
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
        }

    def tally(self, records: Sequence[Record]) -> None:
        """Count what these records let be compared."""
        for record, state in zip(records, states(records), strict=True):
            self.ops[record["op"][0]] += 1
            self.values += len(COUNTERS) + len(STATS) * len(state.stats) + len(record.get("t", ()))
            self.values += sum(map(len, state.pages.values()))
            seen = {f"c.{name}" for name in record.get("c", ())}
            seen |= {f"p.{code[0]}" for runs in record.get("p", {}).values() for _, _, code in runs}
            seen |= {f"t.{text.split()[0]}" for text in record.get("t", ())}
            seen |= {key for key in ("ret", "s") if key in record}
            self.changes.update(seen)


class _Pair:
    """Runs a scenario on both sides and compares."""

    def __init__(self, session: Session | Guest, replay: Replay, results: Results):
        self.session = session
        self.replay = replay
        self.results = results

    def kernel(self, scenario: Scenario) -> list[Record]:
        start = time.perf_counter()
        try:
            return self.session.record(scenario)
        finally:
            self.results.kernel_seconds += time.perf_counter() - start

    def model(self, scenario: Scenario) -> list[Record]:
        start = time.perf_counter()
        try:
            made = list(self.replay(scenario))
        finally:
            self.results.model_seconds += time.perf_counter() - start
        return without_events(made) if "t" in self.session.ignore else made

    def compare(self, model: list[Record], kernel: list[Record], ignore: Iterable[str] = ()) -> Difference | None:
        return first_difference(model, kernel, {*self.session.ignore, *ignore})

    def differs(self, scenario: Scenario, word: str = "") -> bool:
        """Whether the two differ in what the kernel repeats, first at such an operation if one is named; a model that dies
        differs as well."""
        try:
            model = self.model(scenario)
        except (NotModelled, ScenarioError):
            return False
        except Exception:
            return True
        try:
            twice = self.kernel(scenario), self.kernel(scenario)
        except (ScenarioError, WorkerDied):
            return False
        found = [self.compare(model, kernel) for kernel in twice]
        return all(one is not None and word in ("", one.op[0]) for one in found)

    def judge(self, scenario: Scenario, nondet: Sequence[str]) -> Verdict:
        fitted = self.session.fit(scenario)
        if fitted is None:
            return Verdict(scenario, "left out", reason=self.session.lacks(scenario) or "")
        scenario = fitted
        try:
            model = self.model(scenario)
        except NotModelled as error:
            return Verdict(scenario, "not modelled", reason=str(error))
        except ScenarioError as error:
            return Verdict(scenario, "not run", reason=str(error))
        except Exception as error:  # whatever the model dies of is a difference to be shrunk and shown, not our end
            return Verdict(scenario, "differs", reason=f"the model: {type(error).__name__}: {error}")
        try:
            kernel = self.kernel(scenario)
        except (ScenarioError, WorkerDied) as error:
            return Verdict(scenario, "not run", reason=str(error))
        self.results.tally(kernel)
        difference = self.compare(model, kernel, nondet)
        if difference is None:
            return Verdict(scenario, "agrees", len(kernel), nondet=list(nondet))
        # it is the model's fault until the kernel itself is seen to differ between runs
        unsteady: set[str] = set()
        for _ in range(_RERUNS):
            again = self.kernel(scenario)
            if self.compare(model, again, nondet) is None:
                return Verdict(scenario, "agrees", len(again), nondet=sorted(differing_fields(kernel, again)))
            unsteady |= differing_fields(kernel, again)
        status = "not repeatable" if unsteady else "differs"
        return Verdict(scenario, status, len(kernel), difference, nondet=sorted(unsteady))


def verify(
    scenarios: Iterable[Recording | Scenario],
    replay: Replay,
    session: Session | Guest,
    *,
    say: Callable[[str], None] = print,
    progress: Callable[[int, Results], None] | None = None,
    save_to: Path | None = None,
    shrink_seconds: float = 60.0,
    shrink_most: int = 3,
) -> Results:
    """Run scenarios in the model and on the real ksmd, and compare every record.

    Parameters
    ----------
    scenarios : iterable of Recording or Scenario
        Of a recording only the scenario and its `nondet` are used.
    replay : callable of Scenario, returning records
        The model; it raises NotModelled where it does not have an operation.
    session : Session or Guest
        The machine's KSM, taken, or that of an emulated one.
    say : callable of str
        Told of every difference in full and of the last line.
    progress : callable of (int, Results), optional
        Called after each scenario.
    save_to : Path, optional
        Directory for the shrunk scenarios that differ, with the kernel's records.
    shrink_seconds : float
        How long one may be shrunk; 0 for not at all.
    shrink_most : int
        How many are shrunk; what comes after is named only.

    Returns
    -------
    Results
    """
    results = Results(session.kernel, list(session.left_out), lacking=sorted(session.lacking))
    pair = _Pair(session, replay, results)
    start = time.perf_counter()
    for number, item in enumerate(scenarios):
        recording = item if isinstance(item, Recording) else Recording(item)
        verdict = pair.judge(recording.scenario, recording.nondet)
        results.verdicts.append(verdict)
        if verdict.records:
            words = said(verdict.scenario)
            results.said.update(words)
            results.agreed.update(words if verdict.status == "agrees" else ())
        results.seconds = time.perf_counter() - start
        name = recording.scenario.name
        if verdict.status in ("not modelled", "left out", "not run"):
            say(f"{name}: {verdict.status}: {verdict.reason}")
        elif verdict.nondet and verdict.status == "agrees" and not recording.nondet:
            say(f"{name}: agrees, but not with every run of the kernel: {', '.join(verdict.nondet)} differed")
        elif verdict.status == "not repeatable":
            say(f"{name}: the kernel does not agree with itself in {', '.join(verdict.nondet)}")
        elif verdict.status == "differs":
            say(f"{name}: differs\n{_in_full(verdict)}")
            if shrink_seconds > 0 and results.count("differs") <= shrink_most:
                _shrink(pair, verdict, shrink_seconds, save_to, say)
        if progress is not None:
            progress(number, results)
    results.seconds = time.perf_counter() - start
    return results


def _in_full(verdict: Verdict) -> str:
    return verdict.reason or (verdict.difference.text("model", "kernel") if verdict.difference else "")


def _shrink(pair: _Pair, verdict: Verdict, seconds: float, save_to: Path | None, say: Callable[[str], None]) -> None:
    word = verdict.difference.op[0] if verdict.difference else ""
    small = shrinking.shrink(verdict.scenario, lambda one: pair.differs(one, word), seconds=seconds)
    small = replace(small, name=f"{verdict.scenario.name}_min", note=f"shrunk from {verdict.scenario.name}")
    verdict.minimal = small
    judged = pair.judge(small, ())
    say(f"{small.name}: {len(small.ops)} operations\n{_in_full(judged)}")
    if save_to is not None:
        save_to.mkdir(parents=True, exist_ok=True)
        verdict.saved = save_to / f"{small.name}.json"
        save(Recording(small, pair.results.kernel, 1, [], pair.kernel(small)), verdict.saved)
        say(f"saved: {verdict.saved}")
