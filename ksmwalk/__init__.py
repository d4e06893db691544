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

import sys
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

#: the one place that says it: setup.py and the documentation read it here
__version__ = "0.1.0"


def _why_not(error: ImportError) -> str | None:
    """One line for an import that failed because nothing is compiled here; None where it has another cause."""
    here = Path(__file__).resolve().parent
    sources = [*here.glob("_*.pyx"), *here.glob("*/_*.pyx")]
    unbuilt = [s.name for s in sources if not any(s.with_suffix(end).exists() for end in EXTENSION_SUFFIXES)]
    if not unbuilt or isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("ksmwalk"):
        return None
    some = ", ".join(sorted(unbuilt)[:3]) + (", ..." if len(unbuilt) > 3 else "")
    return (
        f"{here} is the source tree of ksmwalk, in which {some} {'is' if len(unbuilt) == 1 else 'are'} not compiled for Python"
        f" {sys.version_info[0]}.{sys.version_info[1]}: build it here with `pip install -e .`, or install with"
        " `pip install .` and start Python from another folder or with -P (for the tests: `pytest`)"
    )


try:
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
except ImportError as _error:
    if _reason := _why_not(_error):
        raise ImportError(_reason, name="ksmwalk", path=__file__) from None
    raise

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
    """Directory of the headers: of `ksmwalk.h` and `ksmwalk.hpp`, and of those that a `cimport` needs."""
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
