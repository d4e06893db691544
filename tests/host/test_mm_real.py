"""The same random calls in a real process of this machine and in the model: errors, areas, flags, pages, contents."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import realmm
from realmm import BASE, PAGE, PAGES

from ksmwalk.host.host import Host
from ksmwalk.host.vma import letters
from ksmwalk.layout import Frame

RELEASE = tuple(int(x) for x in os.uname().release.split("-")[0].split(".")[:2])
ADVICE = [0, 1, 2, 3, 4, 4, 4, 8, 10, 11, 14, 15, 16, 17, 18, 19, 22, 23, 24, 102, 103]
PROTS = ["rw", "rw", "rw", "r", "none", "rwx"]

pytestmark = pytest.mark.skipif(
    RELEASE < (6, 17) or os.uname().machine != "x86_64",
    reason=f"Linux {os.uname().release}: the model is of 6.18 on x86-64",
)


class Real:
    """The real process."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(realmm.__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def do(self, op):
        self.process.stdin.write(json.dumps(op) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


class Model:
    """The same in the model."""

    def __init__(self):
        self.host = Host(8192)
        self.mm = self.host.new_mm()

    def do(self, op):
        try:
            self._do(op)
            result = 0
        except OSError as err:
            result = -err.errno
        return [result, self.areas(), self.pages()]

    def _do(self, op):
        kind, *a = op
        mm, first = self.mm, BASE + a[0] * PAGE if a and isinstance(a[0], int) else 0
        if kind == "mmap":
            mm.mmap(a[1] * PAGE, first, a[2], shared=a[3], noreserve=a[4])
        elif kind in ("munmap", "mlock", "munlock"):
            getattr(mm, kind)(first, a[1] * PAGE)
        elif kind in ("mprotect", "madvise"):
            getattr(mm, kind)(first, a[1] * PAGE, a[2])
        elif kind == "mremap":
            to = None if a[3] is None else BASE + a[3] * PAGE
            mm.mremap(first, a[1] * PAGE, a[2] * PAGE, to, maymove=to is not None)
        elif kind == "write":
            for page, key in a[0]:
                mm.write(BASE + page * PAGE, key)
        elif kind == "read":
            for page in a[0]:
                mm.read(BASE + page * PAGE)
        elif kind == "fork":
            self.mm = mm.fork()

    def areas(self):
        out = []
        for v in self.mm.vmas:
            pgoff = v.vm_pgoff * PAGE if v.backing else 0
            row = [(v.vm_start - BASE) // PAGE, (v.vm_end - BASE) // PAGE, v.perms, pgoff]
            out.append([*row, letters(v.vm_flags).split()])
        return out

    def pages(self):
        out = []
        keys = self.mm.read_keys(BASE, PAGES)
        for key, pfn in zip(keys, self.mm.read_pfns(BASE, PAGES), strict=True):
            if pfn < 0:
                out.append([0, 0, 0, None])
                continue
            flags = int(self.host.frames.flags[pfn])
            once = not flags & Frame.ZERO and self.host.frames.mapcount[pfn] == 1
            out.append([1, int(bool(flags & Frame.FILE)), int(once), int(key)])
        return out


def random_op(rng):
    first, n = rng.randrange(PAGES - 12), rng.randint(1, 12)
    kind = rng.choices(
        ["mmap", "munmap", "mprotect", "madvise", "mremap", "write", "read", "mlock", "fork"],
        [14, 6, 12, 16, 8, 20, 6, 3, 4],
    )[0]
    if kind == "mmap":
        return [kind, first, n, rng.choice(PROTS), rng.random() < 0.15, rng.random() < 0.1]
    if kind == "munmap":
        return [kind, first, n]
    if kind == "mprotect":
        return [kind, first, n, rng.choice(PROTS)]
    if kind == "madvise":
        return [kind, first, n, rng.choice(ADVICE)]
    if kind == "mremap":
        new = rng.randint(1, 12) if rng.random() < 0.5 else n
        return [kind, first, n, new, rng.choice([None, rng.randrange(PAGES - 12)])]
    if kind == "write":
        return [kind, [[rng.randrange(first, first + n), rng.randrange(5)] for _ in range(rng.randint(1, 6))]]
    if kind == "read":
        return [kind, [rng.randrange(first, first + n) for _ in range(rng.randint(1, 4))]]
    if kind == "mlock":
        return [rng.choice(["mlock", "munlock"]), first, min(n, 4)]
    return [kind]


def explain(ops, before, got, want):
    text = ["ops:", *(f"  {op}" for op in ops), "before:", *(f"  {a}" for a in before[1])]
    text.append(f"errno  model {got[0]}, kernel {want[0]}")
    for what, i in (("area", 1), ("page", 2)):
        for at, (a, b) in enumerate(zip(got[i] + [None] * 99, want[i] + [None] * 99, strict=False)):
            if a != b:
                text.append(f"{what} {at}: model {a}, kernel {b}")
                if len(text) > 60:
                    break
    return "\n".join(text)


@pytest.mark.parametrize("seed", range(int(os.environ.get("KSMWALK_REAL_SEEDS", "10"))))
def test_random_calls(seed):
    rng = random.Random(seed)
    real, model, ops, before = Real(), Model(), [], [0, [], []]
    try:
        for _ in range(60):
            op = random_op(rng)
            ops.append(op)
            want, got = real.do(op), model.do(op)
            if got != want:
                pytest.fail(explain(ops, before, got, want))
            before = got
    finally:
        real.close()
