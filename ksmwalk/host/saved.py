"""Hosts kept in directories and pickles, and what such a Host must look like before compiled code works on it.

All that the engine relies on is checked: links, lists and trees (each walked once), page tables down to every entry,
counts and counters. So is a Host that is saved: what could not be loaded is not written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core, kernels, layout
from ..ksm import _check as _ksm_check
from ..ksm.sysfs import KNOBS
from ..layout import BLOCK, stored
from ..layout.arena import reserve, shape_of
from ..memory import _check
from . import earlier

if TYPE_CHECKING:
    from .host import Host

KIND = "saved Host"
#: of the arrays and their records; raised when they change. Readers of a version read all before it, from 1 on.
VERSION = 7
#: CPUs that a Host may have
MOST_CPUS = 256

_HUGE_FROM = 1 << 20  # frames
_BIG = 1 << 61  # counts that only grow: nobody comes so far
_INDEXED = (1 << 31) - 1  # records that an int32 can number
#: (array, field, lowest, highest) of numbers that stand for themselves
_NUMBERS = [
    ("ctl", "thp", 0, 2), ("ctl", "anon_vmas", 0, 1 << 30), ("ctl", "vma_serial", 0, _BIG), ("ctl", "mm_serial", 0, _BIG),
    ("ctl", "khuges", 0, 1 << 30), ("ctl", "anon_links", 0, _BIG), ("ctl", "born", 0, _BIG),
    ("ksm", "events_on", 0, 1), ("ksm", "long_wait", 0, 1), ("ksm", "now_ms", 0, _BIG), ("ksm", "generation", 0, _BIG),
    ("ksm", "tree_generation", 0, _BIG), ("ksm", "pages_scanned", 0, _BIG), ("ksm", "pages_skipped", 0, _BIG),
    ("ksm", "zero_pages", -_BIG, _BIG), ("ksm", "advisor", -_BIG, _BIG), ("mms", "nr_zero", -_BIG, _BIG),
    ("mms", "start_brk", 0, _BIG), ("mms", "brk", 0, _BIG),
    ("event_pos", None, 0, _BIG), ("ctl", "mthp", 0, 2), ("ksm", "cpu", 0, MOST_CPUS - 1),
]  # fmt: skip


#: arrays by frame that are not written to before something is there -> the field of ctl that says so, and from where on
_RARE = {"slot_of": ("slots_used", 2), "born_of": ("born", 1), "pins_of": ("dma_pins", 1), "owners": ("folios", 1)}


def _written(ctl: np.ndarray, name: str) -> bool:
    field, least = _RARE[name]
    return int(ctl[field][0]) >= least


class _Wrong(ValueError):
    """What is wrong with an array, so that its file can be named as well."""

    def __init__(self, array: str, message: str):
        super().__init__(message)
        self.array = array


# ------------------------------------------------------------------ what is kept


def used_records(arrays: Mapping[str, np.ndarray], name: str) -> int:
    """Records of one of a Host's arrays that were ever used."""
    ctl = arrays["ctl"]
    if name in _RARE:
        if not _written(ctl, name):
            return 0
        frames = used_records(arrays, "f_flags")
        return -(-frames // 4) if name == "owners" else frames
    if name.startswith("f_"):
        used = np.flatnonzero(arrays["b_count"] < BLOCK)
        return min(int(ctl["nr_frames"][0]), (int(used[-1]) + 1) * BLOCK) if len(used) else 0
    length = layout.ARRAYS[name].shape[0]
    if length.endswith("_cap"):
        return int(ctl[f"{length.removesuffix('_cap')}_used"][0])
    return len(arrays[name])


def kept_arrays(host: Host) -> dict[str, np.ndarray]:
    """The arrays of a Host as far as they were used, no copies.

    Raises
    ------
    ValueError
        They are not those of a Host any more: somebody wrote into them.
    """
    arrays = host.world.arrays
    kept = {name: arrays[name][: used_records(arrays, name)] for name in layout.ARRAYS}
    try:
        check_sizes(kept)
        check_world(host.world, len(kept["f_flags"]), grown=2)
    except ValueError as err:
        raise ValueError(f"this Host could not be loaded again: {err}") from None
    return kept


def save(host: Host, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """`Host.save`."""
    with host.world:  # no other thread changes anything meanwhile
        stored.write(path, kept_arrays(host), KIND, VERSION, overwrite)


def state_of(host: Host) -> dict[str, Any]:
    """What a pickle of a Host holds."""
    with host.world:
        arrays = {name: np.ascontiguousarray(a).copy() for name, a in kept_arrays(host).items()}
    return {"kind": KIND, "version": VERSION, "arrays": arrays}


# ------------------------------------------------------------------ reading it back


def load(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of a Host that `save` left, checked."""
    with stored.opened(path, KIND, VERSION, {*layout.ARRAYS, *earlier.NAMES_BEFORE}) as files:
        found = earlier.seen_as_now(files)
        try:
            ctl = _shaped(found, "ctl")
            ctl = ctl if isinstance(ctl, np.ndarray) else ctl.read()
            return _built({**found, "ctl": ctl}, lambda name, out: found[name].read(out), files)
        except _Wrong as err:
            where = files[err.array].where if err.array in files else path
            raise ValueError(f"{where}: {err}") from None


def from_state(state: object) -> dict[str, np.ndarray]:
    """The same for what a pickle held."""
    stored.check_version(state, KIND, VERSION)
    assert isinstance(state, Mapping)
    arrays = state.get("arrays")
    if not isinstance(arrays, Mapping):
        raise ValueError(f"arrays of type {type(arrays).__name__}: must be a dict")
    strange = [name for name, a in arrays.items() if type(a) is not np.ndarray]
    if strange:
        raise ValueError(f"array {strange[0]}: of type {type(arrays[strange[0]]).__name__}, must be an array")

    kept, arrays = arrays, earlier.seen_as_now(arrays)

    def fill(name: str, out: np.ndarray) -> None:
        array = arrays[name]
        out[...] = array if isinstance(array, np.ndarray) else array.read()

    return _built({**arrays, "ctl": _shaped(arrays, "ctl").copy()}, fill, kept)


def _built(found: Mapping[str, Any], fill: Callable[[str, np.ndarray], object], kept: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Reserve all arrays, once their sizes are known to be right, fill them and check what is in them.

    `kept`: what is read, as the version that saved it kept it.
    """
    check_sizes(found)
    ctl = found["ctl"]
    arrays = new_arrays(ctl)
    for name in layout.ARRAYS:
        if name != "ctl":
            fill(name, arrays[name][: found[name].shape[0]])
    known = found["f_flags"].shape[0]
    nr_frames, nr_nodes = int(ctl["nr_frames"][0]), int(ctl["nr_nodes"][0])
    if nr_nodes > 1 and known < nr_frames:
        blocks = np.arange(known, nr_frames) // BLOCK
        arrays["f_nid"][known:] = blocks * nr_nodes // int(ctl["nr_blocks"][0])
    earlier.complete(arrays, kept)
    check_world(_core.World(arrays), known)
    return arrays


def capacities(nr_frames: int) -> dict[str, int]:
    """Records reserved in each arena: address space, not memory."""
    return {
        "rows": 2 * nr_frames + 4096,
        "vmas": nr_frames // 4 + (1 << 17),
        "anons": earlier.anons(nr_frames // 4 + (1 << 17)),
        "mms": nr_frames // 256 + (1 << 14),
        "items": 8 * nr_frames + (1 << 16),
        "stable": 2 * nr_frames + 1024,
        "trees": layout.TREES,
        "slots": earlier.slots(nr_frames),
    }


def new_arrays(ctl: np.ndarray, huge: bool | None = None) -> dict[str, np.ndarray]:
    """Reserve the arrays of a Host for what its `ctl` says, empty.

    Parameters
    ----------
    ctl : ndarray of layout.CTL, shape (1,)
        Becomes the array of that name.
    huge : bool, optional
        Ask for huge pages for the hot ones. By default from 2**20 frames on.

    Raises
    ------
    MemoryError
        The address space can't be had; the array is named.
    """
    if huge is None:
        huge = int(ctl["nr_frames"][0]) >= _HUGE_FROM
    arrays = {"ctl": ctl}
    for name, array in layout.ARRAYS.items():
        if name == "ctl":
            continue
        length, *columns = shape_of(array, ctl)
        try:
            arrays[name] = reserve(length, array.dtype, shape=tuple(columns), huge=huge and array.random)
        except MemoryError as err:
            raise MemoryError(f"array {name} of {length} records: {err}") from None
    return arrays


# ------------------------------------------------------------------ sizes


def _shaped(found: Mapping[str, Any], name: str) -> Any:
    """One of the arrays, of the right dtype and number of dimensions."""
    if name not in found:
        raise _Wrong(name, f"array {name}: missing")
    array, want = found[name], layout.ARRAYS[name]
    if array.dtype != want.dtype:
        raise _Wrong(name, f"array {name}: dtype {array.dtype}, must be {want.dtype}")
    if len(array.shape) != len(want.shape) or (name in ("ctl", "ksm", "cursor", "work") and array.shape != (1,)):
        raise _Wrong(name, f"array {name}: shape {array.shape}, must be of {' x '.join(want.shape)} records")
    return array


def check_sizes(found: Mapping[str, Any]) -> None:
    """Refuse arrays of other dtypes and lengths than `ctl` says; `ctl` itself, too, so that memory can be reserved.

    Parameters
    ----------
    found : dict of str to ndarray or Stored
        `ctl` an array.

    Raises
    ------
    ValueError
        Naming the array, or the field of `ctl`, and what it holds.
    """
    strange = sorted(set(found) ^ set(layout.ARRAYS))
    if strange:
        raise _Wrong(strange[0], f"array {strange[0]}: missing, or not part of a Host")
    ctl = _shaped(found, "ctl")
    _check_ctl(ctl)
    for name, array in layout.ARRAYS.items():
        shape = _shaped(found, name).shape
        want = shape_of(array, ctl)
        if name.startswith("f_"):
            if shape != found["f_flags"].shape or not 1 <= shape[0] <= want[0]:
                raise _Wrong(name, f"array {name}: shape {shape}, must be that of f_flags and at most {want}")
            continue
        if name in _RARE:
            frames = found["f_flags"].shape[0] if _written(ctl, name) else 0
            want = (-(-frames // 4) if name == "owners" else frames,)
        if array.shape[0].endswith("_cap"):
            want = (int(ctl[array.shape[0].removesuffix("_cap") + "_used"][0]), *want[1:])
        if shape != want:
            raise _Wrong(name, f"array {name}: shape {shape}, must be {want}")


def _check_ctl(ctl: np.ndarray) -> None:
    c = {name: int(ctl[name][0]) for name in ctl.dtype.names or () if ctl[name].ndim == 1}
    for field, low, high in (
        ("nr_frames", 2, 1 << 31), ("nr_nodes", 1, 255), ("levels", 4, 5),
        ("nr_blocks", -(-c["nr_frames"] // BLOCK), -(-c["nr_frames"] // BLOCK)),
        ("nr_quads", -(-c["nr_frames"] // 4), -(-c["nr_frames"] // 4)), ("nr_cpus", 1, MOST_CPUS),
        ("kernel", 0, (1 << kernels.BITS) - 1), ("slots_most", 0, c["slots_cap"] - 1), ("folios", 0, _BIG), ("dma_pins", 0, _BIG),
        ("khuge_none", 0, 511), ("khuge_shared", 0, 511), ("khuge_swap", 0, 511),
        ("nr_nodes", 1, c["nr_blocks"]),
    ):  # fmt: skip
        _within("ctl", field, c[field], low, high)
    for name in ("rows", "vmas", "anons", "mms", "items", "stable", "slots"):
        # Table pages are numbered with 40 bits, but no Host has use for more than a few to a frame.
        most = 1 << 33 if name == "rows" else 1 << 35 if name == "items" else _INDEXED
        _within("ctl", f"{name}_cap", c[f"{name}_cap"], 1, most)
        _within("ctl", f"{name}_used", c[f"{name}_used"], 1, min(c[f"{name}_cap"], _INDEXED if name != "rows" else most))
    _within("ctl", "anons_cap", c["anons_cap"], earlier.anons(c["vmas_cap"]), earlier.anons(c["vmas_cap"]))
    _within("ctl", "trees_cap", c["trees_cap"], layout.TREES, layout.TREES)
    _within("ctl", "trees_used", c["trees_used"], c["nr_nodes"], layout.TREES)
    if c["trees_used"] % c["nr_nodes"]:
        raise _Wrong("ctl", f"ctl.trees_used: record 0 holds {c['trees_used']}, must be a multiple of {c['nr_nodes']} nodes")


def _within(array: str, field: str | None, value: int, low: int, high: int, record: int = 0) -> None:
    if not low <= value <= high:
        name = f"{array}.{field}" if field else array
        raise _Wrong(array, f"{name}: record {record} holds {value}, must be from {low} to {high}")


# ------------------------------------------------------------------ contents


def check_world(world: _core.World, known: int, grown: int = 1) -> None:
    """Refuse arrays, of the right sizes, in which anything is that the engine could not have left there.

    Parameters
    ----------
    world : World
        All arrays of a Host.
    known : int
        Frames from here on were never used.
    grown : int
        How many times the highest value that is loaded a counter may hold: what was loaded at it may be saved.

    Raises
    ------
    ValueError
        Naming array, field, record, what it holds, and what is wrong with that.
    """
    arrays = world.arrays
    for name, field, low, high in _NUMBERS:
        low, high = (low, high) if high <= 2 else (low * grown, high * grown)
        values = np.atleast_1d(arrays[name][field] if field else arrays[name])[: int(arrays["ctl"]["mms_used"][0])].ravel()
        for record in np.flatnonzero((values < low) | (values > high))[:1]:
            _within(name, field, int(values[record]), low, high, int(record))
    _check_knobs(arrays["ksm"])
    found = _check.check_memory(world, known) or _ksm_check.check_ksm(world, known)
    if found is None:
        return
    array, field, record, entry, value, counted, why = found
    name = f"{array}.{field}" if field else array
    place = f"record {record}" if entry is None else f"table page {record}, entry {entry}"
    holds = f"holds {value}" if entry is None else f"holds {value & (1 << 64) - 1:#x}"
    if counted is not None:
        raise _Wrong(array, f"{name}: {place} {holds}, counted {counted} {why}")
    raise _Wrong(array, f"{name}: {place} {holds}: {why}")


def _check_knobs(ksm: np.ndarray) -> None:
    if not int(ksm["max_page_sharing"][0]):
        return  # a KSM that nobody ever asked for
    for name, knob in KNOBS.items():
        value = int(ksm[knob.field][0]) & (1 << 64) - 1
        high = min(knob.high, knob.kept)
        if name in ("advisor_mode", "smart_scan", "use_zero_pages"):
            high = 1
        elif knob.high > 1 << 32 and name in ("pages_to_scan", "sleep_millisecs", "stable_node_chains_prune_millisecs"):
            high = (1 << 32) - 1
        _within("ksm", knob.field, value, knob.low, high)


__all__ = ["KIND", "VERSION", "check_sizes", "check_world", "from_state", "load", "new_arrays", "save", "state_of"]
