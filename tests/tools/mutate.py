"""Break the engine's rules one line at a time and see that the golden recordings notice.

    python tests/tools/mutate.py [--only NAME] [--jobs N]

Works on a copy of the package; each mutation rebuilds one module without optimisation and replays the recordings until
one differs. Prints which recording caught each; exit code 1 if one survived.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.find_spec("ksmwalk")
INSTALLED = Path(SPEC.origin).parent if SPEC else ROOT / "ksmwalk"

#: name: (file, line as it stands, line as it is broken); a line is given by a part of it that occurs once
MUTATIONS: dict[str, tuple[str, str, str]] = {
    "a node without items takes newcomers": (
        "ksm/_stable.pxd",
        "return count > 0 and count + more <",
        "return count + more <",
    ),
    "one sharer more than max_page_sharing": (
        "ksm/_stable.pxd",
        "return count > 0 and count + more <",
        "return count > 0 and count + more <=",
    ),
    "a dup with room does not move to the head": (
        "ksm/_stable.pyx",
        "if found and c.dups != found and has_room(w, found, 1):",
        "if False:",
    ),
    "a dup moves to the head with room for this one alone": (
        "ksm/_stable.pyx",
        "if found and c.dups != found and has_room(w, found, 1):",
        "if found and c.dups != found and has_room(w, found, 0):",
    ),
    "pruning takes the emptiest dup": (
        "ksm/_stable.pyx",
        "w.nodes[dup].count > w.nodes[found].count):",
        "w.nodes[dup].count < w.nodes[found].count):",
    ),
    "a chain of one dup stays a chain": (
        "ksm/_stable.pyx",
        "if w.nodes[dup].dup_next == 0:",
        "if False:",
    ),
    "a chain of one dup turns back only when pruned": (
        "ksm/_stable.pyx",
        "if w.nodes[dup].dup_next == 0:",
        "if prune and w.nodes[dup].dup_next == 0:",
    ),
    "without pruning the fullest dup is taken too": (
        "ksm/_stable.pyx",
        "if not prune:",
        "if False:",
    ),
    "a search gives up where a node was stale": (
        "ksm/_stable.pyx",
        "            if page == AGAIN:\n"
        "                break\n"
        "            if key == w.nodes[page].key:\n"
        "                return",
        "            if page == AGAIN:\n"
        "                return 0\n"
        "            if key == w.nodes[page].key:\n"
        "                return",
    ),
    "stale nodes are not noticed by a search": (
        "ksm/_stable.pyx",
        "        if node_stale(w, chain):",
        "        if False:",
    ),
    "a stale node leaves only the item that met it": (
        "ksm/_stable.pyx",
        "    if node_stale(w, q.node):\n",
        "    if False:\n",
    ),
    "the first node of a chain is no dup": (
        "ksm/_stable.pyx",
        "    w.ksm.chains += 1\n    w.ksm.dups += 1\n",
        "    w.ksm.chains += 1\n",
    ),
    "a new dup goes behind the first": (
        "ksm/_stable.pyx",
        "    dup_add(w, entry, node)\n    w.ksm.dups += 1\n",
        "    dup_add(w, entry, node)\n"
        "    following = w.nodes[node].dup_next\n"
        "    dup_unlink(w, following)\n"
        "    dup_add(w, entry, following)\n"
        "    w.ksm.dups += 1\n",
    ),
    "the page visited is listed first": (
        "ksm/_engine.pyx",
        "    append_item(w, other, node)\n    append_item(w, item, node)\n",
        "    append_item(w, item, node)\n    append_item(w, other, node)\n",
    ),
    "every item of a stale node is told of": (
        "ksm/_stable.pyx",
        "            w.ksm.pages_shared -= 1\n"
        "        w.mms[q.mm].nr_merging -= 1\n"
        "        q.flags &= <uint8_t>~ITEM_STABLE\n"
        "        q.node = 0\n"
        "        item = following",
        "            w.ksm.pages_shared -= 1\n"
        "            event(w, EV_RMI, q.mm, pfn, item, node, 0)\n"
        "        w.mms[q.mm].nr_merging -= 1\n"
        "        q.flags &= <uint8_t>~ITEM_STABLE\n"
        "        q.node = 0\n"
        "        item = following",
    ),
    "the last item that leaves was a sharer": (
        "ksm/_stable.pyx",
        "        w.ksm.pages_shared -= 1\n    w.mms[q.mm].nr_merging -= 1",
        "        w.ksm.pages_sharing -= 1\n    w.mms[q.mm].nr_merging -= 1",
    ),
    "a node inserted in this scan is only forgotten": (
        "ksm/_engine.pyx",
        "        if <uint8_t>w.cursor.seqnr == q.seq:",
        "        if False:",
    ),
    "no checksum is kept": (
        "ksm/_engine.pyx",
        "if not q.flags & ITEM_HAS_CHECKSUM or q.checksum != key:",
        "if False:",
    ),
    "a changed checksum is kept but does not stop the visit": (
        "ksm/_engine.pyx",
        "            q.flags |= ITEM_HAS_CHECKSUM\n            return KW_OK",
        "            q.flags |= ITEM_HAS_CHECKSUM",
    ),
    "use_zero_pages does nothing": (
        "ksm/_engine.pyx",
        "if key == 0 and w.ksm.use_zero_pages:",
        "if False:",
    ),
    "empty pages go to the zero page always": (
        "ksm/_engine.pyx",
        "if key == 0 and w.ksm.use_zero_pages:",
        "if key == 0:",
    ),
    "a search goes on past the very page it has": (
        "ksm/_engine.pyx",
        "            if page < 0 or page == pfn:",
        "            if page < 0:",
    ),
    "the unstable tree trusts old contents": (
        "ksm/_engine.pyx",
        "cdef bint trusted = w.ksm.generation == w.ksm.tree_generation",
        "cdef bint trusted = True",
    ),
    "the unstable tree compares what was inserted": (
        "ksm/_engine.pyx",
        "            other = w.f_key[page]\n            l.key = other",
        "            other = l.key if other != 0 else w.f_key[page]",
    ),
    "a search goes past a page that is gone": (
        "ksm/_engine.pyx",
        "            if page < 0 or page == pfn:\n                return GAVE_UP",
        "            if page < 0:\n"
        "                parent = t\n"
        "                right = key > other\n"
        "                t = l.right if right else l.left\n"
        "                continue\n"
        "            if page == pfn:\n"
        "                return GAVE_UP",
    ),
    "parts of one huge page merge": (
        "ksm/_engine.pyx",
        "cdef bint within = w.f_flags[pfn] & LARGE and",
        "cdef bint within = False and w.f_flags[pfn] & LARGE and",
    ),
    "a huge page is not split when its parts meet": (
        "ksm/_engine.pyx",
        "            split_folio_at(w, pfn, a.addr)\n        return KW_OK",
        "            pass\n        return KW_OK",
    ),
    "half a merge is not undone": (
        "ksm/_engine.pyx",
        "        err = break_ksm(w, a.mm, a.addr)\n        return err if err < 0 else KW_OK",
        "        return KW_OK",
    ),
    "a page shared by fork needs room": (
        "ksm/_engine.pyx",
        "        target = node\n",
        "        if not has_room(w, node, 0):\n            return KW_OK\n        target = node\n",
    ),
    "a page shared by fork is taken for listed": (
        "ksm/_engine.pyx",
        "            elif q.flags & ITEM_STABLE and q.node == node:",
        "            elif True:",
    ),
    "run=2 starts with the last process": (
        "ksm/_engine.pyx",
        "    cdef int32_t mm = w.mms[0].slot_next, following\n"
        "    cdef int err\n"
        "    while mm:\n"
        "        following = w.mms[mm].slot_next",
        "    cdef int32_t mm = w.mms[0].slot_prev, following\n"
        "    cdef int err\n"
        "    while mm:\n"
        "        following = w.mms[mm].slot_prev",
    ),
    "run=2 keeps full_scans": (
        "ksm/_engine.pyx",
        "    w.cursor.seqnr = 0\n",
        "    pass\n",
    ),
    "insertion recolours where it should rotate": (
        "ksm/_trees.pxd",
        "            rb_rotate(base, stride, root, z, side)\n"
        "            parent = rb_at(base, stride, z).parent\n",
        "            pass\n",
    ),
    "deletion does not restore the colours": (
        "ksm/_trees.pxd",
        "    if removed == RB_RED:\n        return",
        "    return",
    ),
    "skips begin one encounter late": (
        "ksm/_cursor.pyx",
        "    if age < 3:\n",
        "    if age < 4:\n",
    ),
    "the first skip is two long": (
        "ksm/_cursor.pyx",
        "p.skips = 1 if age <= 3 else 2",
        "p.skips = 2 if age <= 3 else 2",
    ),
    "the longest skip is four": (
        "ksm/_cursor.pyx",
        "else 4 if age <= 8 else 8",
        "else 4 if age <= 8 else 4",
    ),
    "a skipped page stays in its tree": (
        "ksm/_cursor.pyx",
        "    if p.flags & (ITEM_STABLE | ITEM_UNSTABLE) and w.leave_tree != NULL:\n"
        "        w.leave_tree(w, item)\n"
        "    return True",
        "    return True",
    ),
    "a new process goes to the end of the list": (
        "ksm/_cursor.pyx",
        "list_add_before(w, mm, 0 if w.ksm.run == 2 else w.cursor.slot)",
        "list_add_before(w, mm, 0)",
    ),
    "an exiting process keeps its place": (
        "ksm/_cursor.pyx",
        "    list_del(w, mm)\n    after = w.mms[w.cursor.slot].slot_next\n    list_add_before(w, mm, after)",
        "    return",
    ),
    "a process without mergeable memory stays": (
        "ksm/_cursor.pyx",
        "if w.mms[mm].flags & MM_EXITING or cur.address == 0:",
        "if w.mms[mm].flags & MM_EXITING:",
    ),
    "an exiting process keeps items the cursor passed": (
        "ksm/_cursor.pyx",
        "items_drop_after(w, mm, 0 if w.mms[mm].flags & MM_EXITING else cur.link)",
        "items_drop_after(w, mm, cur.link)",
    ),
}

RUNNER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from ksmwalk.scenarios.compare import first_difference
from ksmwalk.scenarios.replay import replay
from ksmwalk.scenarios.format import load
for path in sorted(Path(sys.argv[2]).glob("*.json"), key=lambda p: p.stat().st_size):
    print("try", path.stem, flush=True)
    recording = load(path)
    difference = first_difference(recording.records, replay(recording), recording.nondet)
    if difference is not None:
        fields = ", ".join(field for field, _, _ in difference.fields)
        print("caught", path.stem, f"record {difference.index}: {fields}", flush=True)
        break
"""


