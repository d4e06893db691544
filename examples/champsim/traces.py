"""Traces for ChampSim, made up, with the contents of the pages beside them.

    python traces.py FOLDER [--instructions N] [--unlike]

A core walks over memory of its own: a region that two cores hold with the same contents at different addresses (a library,
a model, the image of a virtual machine), and one that is its own and is stored to. Now and then it stores to the common
region, which takes the page out of what is shared.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

PAGE = 4096
#: one instruction of ChampSim's trace format: `input_instr`, 64 bytes
INSTRUCTION = np.dtype(
    [
        ("ip", "<u8"), ("is_branch", "u1"), ("branch_taken", "u1"), ("destination_registers", "u1", 2),
        ("source_registers", "u1", 4), ("destination_memory", "<u8", 2), ("source_memory", "<u8", 4),
    ]
)  # fmt: skip
#: the content of one page: equal keys are equal pages, below 2**63; pages that are not named are unlike all others
CONTENT = np.dtype([("page", "<u8"), ("key", "<u8")])

CODE = 0x400000
COMMON_PAGES = 352  # 1.4 MiB: of two cores too much for a cache of 2 MiB, once merged not
OWN_PAGES = 48
#: where the regions of a core begin
PLACES = [(0x10_0000_0000, 0x20_0000_0000), (0x7F00_0000_0000, 0x30_0000_0000)]


def write(folder: Path, core: int, instructions: int = 600_000, equal: bool = True) -> Path:
    """Write the trace of a core, and beside it what its pages hold; the trace's path.

    Parameters
    ----------
    folder : Path
    core : int
        0 or 1.
    instructions : int
        Of 4: a load from the common region, an addition, a load or a store in the own region, an addition; a branch at
        the end of 16.
    equal : bool
        Whether the common regions hold the same; otherwise no page is like another, and no contents are written.
    """
    random = np.random.default_rng(core + 1)
    common, own = PLACES[core]
    trace = np.zeros(instructions, INSTRUCTION)
    step = np.arange(instructions)
    trace["ip"] = CODE + 4 * (step % 64)
    trace["source_registers"][:, 0] = 1 + step % 7
    trace["destination_registers"][:, 0] = 1 + (step + 3) % 7
    loads, seconds, branches = step % 4 == 0, step % 4 == 2, step % 16 == 15
    lines = random.integers(0, COMMON_PAGES * PAGE // 64, loads.sum(), dtype=np.uint64)
    trace["source_memory"][loads, 0] = common + lines * 64
    own_lines = random.integers(0, OWN_PAGES * PAGE // 64, seconds.sum(), dtype=np.uint64)
    stores = random.random(seconds.sum()) < 0.3
    addresses = own + own_lines * 64
    trace["source_memory"][seconds, 0] = np.where(stores, 0, addresses)
    trace["destination_memory"][seconds, 0] = np.where(stores, addresses, 0)
    trace["is_branch"][branches] = 1
    trace["branch_taken"][branches] = step[branches] % 64 == 63
    trace["destination_registers"][branches, 0] = 26  # the instruction pointer, as ChampSim numbers it
    trace["source_registers"][branches, :2] = 26, 25  # and the flags: a conditional branch
    # Late stores to the common region: one in 1,000 of its accesses.
    late = np.flatnonzero(loads & (step > instructions // 2))[::1000]
    trace["destination_memory"][late, 0] = trace["source_memory"][late, 0]
    path = folder / f"core{core}.trace"
    trace.tofile(path)
    pages = path.with_name(path.name + ".pages")
    pages.unlink(missing_ok=True)
    if equal:
        contents = np.empty(COMMON_PAGES, CONTENT)
        contents["page"] = common // PAGE + np.arange(COMMON_PAGES)
        contents["key"] = 1 + np.arange(COMMON_PAGES)
        contents.tofile(pages)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Traces of two cores, with the contents of their pages.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--instructions", type=int, default=600_000)
    parser.add_argument("--unlike", action="store_true", help="no page is like another")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        print(write(given.folder, number, given.instructions, not given.unlike))
