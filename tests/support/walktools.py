"""One script, two sides: callbacks for the fast and the slow walk that behave alike and log alike."""

import zlib

import numpy as np
from hypothesis import strategies as st

ENTRIES = ("pgd_entry", "p4d_entry", "pud_entry", "pmd_entry", "pte_entry")
ALL = (*ENTRIES, "pte_hole")
FRAMING = ("test_walk", "pre_vma", "post_vma", "hugetlb_entry")


@st.composite
def scripts(draw):
    """What the callbacks do, as a function of name, address and visit: mostly nothing."""
    return {
        "seed": draw(st.integers(0, 1 << 16)),
        "actions": draw(st.booleans()),
        "writes": draw(st.booleans()),
        "stop": draw(st.sampled_from([0, 0, 0, 5, -14])),
        "stop_one_in": draw(st.sampled_from([3, 50, 1000])),
    }


class Side:
    """Callbacks that log their calls and follow the script; the two subclasses know the two kinds of action."""

    def __init__(self, script):
        self.script, self.log, self.visits = script, [], {}

    def chance(self, name, addr, what, one_in):
        text = f"{self.script['seed']} {name} {addr} {what}"
        return zlib.crc32(text.encode()) % one_in == 0

    def result(self, name, addr):
        stop = self.script["stop"]
        if stop and self.chance(name, addr, "stop", self.script["stop_one_in"]):
            return stop
        return 0

    def entry(self, name):
        def callback(entry, addr, next_, walk):
            value = int(entry.value)
            table = entry.level > 1 and bool(entry.present) and not entry.leaf and not entry.none
            seen = ("table", value & 0xFFF) if table else value
            ptes = entry.ptes if entry.level == 2 else None
            body = None if ptes is None else zlib.crc32(np.array(ptes, dtype=np.uint64).tobytes())
            page = None if table or entry.none else (bool(entry.leaf), int(entry.pfn))
            self.log.append((
                name, int(addr), int(next_), int(entry.level), seen, body, bool(entry.none), bool(entry.present),
                page, walk.private, self.name_of(walk.vma),
            ))
            visit = self.visits[name, addr] = self.visits.get((name, addr), 0) + 1
            if self.script["writes"] and not table and not entry.none and self.chance(name, addr, "write", 4):
                entry.value = value ^ 0x800
            if self.script["actions"] and name in ("pud_entry", "pmd_entry"):
                if visit == 1 and self.chance(name, addr, "again", 5):
                    walk.action = self.AGAIN
                elif self.chance(name, addr, "continue", 3):
                    walk.action = self.CONTINUE
            return self.result(name, addr)

        return callback

    def callbacks(self, names):
        out = {}
        for name in names:
            if name in (*ENTRIES, "hugetlb_entry"):
                out[name] = self.entry(name)
        if "pte_hole" in names:
            out["pte_hole"] = self.pte_hole
        for name in ("test_walk", "pre_vma"):
            if name in names:
                out[name] = self.framing(name)
        if "post_vma" in names:
            out["post_vma"] = self.post_vma
        return out

    def pte_hole(self, addr, next_, depth, walk):
        self.log.append(("pte_hole", int(addr), int(next_), int(depth), walk.private, self.name_of(walk.vma)))
        return self.result("pte_hole", addr)

    def framing(self, name):
        def callback(start, end, walk):
            self.log.append((name, int(start), int(end), walk.private, self.name_of(walk.vma)))
            if self.script["actions"] and self.chance(name, start, "skip", 3):
                return 1
            return self.result(name, start)

        return callback

    def post_vma(self, walk):
        self.log.append(("post_vma", self.name_of(walk.vma)))

    @staticmethod
    def name_of(vma):
        return None if vma is None else (int(vma.vm_start), int(vma.vm_end))


class SlowSide(Side):
    AGAIN, CONTINUE = "AGAIN", "CONTINUE"


class FastSide(Side):
    @property
    def AGAIN(self):
        from ksmwalk import Action

        return Action.AGAIN

    @property
    def CONTINUE(self):
        from ksmwalk import Action

        return Action.CONTINUE
