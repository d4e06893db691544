"""Where modules went when the rooms were made: `import ksmwalk.mm` still gives what is now `ksmwalk.host.mm`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: name of 0.1 -> the module it is now
MOVED = {
    f"ksmwalk.{old}": f"ksmwalk.{new}"
    for old, new in {
        "arena": "layout.arena",
        "cli": "commands.cli",
        "compare": "scenarios.compare",
        "frames": "memory.frames",
        "kernel.commands": "commands.kernel",
        "kernel.generate": "scenarios.generate",
        "kernel.page": "commands.verification_page",
        "kernel.shrink": "scenarios.shrink",
        "ksmd": "ksm.ksmd",
        "mm": "host.mm",
        "pagewalk": "tables.pagewalk",
        "picture": "sources.pictures",
        "plot": "commands.plot",
        "records": "scenarios.records",
        "replay": "scenarios.replay",
        "report": "commands.report",
        "rmap": "ksm.rmap",
        "scan": "ksm.scan",
        "scenario": "scenarios.format",
        "sources.errors": "proc.errors",
        "sources.gather": "proc.gather",
        "sources.maps": "proc.maps",
        "sources.pagemap": "proc.pagemap",
        "sysfs": "ksm.sysfs",
        "vma": "host.vma",
    }.items()
}


class _Moved(Loader):
    """Gives the module itself, under its old name."""

    def __init__(self, new: str):
        self._new = new
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has just written the old name's spec over it.
        module.__spec__ = self._spec


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        new = MOVED.get(fullname)
        return None if new is None else ModuleSpec(fullname, _Moved(new))


def install() -> None:
    """Let `import` find the old names; once for all."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
