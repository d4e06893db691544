"""Page tables kept in directories and pickles: what is kept, and what is looked at when it comes back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core, layout
from ..errors import check
from ..layout import stored
from ..layout.arena import reserve
from ..memory import _check
from ..signatures import AnyArray, RecordArray, U64Array
from . import _map

if TYPE_CHECKING:
    from .tables import PageTables

KIND = "saved PageTables"
#: of the arrays and what is in them; raised when that changes. Readers of a version read all before it, from 1 on.
VERSION = 1

_ABOUT = np.dtype([(name, "i8") for name in ("image", "levels", "root", "max_pfn", "raises")])
_ARENA = np.dtype([(name, "i8") for name in ("rows_used", "rows_free", "rows_live", "rows_cap", "nr_tables")])
_DTYPES = {"about": _ABOUT, "rows": np.dtype("u8"), "frames": np.dtype("u8"), "arena": _ARENA}


def kept_arrays(tables: PageTables) -> dict[str, AnyArray]:
    """What is kept of page tables, no copies of their rows.

    Raises
    ------
    ValueError
        They could not be loaded again: somebody wrote into an arena so that it holds no page tables any more.
    """
    about = np.zeros(1, _ABOUT)
    about["image"], about["levels"], about["root"] = tables.readonly, tables.levels, tables.root
    about["max_pfn"], about["raises"] = tables.max_pfn, tables.on_bad == "raise"
    arrays: dict[str, AnyArray] = {"about": about, "rows": tables.rows}
    if tables._world is None:
        if tables._frames is not None:
            frames = np.empty(len(tables.rows), np.uint64)
            frames[tables._order] = tables._frames
            arrays["frames"] = frames
        return arrays
    ctl = tables._world.arrays["ctl"]
    arrays["arena"] = arena = np.zeros(1, _ARENA)
    for name in ("rows_used", "rows_free", "rows_live", "rows_cap"):
        arena[name] = ctl[name]
    arena["nr_tables"] = tables.nr_tables
    return arrays


def save(tables: PageTables, path: str | os.PathLike[str], overwrite: bool) -> None:
    """`PageTables.save`."""
    stored.write(path, _loadable(tables), KIND, VERSION, overwrite)


def state_of(tables: PageTables) -> dict[str, Any]:
    """What a pickle of page tables holds."""
    return {"kind": KIND, "version": VERSION, "arrays": {name: np.array(a) for name, a in _loadable(tables).items()}}


def _loadable(tables: PageTables) -> dict[str, AnyArray]:
    arrays = kept_arrays(tables)
    if tables._world is None:
        return arrays
    # Those of an address space stand in an arena with others: what is loaded is the one among many table pages in use.
    alone = "vmas" not in tables._world.arrays
    try:
        _checked(tables._world if alone else _arena_world(arrays["rows"], arrays["arena"][0], tables.root, tables.levels))
    except ValueError as err:
        raise ValueError(f"these page tables could not be loaded again: {err}") from None
    return arrays


def load(path: str | os.PathLike[str]) -> dict[str, AnyArray]:
    """The arrays that `save` left, their dtypes and shapes checked."""
    with stored.opened(path, KIND, VERSION, set(_DTYPES)) as files:
        try:
            _check_shapes(files)
        except ValueError as err:
            raise ValueError(f"{path}: {err}") from None
        return {name: file.read() for name, file in files.items()}


def from_state(state: object) -> dict[str, AnyArray]:
    """The same for what a pickle held."""
    stored.check_version(state, KIND, VERSION)
    assert isinstance(state, Mapping)
    arrays = state.get("arrays")
    if not isinstance(arrays, Mapping) or not all(type(a) is np.ndarray for a in arrays.values()):
        raise ValueError(f"arrays of type {type(arrays).__name__}: must be a dict of arrays")
    _check_shapes(arrays)
    return dict(arrays)


def _check_shapes(found: Mapping[str, Any]) -> None:
    for name in found:
        if name not in _DTYPES:
            raise ValueError(f"array {name!r}: not part of page tables")
    for name in ("about", "rows"):
        if name not in found:
            raise ValueError(f"array {name}: missing")
    for name, array in found.items():
        if array.dtype != _DTYPES[name]:
            raise ValueError(f"array {name}: dtype {array.dtype}, must be {_DTYPES[name]}")
        shape = {"rows": (array.shape[:1] or (0,)) + (512,), "frames": found["rows"].shape[:1]}.get(name, (1,))
        if array.shape != shape:
            raise ValueError(f"array {name}: shape {array.shape}, must be {shape}")


def rebuild(tables: PageTables, arrays: Mapping[str, AnyArray]) -> None:
    """Make page tables of what was kept."""
    image, levels, root, max_pfn, raises = (int(x) for x in arrays["about"][0])
    for name, value, low, high in (
        ("image", image, 0, 1), ("levels", levels, 4, 5), ("max_pfn", max_pfn, 0, 1 << 40), ("raises", raises, 0, 1),
        ("root", root, 0 if image else 1, len(arrays["rows"]) - 1),
    ):  # fmt: skip
        if not low <= value <= high:
            raise ValueError(f"about.{name}: record 0 holds {value}, must be from {low} to {high}")
    on_bad = "raise" if raises else "report"
    if "arena" in arrays and image or "frames" in arrays and not image:
        raise ValueError("about.image: record 0 does not fit the arrays that are there")
    if image:
        frames = arrays.get("frames")
        number = root if frames is None else int(frames[root])
        made = type(tables).from_image(arrays["rows"], number, levels, frames, max_pfn=max_pfn, on_bad=on_bad)
        tables.__dict__.update(made.__dict__)
        return
    if "arena" not in arrays:
        raise ValueError("array arena: missing")
    world = _arena_world(arrays["rows"], arrays["arena"][0], root, levels)
    _checked(world)
    check(_map.claim_tables(world, 1), "rows")
    tables._bind(world, 1, levels, on_bad)


def _arena_world(rows: U64Array, kept: np.void, root: int, levels: int) -> _core.World:
    for name, low, high in (
        ("rows_used", len(rows), len(rows)), ("rows_cap", max(2, len(rows)), 1 << 33), ("rows_free", 0, len(rows) - 1),
        ("rows_live", 1, len(rows) - 1), ("nr_tables", 1, len(rows) - 1),
    ):  # fmt: skip
        if not low <= int(kept[name]) <= high:
            raise ValueError(f"arena.{name}: record 0 holds {kept[name]}, must be from {low} to {high}")
    if kept["nr_tables"] > kept["rows_live"]:
        raise ValueError(f"arena.nr_tables: record 0 holds {kept['nr_tables']}, but only {kept['rows_live']} are in use")
    try:
        arena = reserve(int(kept["rows_cap"]), np.uint64, shape=(512,))
    except MemoryError as err:
        raise MemoryError(f"arena.rows_cap: record 0 holds {kept['rows_cap']}: {err}") from None
    arena[: len(rows)] = rows
    ctl = np.zeros(1, layout.CTL)
    for name in ("rows_used", "rows_free", "rows_live", "rows_cap"):
        ctl[name] = kept[name]
    ctl["levels"], ctl["mms_used"] = levels, 2
    mms = np.zeros(2, layout.MM)
    mms["root"][1], mms["nr_tables"][1] = root, kept["nr_tables"]
    return world_of(arena, ctl, mms)


def world_of(rows: U64Array, ctl: RecordArray, mms: RecordArray) -> _core.World:
    """The binding of page tables that stand alone: mm 1 of a world without areas and frames."""
    owner = reserve(len(rows), np.int32)
    return _core.World({"rows": rows, "r_owner": owner, "ctl": ctl, "mms": mms, "bad": np.zeros(1, layout.BAD)})


def _checked(world: _core.World) -> None:
    found = _check.check_tables(world)
    if found is None:
        return
    array, field, record, entry, value, counted, why = found
    name = f"{array}.{field}" if field else array
    if counted is not None:
        raise ValueError(f"{name}: record {record} holds {value}, counted {counted} {why}")
    if entry is not None:
        raise ValueError(f"{name}: table page {record}, entry {entry} holds {value & (1 << 64) - 1:#x}: {why}")
    raise ValueError(f"{name}: record {record} holds {value}: {why}")
