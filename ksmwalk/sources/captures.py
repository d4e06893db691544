"""Captures kept in directories: arrays over all processes in .npy files, and meta.json, which says whose they are.

For their owner alone. Frame numbers are not the machine's own: they begin at one block, in the same order, each in its
place in the block of 2 MiB.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import KsmwalkError
from ..gate import shown
from ..ksm import sysfs
from ..layout import stored
from ..proc.maps import VmaRecord
from ..proc.processes import Identity
from ..signatures import AnyArray, RecordArray
from .checking import (
    ALWAYS,
    MOST_CONTENTS,
    VMA_DTYPE,
    VMA_NUMBERS,
    VMA_TEXTS,
    Fields,
    Wrong,
    check_folios,
    check_pages,
    check_vmas,
)
from .contents import MemoryCapture
from .memory import renumbered
from .reading import PAGE_ARRAYS, ProcessCapture

__all__ = ["META", "BadCapture", "check_place", "is_capture", "open_capture", "save_capture"]

KIND = "saved capture"
VERSION = 1
META = "meta.json"
# thousands of processes with long command lines
_FORM = stored.Form(META, 1 << 28, private=True)
_DTYPES = {**PAGE_ARRAYS, "folios": np.dtype(np.int64), "vmas": VMA_DTYPE, "digests": np.dtype(np.uint64)}
_MOST_PAGES = 1 << 44
_MOST_PID = (1 << 31) - 1
_IDENTITY = ("uid", "cgroup", "container", "command", "started")
# Half of a pair: JSON would make one letter of two such.
_HIGH = re.compile("[\ud800-\udbff]")


class BadCapture(KsmwalkError, ValueError):
    """A directory that holds no capture that can be used; the text names the file and the place in it."""


# ------------------------------------------------------------------ keeping


def save_capture(capture: MemoryCapture, directory: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Keep a capture in a directory, whole or not at all.

    Parameters
    ----------
    capture : MemoryCapture
    directory : path
        Not there yet, or empty; with `overwrite` one that holds a capture. It gets mode 0700, its files 0600.
    overwrite : bool

    Raises
    ------
    FileExistsError
        Something is there already.
    OSError
        A symbolic link, no room, no permission; what was there is still there.
    ValueError
        The capture holds what `open_capture` would refuse; what and where.

    Models: nothing of Linux. Differs: has no counterpart there.
    """
    processes = renumbered(capture.processes)
    meta, vmas = _meta_of(capture, processes)
    try:
        again = json.loads(json.dumps(meta))
        wanted = _read_meta(again)
        if again != meta or any(map(_HIGH.search, meta["texts"])) or _HIGH.search(repr(meta["processes"])):
            raise ValueError("holds what JSON can't keep")
        at = 0
        for one, about in zip(processes, wanted.processes, strict=True):
            arrays = {name: getattr(one, name) for name in about.has}
            _check_lengths(arrays, about)
            rows = vmas[at : at + about.vmas]
            at += about.vmas
            check_vmas(rows, meta["texts"], about.where)
            if one.folios.dtype != np.int64 or one.folios.ndim != 1:
                raise Wrong("folios", f"{about.where}: dtype {one.folios.dtype}, {one.folios.ndim} dimensions")
            check_folios(one.folios, about.where)
            check_pages(arrays, one.folios, rows, meta["texts"], capture.nr_contents, about.where)
        if capture.digests is not None:
            _check_digests(capture.digests.dtype, capture.digests.shape, capture.nr_contents)
    except ValueError as error:
        raise ValueError(f"this capture can't be kept: {error}") from None
    arrays = {
        name: stored.Pieces(dtype, [array for one in processes if (array := getattr(one, name)) is not None])
        for name, dtype in PAGE_ARRAYS.items()
    }
    arrays["folios"] = stored.Pieces(_DTYPES["folios"], [one.folios for one in processes])
    arrays["vmas"] = vmas
    if capture.digests is not None:
        arrays["digests"] = capture.digests
    stored.write(directory, arrays, KIND, VERSION, overwrite, more=meta, form=_FORM)


