"""Walk page tables and model Linux's samepage merging (KSM) exactly.

Start from a `Host`: physical memory, address spaces and one KSM over them, all of it numpy arrays.

>>> import ksmwalk
>>> host = ksmwalk.Host(nr_frames=4096)
>>> mm = host.new_mm()
>>> addr = mm.mmap(1 << 20)
>>> mm.madvise(addr, 1 << 20, "mergeable")
>>> mm.write(addr, 42)
>>> item, pfn = host.ksm.scan.scan_get_next_rmap_item()
>>> item.address == addr
True
"""

from importlib import import_module
from pathlib import Path

from . import _moved, entries
from .entries import Pte
from .errors import ArenaFullError, BadEntryError, KsmwalkError
from .host import Host, Mm, Vma
from .ksm.ksmd import Ksm
from .ksm.rmap import RmapItem
from .ksm.scan import KsmScan
from .layout import Frame, Perm, Strategy, Vm
from .memory.frames import Frames
from .tables import PageTables
from .tables.pagewalk import (
    Action,
    Entry,
    MmWalk,
    MmWalkOps,
    walk_page_range,
    walk_page_range_novma,
    walk_page_range_vma,
    walk_page_vma,
)

__version__ = "0.1.0"

_moved.install()

__all__ = [
    "Action",
    "ArenaFullError",
    "BadEntryError",
    "Entry",
    "Frame",
    "Frames",
    "Host",
    "Ksm",
    "KsmScan",
    "KsmwalkError",
    "Mm",
    "MmWalk",
    "MmWalkOps",
    "PageTables",
    "Perm",
    "Pte",
    "RmapItem",
    "Strategy",
    "Vm",
    "Vma",
    "build_info",
    "entries",
    "get_include",
    "walk_page_range",
    "walk_page_range_novma",
    "walk_page_range_vma",
    "walk_page_vma",
]


def __getattr__(name: str) -> object:
    if f"ksmwalk.{name}" in _moved.MOVED:
        return import_module(f"ksmwalk.{name}")
    raise AttributeError(f"module 'ksmwalk' has no attribute {name!r}")


def get_include() -> str:
    """Directory to pass to the C compiler for modules that `cimport ksmwalk._core` (it holds `_layout.h`)."""
    return str(Path(__file__).resolve().parent / "layout")


def build_info() -> dict[str, object]:
    """What the compiled modules were built with.

    Returns
    -------
    dict
        `version` of ksmwalk, `profile` (release, checked, trace), `compiler`, `wide` (wide loops in use on this
        processor), and versions of `python` and `numpy`.
    """
    import platform

    import numpy

    from ._core import build_facts

    profile, compiler, wide = build_facts()
    return {
        "version": __version__,
        "profile": profile,
        "compiler": compiler,
        "wide": wide,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
    }