def build(package: Path, file: str) -> None:
    """Compile what depends on one file of a copy of the package, quickly."""
    names = {"ksm/_trees.pxd": ("ksm/_stable", "ksm/_engine"), "ksm/_stable.pxd": ("ksm/_stable", "ksm/_engine")}
    names = names.get(file, (file.removesuffix(".pyx"),))
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    include = sysconfig.get_path("include")
    directives = ["-X", "cdivision=True", "-X", "boundscheck=False", "-X", "wraparound=False"]
    for name in names:
        commands = (
            [sys.executable, "-m", "cython", "-3", *directives, f"ksmwalk/{name}.pyx", "-o", "mutant.c"],
            ["gcc", "-O0", "-w", "-shared", "-fPIC", "-fwrapv", f"-I{include}", "-Iksmwalk/layout", "mutant.c", "-o"]
            + [f"ksmwalk/{name}{suffix}"],
        )
        for command in commands:
            done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")


def mutate(name: str) -> tuple[str, str]:
    """Build with one rule broken; (name, what caught it), an empty string if nothing did."""
    file, good, bad = MUTATIONS[name]
    with tempfile.TemporaryDirectory() as work:
        package = Path(work)
        shutil.copytree(ROOT / "ksmwalk", package / "ksmwalk", ignore=shutil.ignore_patterns("__pycache__", "*.c"))
        for compiled in INSTALLED.rglob("*.so"):  # where the package was installed and not built in place
            shutil.copy(compiled, package / "ksmwalk" / compiled.relative_to(INSTALLED))
        path = package / "ksmwalk" / file
        text = path.read_text()
        if text.count(good) != 1:
            raise SystemExit(f"mutation {name!r}: its line occurs {text.count(good)} times in {path.name}, not once")
        path.write_text(text.replace(good, bad))
        build(package, file)
        try:
            done = subprocess.run(
                [sys.executable, "-c", RUNNER, work, str(ROOT / "tests" / "golden")],
                capture_output=True, text=True, timeout=120, check=False,
            )
            out, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as expired:
            out, code = (expired.stdout or b"").decode(), "no end after 120 s"
        lines = out.split("\n")
        caught = [line.removeprefix("caught ") for line in lines if line.startswith("caught ")]
        if caught:
            return name, caught[0]
        tried = [line.removeprefix("try ") for line in lines if line.startswith("try ")]
        if code != 0 and tried:
            return name, f"{tried[-1]} crashed: {code}"
        if code != 0:
            raise SystemExit(f"mutation {name!r}: nothing ran: {done.stderr[-2000:]}")
        return name, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="only mutations whose name contains this")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    args = parser.parse_args()
    names = [name for name in MUTATIONS if not args.only or args.only in name]
    survived = 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for name, caught in pool.map(mutate, names):
            print(f"{'caught  ' if caught else 'SURVIVED'}  {name:56}  {caught}", flush=True)
            survived += not caught
    print(f"{len(names) - survived} of {len(names)} mutations caught")
    return 1 if survived else 0


if __name__ == "__main__":
    raise SystemExit(main())
