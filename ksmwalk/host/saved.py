"""What a saved Host must look like: files, dtypes, every link inside the arrays, before compiled code follows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .. import layout
from ..layout import BLOCK, FRAME_FIELDS

_DTYPES = {name: array.dtype for name, array in layout.ARRAYS.items()}
# (array, field, array it points into)
_LINKS = [
    ("vmas", "next", "vmas"), ("vmas", "prev", "vmas"), ("vmas", "mm", "mms"), ("vmas", "backing", "mms"),
    ("mms", "root", "rows"), ("mms", "slot_next", "mms"), ("mms", "slot_prev", "mms"), ("mms", "rmap_list", "items"),
    ("items", "next", "items"), ("items", "mm", "mms"), ("items", "node", "nodes"),
    ("links", "left", "items"), ("links", "right", "items"), ("links", "parent", "items"),
    ("nodes", "items", "items"), ("nodes", "left", "nodes"), ("nodes", "right", "nodes"), ("nodes", "parent", "nodes"),
    ("nodes", "dups", "nodes"), ("nodes", "dup_next", "nodes"), ("nodes", "dup_prev", "nodes"),
    ("nodes", "chain", "nodes"),
    ("ctl", "rows_free", "rows"), ("ctl", "vmas_free", "vmas"), ("ctl", "mms_free", "mms"),
    ("ctl", "items_free", "items"), ("ctl", "stable_free", "nodes"), ("ctl", "mms_exited", "mms"), ("cursor", "slot", "mms"),
    ("cursor", "link", "items"),
    ("cursor", "vma", "vmas"), ("ksm", "migrate", "nodes"),
]  # fmt: skip


def read_state(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a saved Host, each mapped from its file; FileNotFoundError names what is missing."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no directory of a saved Host")
    state = {}
    for name in _DTYPES:
        file = path / f"{name}.npy"
        if not file.exists():
            raise FileNotFoundError(f"{file}: missing")
        state[name] = np.load(file, allow_pickle=False)
    return state


def check_state(state: dict[str, np.ndarray]) -> None:
    """Refuse what no Host could have saved.

    Raises
    ------
    ValueError
        Naming the array, and the record and value where a link leads out of its array.
    """
    if set(state) != set(_DTYPES):
        raise ValueError(f"arrays {sorted(set(state) ^ set(_DTYPES))}: missing or not part of a Host")
    for name, dtype in _DTYPES.items():
        if not isinstance(state[name], np.ndarray) or state[name].dtype != dtype:
            raise ValueError(f"array {name}: dtype {getattr(state[name], 'dtype', None)}, must be {dtype}")
    for name in ("ctl", "ksm", "cursor", "work"):
        if state[name].shape != (1,):
            raise ValueError(f"array {name}: shape {state[name].shape}, must be (1,)")
    _check_lengths(state)
    for name, field, target in _LINKS:
        _check_range(state[name][field], 0, len(state[target]), f"{name}.{field}")
    n, blocks = int(state["ctl"]["nr_frames"][0]), int(state["ctl"]["nr_blocks"][0])
    _check_range(state["f_head"], 0, n, "f_head")
    _check_range(state["f_node"], 0, len(state["nodes"]), "f_node")
    _check_range(state["nodes"]["pfn"], -1, n, "nodes.pfn")
    _check_range(state["trees"][: len(state["trees"]) // 2], 0, len(state["nodes"]), "trees")
    _check_range(state["trees"][len(state["trees"]) // 2 :], 0, len(state["items"]), "trees")
    for name in ("b_next", "b_prev", "b_heads"):
        _check_range(state[name], -1, blocks, name)
    _check_range(state["ctl"]["huge_zero"], -1, n - BLOCK + 1 if n >= BLOCK else 0, "ctl.huge_zero")


def _check_range(values: np.ndarray, low: int, high: int, what: str) -> None:
    bad = np.flatnonzero((values < low) | (values >= high))
    if len(bad):
        raise ValueError(f"{what}: record {bad[0]} holds {values[bad[0]]}, must be from {low} to {high - 1}")


def _check_lengths(state: dict[str, np.ndarray]) -> None:
    c = state["ctl"][0]
    n, nodes, blocks = int(c["nr_frames"]), int(c["nr_nodes"]), int(c["nr_blocks"])
    if not 2 <= n <= 1 << 31 or not 1 <= nodes <= 255 or blocks != -(-n // BLOCK) or c["levels"] not in (4, 5):
        raise ValueError(f"ctl: {n} frames, {nodes} nodes, {blocks} blocks, {c['levels']} levels: not those of a Host")
    want = {"trees": (2 * nodes,), "b_heads": (2 * nodes,), "b_free": (blocks, 8), "event_pos": (1,)}
    want |= {name: (blocks,) for name in ("b_count", "b_next", "b_prev")}
    for name, records in {
        "rows": "rows", "vmas": "vmas", "mms": "mms", "items": "items", "links": "items", "nodes": "stable"
    }.items():  # fmt: skip
        used, cap = int(c[f"{records}_used"]), int(c[f"{records}_cap"])
        if not 1 <= used <= cap:
            raise ValueError(f"ctl: {used} {records} used of {cap}")
        want[name] = (used, 512) if name == "rows" else (used,)
    for name, shape in want.items():
        if state[name].shape != shape:
            raise ValueError(f"array {name}: shape {state[name].shape}, must be {shape}")
    shape = state["f_flags"].shape
    if len(shape) != 1 or not 1 <= shape[0] <= n:
        raise ValueError(f"array f_flags: shape {shape}, must be at most ({n},)")
    for name in FRAME_FIELDS:
        if state[f"f_{name}"].shape != shape:
            raise ValueError(f"array f_{name}: shape {state[f'f_{name}'].shape}, must be {shape} like f_flags")