def check_place(directory: str | os.PathLike[str], overwrite: bool = False) -> None:
    """See that a capture can be kept in a directory, before the work of making it.

    Parameters, errors: as for `save_capture`.
    """
    stored.check_place(directory, overwrite, _FORM)
    above = Path(os.path.abspath(directory)).parent
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise NotADirectoryError(20, os.strerror(20), str(above))
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(13, os.strerror(13), str(above))


def _meta_of(capture: MemoryCapture, processes: list[ProcessCapture]) -> tuple[dict[str, Any], RecordArray]:
    """What is said of the arrays, and the mappings of all processes: VMA_DTYPE[n]."""
    texts: dict[str, int] = {}

    def number(text: str) -> int:
        if not isinstance(text, str):
            raise ValueError(f"a mapping has {shown(text)} where a text belongs")
        return texts.setdefault(text, len(texts))

    rows = []
    for one in processes:
        for vma in one.vmas:
            letters = " ".join(vma.flags)
            if tuple(letters.split(" ") if letters else ()) != tuple(vma.flags):
                raise ValueError(f"mapping {vma}: flags {shown(vma.flags)} can't be kept")
            words = (vma.perms, vma.device, vma.name, letters)
            rows.append((*(getattr(vma, name) for name in VMA_NUMBERS), *map(number, words)))
    try:
        vmas = np.array(rows, VMA_DTYPE)
    except (OverflowError, TypeError) as error:
        raise ValueError(f"a mapping can't be kept: {error}") from None
    meta = {
        "nr_contents": int(capture.nr_contents),
        "ordered": capture.ordered,
        "samples": capture.samples,
        "seconds_between": float(capture.seconds_between),
        "prefix": float(capture.prefix),
        "machine": capture.machine,
        "registered": capture.registered,
        "sources": capture.sources,
        "notes": capture.notes,
        "seconds": {name: float(value) for name, value in capture.seconds.items()},
        "processes": [_about_process(one) for one in processes],
        "texts": list(texts),
    }
    return meta, vmas


def _about_process(one: ProcessCapture) -> dict[str, Any]:
    who = one.identity
    return {
        "pid": one.pid,
        "name": one.name,
        "pages": one.nr_pages,
        "vmas": len(one.vmas),
        "folios": len(one.folios),
        "has": [name for name in PAGE_ARRAYS if getattr(one, name) is not None],
        "identity": {name: list(who.command) if name == "command" else getattr(who, name) for name in _IDENTITY},
        "ksm_stat": one.ksm_stat,
        "found_by": one.found_by,
        "attempts": one.attempts,
        "seconds": {name: float(value) for name, value in one.seconds.items()},
        "notes": one.notes,
    }


# ------------------------------------------------------------------ what meta.json says


class _About:
    """A process, as meta.json has it."""

    def __init__(self, value: object, number: int):
        fields = Fields(value, f"processes[{number}]")
        self.pid = fields.integer("pid", 0, _MOST_PID)
        self.name = fields.text("name")
        self.where = f"process {number} (pid {self.pid})"
        self.pages = fields.integer("pages", 0, _MOST_PAGES)
        self.vmas = fields.integer("vmas", 1, _MOST_PAGES)
        self.folios = fields.integer("folios", 0, _MOST_PAGES)
        self.has: list[str] = fields.items("has", str, "names of arrays")
        if self.has != [name for name in PAGE_ARRAYS if name in self.has] or not set(ALWAYS) <= set(self.has):
            raise ValueError(f"{fields.path('has')} {shown(self.has)}: must be {', '.join(ALWAYS)} and more of "
                             f"{', '.join(PAGE_ARRAYS)}, in this order")  # fmt: skip
        who = Fields(fields.take("identity"), fields.path("identity"))
        self.identity = Identity(
            who.integer("uid", -1, (1 << 32) - 1),
            who.text("cgroup"),
            who.text("container"),
            tuple(who.items("command", str, "texts")),
            who.integer("started", 0, (1 << 64) - 1),
        )
        who.done()
        self.ksm_stat: dict[str, int] = fields.numbers("ksm_stat")
        self.found_by = fields.text("found_by")
        self.attempts = fields.integer("attempts", 0, 1 << 31)
        self.seconds: dict[str, float] = fields.numbers("seconds", real=True)
        self.notes: list[str] = fields.items("notes", str, "texts")
        fields.done()


