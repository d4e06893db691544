"""Random and mutated images of page tables through everything that reads them: no crash, no hang, no wild read.

    python tests/tools/fuzz_images.py --count 1000000 [--seed 1] [--jobs 2]

For the long run build the checked profile first (`KSMWALK_PROFILE=checked python setup.py build_ext --inplace`). The
rows of every image lie between two pages that can't be touched, so a read outside them ends the program in any build.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import mmap
import multiprocessing
import sys
import time

import numpy as np

from ksmwalk import (
    ArenaFullError,
    BadEntryError,
    Host,
    Mm,
    MmWalkOps,
    PageTables,
    walk_page_range_novma,
    walk_page_range_vma,
)

PAGE = 4096
MOST_ROWS = 8
LIMIT = 4096  # records asked for: images with shared tables have astronomically many
BATCH = 500
HANG_SECONDS = 120  # a batch takes well under a second


class Guarded:
    """Room for table rows between two inaccessible pages; images are put at its end."""

    def __init__(self, pages: int = MOST_ROWS):
        self._map = mmap.mmap(-1, (pages + 2) * PAGE)
        self._all = np.frombuffer(self._map, dtype=np.uint64)
        start = self._all.ctypes.data
        libc = ctypes.CDLL(None, use_errno=True)
        for at in (start, start + (pages + 1) * PAGE):
            if libc.mprotect(ctypes.c_void_p(at), PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        self._rows = self._all[512:(pages + 1) * 512].reshape(pages, 512)

    def put(self, rows: np.ndarray) -> np.ndarray:
        at = self._rows[len(self._rows) - len(rows):]
        at[:] = rows
        return at


def random_entries(rng: np.random.Generator, n: int, nr_rows: int) -> np.ndarray:
    """Entries of all kinds: tables that are there and not, leaves, wrong leaf bits, PROT_NONE, swap, markers, noise."""
    kind = rng.integers(0, 10, n)
    inside = rng.integers(0, nr_rows, n).astype(np.uint64) << np.uint64(12)
    anywhere = rng.integers(0, 1 << 40, n).astype(np.uint64) << np.uint64(12)
    noise = rng.integers(0, 1 << 64, n, dtype=np.uint64)
    low = np.uint64(0xFFF)
    return np.select(
        [kind <= 3, kind == 4, kind == 5, kind == 6, kind == 7, kind == 8],
        [
            inside | np.uint64(0x67),
            anywhere | np.uint64(0x67),
            inside | (noise & low) | np.uint64(1),
            anywhere | np.uint64(0xE7),
            (anywhere | (noise & low)) & ~np.uint64(1),
            inside | (noise & np.uint64(0x8000000000000F86)),
        ],
        noise,
    )


def random_images(rng: np.random.Generator, count: int):
    """`count` images of 1 to 8 rows: a few entries a row, in places; now and then a whole row of one entry."""
    for _ in range(count):
        nr = int(rng.integers(1, MOST_ROWS + 1))
        rows = np.zeros((nr, 512), dtype=np.uint64)
        per_row = int(rng.integers(1, 7))
        e = random_entries(rng, nr * per_row + 1, nr)
        where = rng.integers(0, 512, (nr, per_row))
        corner = rng.random((nr, per_row)) < 0.3
        where[corner] = np.array([0, 511])[rng.integers(0, 2, int(corner.sum()))]
        rows[np.arange(nr)[:, None], where] = e[:-1].reshape(nr, per_row)
        if rng.random() < 0.1:
            rows[rng.integers(0, nr)] = e[-1]
        yield rows


def honest_image() -> np.ndarray:
    """A sound image to mutate: one chain of tables with leaves of all sizes."""
    rows = np.zeros((MOST_ROWS, 512), dtype=np.uint64)
    table = np.uint64(0x67)
    page = np.uint64(0x8000000000000867)
    for above, index, row in [(0, 3, 1), (0, 255, 2), (1, 0, 3), (1, 511, 4), (2, 511, 5), (3, 7, 6), (5, 511, 7)]:
        rows[above, index] = np.uint64(row << 12) | table
    rows[1, 2] = np.uint64(1 << 30) | page | np.uint64(0x80)
    rows[4, 9] = np.uint64(5 << 21) | page | np.uint64(0x1080)
    rows[6, ::9] = (np.arange(57, dtype=np.uint64) << np.uint64(12)) | page
    rows[7, 500:] = (np.arange(12, dtype=np.uint64) << np.uint64(12)) | page
    rows[6, 1] = 0x000FFFFFFFFFF160
    rows[6, 2] = 0xFFFFFFFFFFFFF600
    return rows


HONEST = honest_image()


def mutated_images(rng: np.random.Generator, count: int):
    """`count` copies of a sound image with a few bits flipped or entries replaced, mostly where something stands."""
    used = np.argwhere(HONEST)
    for _ in range(count):
        rows = HONEST.copy()
        n = int(rng.integers(1, 6))
        for row, index in used[rng.integers(0, len(used), n)]:
            if rng.random() < 0.5:
                rows[row, index] ^= np.uint64(1) << np.uint64(rng.integers(0, 64))
            else:
                rows[row, index] = random_entries(rng, 1, MOST_ROWS)[0]
        if rng.random() < 0.2:
            rows[rng.integers(0, MOST_ROWS)] = rows[rng.integers(0, MOST_ROWS)]
        yield rows


def check_records(m: np.ndarray, levels: int, max_pfn: int, runs: bool) -> None:
    """What holds for the mappings of any image whatever."""
    if not len(m):
        return
    level = m["level"]
    assert level.min() >= 1 and level.max() <= 3
    size = np.array([0, 1 << 12, 1 << 21, 1 << 30], dtype=np.uint64)[level]
    assert not (m["addr"] & (size - np.uint64(1))).any()
    nr = m["nr"].astype(np.uint64)
    assert (nr >= 1).all() and (runs or (nr == 1).all())
    last = m["addr"] + (nr * size - np.uint64(1))
    assert (m["addr"][1:] > last[:-1]).all(), "not in ascending order"
    if max_pfn:
        assert (m["pfn"] + (nr * size >> np.uint64(12)) <= max_pfn).all()


def read(tables: PageTables, view: str, runs: bool):
    """All mappings, or None where there are too many or (on request) one entry is bad."""
    try:
        return tables.mappings(view=view, runs=runs, limit=LIMIT)
    except BadEntryError as err:
        assert 1 <= err.level <= tables.levels and tables.on_bad == "raise"
        return None
    except ValueError as err:
        assert str(err).startswith(f"more than {LIMIT} "), err
        return None


def exercise(rows: np.ndarray, rng: np.random.Generator) -> int:
    """Read one image in every way; how many bad entries it had."""
    levels = int(rng.integers(4, 6))
    root = int(rng.integers(0, len(rows)))
    frames = None
    if rng.random() < 0.2:
        frames = np.arange(len(rows), dtype=np.uint64)
        frames[rng.integers(0, len(rows))] = 1 << 39
        root = int(frames[root])
    max_pfn = int(rng.choice([0, 0, 1 << 20]))
    on_bad = "raise" if rng.random() < 0.2 else "report"
    tables = PageTables.from_image(rows, root, levels, frames, max_pfn=max_pfn, on_bad=on_bad)
    view = "kernel" if rng.random() < 0.7 else "hardware"
    m = read(tables, view, False)
    bad = tables.bad_count
    if m is not None:
        check_records(m, levels, max_pfn, False)
    kept = tables.bad
    assert len(kept) <= bad and (kept["kind"] != 0).all() and ((kept["level"] >= 1) & (kept["level"] <= levels)).all()
    if rng.random() < 0.3:
        joined = read(tables, view, True)
        if joined is not None:
            check_records(joined, levels, max_pfn, True)
            assert m is None or joined["nr"].sum() == len(m)
    if m is not None and len(m):
        addr = int(m["addr"][rng.integers(0, len(m))])
        try:
            found = tables.lookup(addr, view)
        except BadEntryError:
            return bad
        assert found is not None and int(found["addr"]) == addr
    if rng.random() < 0.2:
        walk(tables, rng)
    return bad


def walk(tables: PageTables, rng: np.random.Generator) -> None:
    """The general walk with callbacks over a piece of the image."""
    calls = 0

    def stop_some_time(*args):
        nonlocal calls
        calls += 1
        return 1 if calls == 600 else 0

    names = ("pgd_entry", "p4d_entry", "pud_entry", "pmd_entry", "pte_entry", "pte_hole")
    ops = MmWalkOps(**{name: stop_some_time for name in names if rng.random() < 0.7})
    start = int(rng.integers(0, 1 << 35)) * PAGE if rng.random() < 0.5 else 0
    try:
        result = walk_page_range_novma(tables, start, min(start + (1 << 47), 1 << 47), ops)
    except BadEntryError:
        return
    assert result in (0, 1)


def busy_host(rng: np.random.Generator) -> tuple[Host, list[Mm], int]:
    """A Host with shared, merged, huge, empty and file pages in two related processes and one alone."""
    host = Host(4096, levels=int(rng.integers(4, 6)))
    mm = host.new_mm()
    start = mm.mmap(8 << 20, addr=(1 << 30) - (4 << 20))
    for page in rng.integers(0, 2048, 6).tolist():
        mm.write(start + page * PAGE, page % 4)
    mm.madvise(start, 8 << 20, "mergeable")
    huge = mm.mmap(4 << 20, addr=(1 << 30) + (8 << 20))
    mm.madvise(huge, 4 << 20, "hugepage")
    mm.write(huge + 5 * PAGE, 7)
    shared = mm.mmap(64 * PAGE, addr=(1 << 30) + (16 << 20), shared=True)
    mm.populate(shared, 20 * PAGE)
    mms = [mm, mm.fork(), host.new_mm()]
    alone = mms[2].mmap(1 << 20, addr=start)
    mms[2].write(alone, rng.integers(0, 4, 40).astype(np.uint64))
    mms[2].madvise(alone, 1 << 20, "mergeable")
    host.ksm.use_zero_pages = int(rng.integers(0, 2))
    host.ksm.run = 1
    for _ in range(int(rng.integers(0, 4))):
        host.ksm.do_scan(10_000)
    return host, mms, start


def scribble(host: Host, rng: np.random.Generator) -> None:
    """Write nonsense over a few entries in use, past the read-only views."""
    rows = host.world.arrays["rows"][: len(host.tables.rows)]
    used = np.argwhere(rows)
    for row, index in used[rng.integers(0, len(used), int(rng.integers(1, 5)))]:
        other = rows[tuple(used[rng.integers(0, len(used))])]
        rows[row, index] = other if rng.random() < 0.4 else random_entries(rng, 1, len(rows))[0]


def walk_areas(mm: Mm) -> None:
    for vma in mm.vmas:
        walk_page_range_vma(vma, vma.vm_start, vma.vm_end, MmWalkOps(pmd_entry=lambda *a: 0))


def something_done(host: Host, mms: list[Mm], start: int, rng: np.random.Generator) -> None:
    """One call, whichever."""
    mm = mms[int(rng.integers(0, len(mms)))]
    span = 24 << 20
    addr = start + int(rng.integers(0, span // PAGE)) * PAGE
    length = int(rng.integers(1, 3000)) * PAGE
    scan = host.ksm.scan
    scan.strategy = "range" if rng.random() < 0.7 else "per-address"
    scan.real_lookups = bool(rng.random() < 0.2)
    advice = ("mergeable", "unmergeable", "dontneed", "free", "hugepage", "collapse", "guard_install", "guard_remove")
    calls = [
        lambda: scan.scan(10_000),
        lambda: host.ksm.do_scan(10_000),
        lambda: setattr(host.ksm, "run", 2),
        lambda: mm.madvise(addr, length, str(rng.choice(advice))),
        lambda: mm.write(addr, rng.integers(0, 4, int(rng.integers(1, 600))).astype(np.uint64)),
        lambda: mm.read(addr, int(rng.integers(1, 600))),
        lambda: mm.write_at(addr + rng.integers(0, 900, 50) * PAGE, 3),
        lambda: mm.read_pfns(addr, 600),
        lambda: mm.munmap(addr, length),
        lambda: mm.mprotect(addr, length, str(rng.choice(["r", "rw", "none"]))),
        lambda: mm.mremap(addr, length, length, addr + (1 << 32)),
        lambda: mm.mlock(addr, length),
        lambda: mm.uffd_wp(addr, length, bool(rng.integers(0, 2))),
        lambda: mm.populate(addr, length),
        lambda: mms.append(mm.fork()) if len(mms) < 6 else None,
        lambda: mm.exec(),
        lambda: (mm.exit(), mms.remove(mm)) if len(mms) > 1 else None,
        lambda: mm.prctl_merge(bool(rng.integers(0, 2))),
        lambda: walk_areas(mm),
        lambda: mm.tables.mappings(limit=1 << 16),
        lambda: host.drain(),
    ]
    calls[int(rng.integers(0, len(calls)))]()


def broken_host(rng: np.random.Generator) -> bool:
    """A Host whose table pages were scribbled on, and then everything done with it; whether a bad entry stopped a call.

    Nothing may crash or hang; calls end well, with the error of a system call, or with the entry and its place.
    """
    host, mms, start = busy_host(rng)
    met = False
    for _ in range(3):
        scribble(host, rng)
        for _ in range(12):
            try:
                something_done(host, mms, start, rng)
            except BadEntryError as err:
                assert 1 <= err.level <= host.levels and err.addr < 1 << 57, err
                met = True
            except (OSError, ArenaFullError):
                pass
            except ValueError as err:
                assert str(err).startswith("more than "), err
    return met


def run(count: int, seed: int) -> tuple[int, int]:
    """Exercise `count` images and scribbled-on Hosts; (how many, bad entries met)."""
    rng = np.random.default_rng(seed)
    room = Guarded()
    done = bad = 0
    while done < count:
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        for make in (random_images, mutated_images):
            for rows in make(rng, min(BATCH, count - done)):
                try:
                    bad += exercise(room.put(rows), rng)
                except Exception:
                    np.save("fuzz_image.npy", rows)
                    print(f"seed {seed}, image {done}: saved as fuzz_image.npy", file=sys.stderr)
                    raise
                done += 1
        for _ in range(BATCH // 25):
            bad += broken_host(rng)
            done += 1
        faulthandler.cancel_dump_traceback_later()
    return done, bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="images in all (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    from ksmwalk import _core

    begin = time.perf_counter()
    share = -(-args.count // args.jobs)
    tasks = [(share, args.seed * 1000 + job) for job in range(args.jobs)]
    if args.jobs == 1:
        results = [run(*tasks[0])]
    else:
        with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
            results = pool.starmap(run, tasks)
    images, bad = (sum(r[i] for r in results) for i in (0, 1))
    took = time.perf_counter() - begin
    profile = _core.build_facts()[0]
    print(f"{images} images, {bad} bad entries met, none of them followed; {took:.0f} s, {profile} build")
    return 0


if __name__ == "__main__":
    sys.exit(main())
