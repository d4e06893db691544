"""A made-up machine whose KSM answers writes as the real one does, for what drives it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from fakeroot import FakeRoot

from ksmwalk.kernel import applied, apply, knobs, state
from ksmwalk.ksm import sysfs


class FakeKernel(FakeRoot):
    """KSM's files, of which `writes` keeps what was written, in order, with the answer."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch):
        super().__init__(path)
        self.writes: list[tuple[str, str, int]] = []
        self.refuses: dict[tuple[str, str], int] = {}
        #: pages that come to be merged as soon as KSM runs
        self.merges = 0
        (path / "run").mkdir(mode=0o755)
        monkeypatch.setattr(apply, "ROOT", path)
        monkeypatch.setattr(knobs, "KSM", self.ksm)
        monkeypatch.setattr(knobs, "AROUND", {})
        monkeypatch.setattr(knobs, "mergeable_processes", list)
        monkeypatch.setattr(knobs, "write_file", self.write)
        monkeypatch.setattr(state, "DIRECTORY", path / "run/ksmwalk")
        monkeypatch.setattr(state, "OLD_LOCK", path / "run/old.lock")
        (self.proc / "meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable:    4000 kB\n")

    @property
    def journal(self) -> Path:
        return state.DIRECTORY / applied.JOURNAL

    def holds(self, name: str) -> str:
        return knobs.read(name)

    def all(self) -> dict[str, str]:
        return {name: self.holds(name) for name in sysfs.KNOBS if (self.ksm / name).exists()}

    def write(self, path: Path, text: str) -> int:
        answer = -self._write(path.name, text)
        self.writes.append((path.name, text, answer))
        return answer

    def _write(self, name: str, text: str) -> int:
        if not (self.ksm / name).exists():
            return errno.ENOENT
        if error := self.refuses.get((name, text)):
            return error
        try:
            number = sysfs.KNOBS[name].read(text)
        except OSError as error:
            return error.errno
        shared = self.holds("pages_shared") != "0"
        if name == "pages_to_scan" and self.holds("advisor_mode") != "none":
            return errno.EINVAL
        if name in applied.ONLY_UNSHARED and shared and text != self.holds(name):
            return errno.EBUSY
        if name == "advisor_mode":
            if text != self.holds(name):
                self.set("pages_to_scan", 500 if number else 100)
            self.set(name, "none [scan-time]" if number else "[none] scan-time")
            return 0
        self.set(name, number)
        if name == "run" and number == 1 and self.merges:
            self.sets(pages_shared=1, pages_sharing=self.merges)
        if name == "run" and number == 2:
            self.sets(pages_shared=0, pages_sharing=0, ksm_zero_pages=0)
        return 0


ROW = {
    "pid": 999999999, "name": "python", "command": ["python", "server.py"], "freed_bytes": 1 << 20, "ksm_rmap_items": 300,
    "ksm_merging_pages": 256, "ksm_zero_pages": 0, "uid": 0, "cgroup": "/", "container": "",
}  # fmt: skip


def row(**changed: object) -> dict[str, object]:
    """A process of an estimate."""
    return {**ROW, **changed}


def an_estimate(*rows: dict[str, object], knobs_: dict[str, object] | None = None, **advice: object) -> dict[str, object]:
    """What `ksmwalk estimate --json` prints, as far as `apply` goes by it."""
    rows = rows or (ROW,)
    best = {"pages_to_scan": 2000, "sleep_millisecs": 20}
    return {
        "expected": {"freed_bytes": 1 << 20, "pages_shared": 1, "pages_sharing": 256, "ksm_zero_pages": 0, "full_scans": 6},
        "knobs": {name: row.show(row.default) for name, row in sysfs.KNOBS.items()} | (knobs_ or {}),
        "by_process": list(rows),
        "advice": {
            "worth": True, "why": "", "best": best, **advice,
            "processes": [{"pid": one["pid"], "name": one["name"]} for one in rows],
        },
    }  # fmt: skip