class _Meta:
    """All of meta.json but what `layout.stored` reads."""

    def __init__(self, value: object):
        fields = Fields(value)
        self.nr_contents = fields.integer("nr_contents", 0, MOST_CONTENTS)
        self.ordered = fields.flag("ordered")
        self.samples = fields.integer("samples", 1, 1 << 31)
        self.seconds_between = fields.number("seconds_between")
        self.prefix = fields.number("prefix")
        self.machine: dict[str, Any] = Fields(fields.take("machine"), "machine").left
        _check_machine(self.machine, "machine")
        self.registered: list[int] | None = fields.optional("registered", int, "integers")
        self.sources: list[str] | None = fields.optional("sources", str, "texts")
        self.notes: list[str] = fields.items("notes", str, "texts")
        self.seconds: dict[str, float] = fields.numbers("seconds", real=True)
        self.texts: list[str] = fields.items("texts", str, "texts")
        self.processes = [_About(one, i) for i, one in enumerate(fields.items("processes", dict, "objects"))]
        if self.sources is not None and len(self.sources) != len(self.processes):
            raise ValueError(f"sources: {len(self.sources)} of them, must be one for each of {len(self.processes)} processes")
        fields.done()


_read_meta = _Meta


def _check_machine(machine: Mapping[str, Any], place: str) -> None:
    """Refuse what others rely on and is of another type; the rest is only shown."""
    fields = Fields(machine, place)
    for name in ("kind", "release", "version", "hostname"):
        if name in machine:
            fields.text(name)
    if "mem_total" in machine:
        fields.integer("mem_total", 0, (1 << 63) - 1)
    if "uptime" in machine:
        fields.number("uptime")
    if "ksm" in machine:
        knobs = Fields(fields.take("ksm"), f"{place}.ksm")
        for name in list(knobs.left):
            text = knobs.text(name)
            # a mode of the advisor that is not known yet is no damage, and nothing rests on it
            if name in sysfs.KNOBS and name != "advisor_mode":
                try:
                    sysfs.KNOBS[name].read(text)
                except OSError as error:
                    raise ValueError(f"{place}.ksm: {error.strerror}") from None
    for i, one in enumerate(fields.items("machines", dict, "objects") if "machines" in machine else []):
        _check_machine(one, f"{place}.machines[{i}]")


# ------------------------------------------------------------------ opening


def is_capture(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a directory that says it holds a capture; whether it does, `open_capture` finds out."""
    return os.path.isdir(path) and os.path.lexists(os.path.join(path, META))


def open_capture(directory: str | os.PathLike[str], *, mmap: bool = False) -> MemoryCapture:
    """Read a capture that `save_capture` kept, and look at all of it before anything is made of it.

    Parameters
    ----------
    directory : path
    mmap : bool
        Map the files instead of reading them: for captures larger than memory. What is changed in a file later, and a
        file that is cut off, is not noticed then (the process would be killed): only where nobody else writes.

    Returns
    -------
    MemoryCapture

    Raises
    ------
    BadCapture
        No capture, a damaged one, one of a newer ksmwalk: with file and field.
    OSError
        A file is missing, can't be opened, or is none (a link, a device).

    Models: nothing of Linux. Differs: has no counterpart there.
    """
    path = Path(directory)
    try:
        with stored.opened_with_more(path, KIND, VERSION, set(_DTYPES), _FORM) as (files, more):
            meta = _meta_in(path, more)
            _check_files(path, files, meta)
            arrays = {name: file.map() if mmap else file.read() for name, file in files.items()}
    except BadCapture:
        raise
    except ValueError as error:
        raise BadCapture(str(error)) from None
    try:
        processes = list(_processes(arrays, meta))
    except Wrong as error:
        raise BadCapture(f"{path / error.name}.npy: {error.why}") from None
    return MemoryCapture(
        processes, meta.nr_contents, meta.ordered, meta.samples, meta.seconds_between, meta.machine, meta.registered,
        arrays.get("digests"), meta.sources, meta.notes, meta.seconds, meta.prefix,
    )  # fmt: skip


def _meta_in(path: Path, more: dict[str, Any]) -> _Meta:
    try:
        return _read_meta(more)
    except ValueError as error:
        raise BadCapture(f"{path / META}: {error}") from None


def _check_files(path: Path, files: Mapping[str, stored.Stored], meta: _Meta) -> None:
    """Refuse arrays that are missing, or not as long as meta.json says; no memory is taken for them before."""
    wanted = {name: (sum(one.pages for one in meta.processes if name in one.has),) for name in PAGE_ARRAYS}
    wanted["vmas"] = (sum(one.vmas for one in meta.processes),)
    wanted["folios"] = (sum(one.folios for one in meta.processes),)
    for name in wanted:
        if name not in files:
            raise BadCapture(f"{path / META}: array {name} is missing")
    for name, file in files.items():
        if file.dtype != _DTYPES[name]:
            raise BadCapture(f"{file.where}: dtype {shown(str(file.dtype))}, must be {shown(str(_DTYPES[name]))}")
        if name == "digests":
            try:
                _check_digests(file.dtype, file.shape, meta.nr_contents)
            except Wrong as error:
                raise BadCapture(f"{file.where}: {error.why}") from None
        elif file.shape != wanted[name]:
            raise BadCapture(f"{file.where}: shape {file.shape}, must be {wanted[name]} by {META}")


def _check_digests(dtype: np.dtype[Any], shape: tuple[int, ...], nr_contents: int) -> None:
    if dtype != np.uint64 or shape != (nr_contents, 2):
        raise Wrong("digests", f"dtype {dtype}, shape {shape}: must be uint64, {(nr_contents, 2)}, two for each content")


def _check_lengths(arrays: Mapping[str, AnyArray], about: _About) -> None:
    for name, array in arrays.items():
        if array.dtype != PAGE_ARRAYS[name] or array.shape != (about.pages,):
            wanted = f"{PAGE_ARRAYS[name]}, ({about.pages},)"
            raise Wrong(name, f"{about.where}: dtype {array.dtype}, shape {array.shape}: must be {wanted}")


def _processes(arrays: Mapping[str, AnyArray], meta: _Meta) -> Iterator[ProcessCapture]:
    """The processes, each with its part of the arrays."""
    at = dict.fromkeys(("vmas", "folios", *PAGE_ARRAYS), 0)
    for one in meta.processes:
        mine = {}
        for name in one.has:
            mine[name] = arrays[name][at[name] : at[name] + one.pages]
            at[name] += one.pages
        rows = arrays["vmas"][at["vmas"] : at["vmas"] + one.vmas]
        at["vmas"] += one.vmas
        folios = arrays["folios"][at["folios"] : at["folios"] + one.folios]
        at["folios"] += one.folios
        check_vmas(rows, meta.texts, one.where)
        check_folios(folios, one.where)
        check_pages(mine, folios, rows, meta.texts, meta.nr_contents, one.where)
        yield ProcessCapture(
            one.pid, one.name, _records(rows, meta.texts), **mine, folios=folios, identity=one.identity,
            ksm_stat=one.ksm_stat, found_by=one.found_by, attempts=one.attempts, seconds=one.seconds, notes=one.notes,
        )  # fmt: skip


def _records(rows: RecordArray, texts: list[str]) -> list[VmaRecord]:
    out = []
    flags: dict[int, tuple[str, ...]] = {}
    for row in rows.tolist():
        values = dict(zip(VMA_NUMBERS + VMA_TEXTS, row, strict=True))
        number = values["flags"]
        if number not in flags:
            flags[number] = tuple(texts[number].split(" ")) if texts[number] else ()
        words = {name: texts[values[name]] for name in ("perms", "device", "name")}
        out.append(VmaRecord(**{**values, **words, "flags": flags[number]}))
    return out
