"""Reading contents leaves a process as it is: held against a twin that nobody reads, mapping by mapping.

What does move is the place of a page that was read on the kernel's lists of what was used lately (ACTIVE, REFERENCED of
its frame, and so `Referenced` of smaps), as any read through /proc/PID/mem moves it; and a read holds each page for the
moment of its copying.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from living import Living, footprint, ksm_to_ourselves, sees_frames

from ksmwalk.proc.frames import Kpf, frame_records
from ksmwalk.sources import capture
from ksmwalk.sources.contents import capture_memory

P, M = 4096, 2 << 20
NR = 64
#: flags of a frame that stand for what it is; others say when it was used last and what the kernel is about to do with it
LASTING = Kpf.ANON | Kpf.KSM | Kpf.THP | Kpf.HUGE | Kpf.ZERO_PAGE | Kpf.COMPOUND_HEAD | Kpf.COMPOUND_TAIL | Kpf.MMAP
USED_LATELY = 1 << 2 | 1 << 6

MAPPINGS = {
    "written": "new(64 * P); write(a, 40)",
    "read only, zero pages": "new(64 * P); read(a, 40)",
    "half discarded": "new(64 * P); write(a, 64); call('madvise', a, 32 * P, 4)",
    "no access": "new(64 * P); write(a, 64); call('mprotect', a, 64 * P, 0)",
    "guard pages": "new(64 * P); write(a, 64); call('madvise', a + 8 * P, 8 * P, 102)",
    "huge page": "new(2 * M, align=M); call('madvise', a, 2 * M, 14); write(a, 512)",
    "freed lazily": "new(64 * P); write(a, 64); call('madvise', a, 64 * P, 8)",
    "shared memory": "new(64 * P, 0x4021); write(a, 64)",
    "32 TiB": "new(1 << 45); write(a + (1 << 44), 3)",
    "locked": "new(64 * P); write(a, 8); call('mlock', a, 64 * P)",
    "hugetlb": "new(2 * M, 0x44022, align=M); write(a, 1)",
    "marked": "new(64 * P); write(a, 64); call('madvise', a, 64 * P, 12)",
}

needs_frames = pytest.mark.skipif(not sees_frames(), reason="needs CAP_SYS_ADMIN to see frame numbers")


def made(child, what):
    first, *rest = what.split("; ")
    area = child.do(first)
    child.do(f"a = {area}; x = 1")
    for step in rest:
        child.do(step)
    return area


def smaps_of(pid, area):
    text = Path(f"/proc/{pid}/smaps").read_text()
    blocks = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", text, flags=re.M)
    [block] = [one for one in blocks if one.startswith(f"{area:x}-")]
    account = dict(re.findall(r"^(\w+): +(\d+ kB|.+)$", block, re.M))
    # pages freed lazily wait in a batch of each processor before they count
    account.pop("LazyFree", None)
    account.pop("Referenced", None)
    return account


def seen(pid, area):
    """What the kernel shows of an area: present, swapped and other bits of entries; what its frames are; its account."""
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        file.seek((area + (1 << 44 if smaps_of(pid, area)["Size"] == f"{1 << 35} kB" else 0)) // P * 8)
        entries = np.frombuffer(file.read(NR * 8), np.uint64)
    fd = os.open("/proc/kpageflags", os.O_RDONLY)
    flags = frame_records(fd, (entries & np.uint64((1 << 55) - 1)).astype(np.int64))
    os.close(fd)
    return entries.tolist(), (flags & np.uint64(LASTING)).tolist(), smaps_of(pid, area), footprint(pid), flags


@needs_frames
@pytest.mark.parametrize("what", MAPPINGS, ids=lambda name: name.replace(" ", "-"))
@pytest.mark.parametrize("samples", [0, 1, 2], ids=["no contents", "contents", "two samples"])
def test_nothing_moves(what, samples):
    with ksm_to_ourselves(), Living() as child, Living() as twin:
        try:
            area, other = made(child, MAPPINGS[what]), made(twin, MAPPINGS[what])
        except Exception as error:
            pytest.skip(f"this kernel has no such mapping: {error}")
        stat = Path(f"/proc/{child.pid}/ksm_stat")
        before, ksm = seen(child.pid, area), stat.read_text() if stat.exists() else ""
        found = capture_memory([child.pid], samples=samples, interval=0) if samples else capture(child.pid)
        after = seen(child.pid, area)
        assert after[:4] == before[:4]
        assert ksm == (stat.read_text() if stat.exists() else "")
        assert not any("went in the moment" in note for note in found.notes)
        # and the twin shows that nothing of this hides a change of its own
        unread = seen(twin.pid, other)
        assert unread[1] == after[1] and unread[2] == after[2]
        assert [entry >> 55 for entry in unread[0]] == [entry >> 55 for entry in after[0]]


@needs_frames
def test_what_does_move_is_when_a_page_was_used_last():
    with Living() as child:
        area = made(child, MAPPINGS["written"])
        Path(f"/proc/{child.pid}/clear_refs").write_text("1")
        before = seen(child.pid, area)
        capture_memory([child.pid], samples=1)
        after = seen(child.pid, area)
        assert after[:4] == before[:4]
        moved = np.bitwise_or.reduce((after[4] ^ before[4])[:40])
        assert not int(moved) & ~(USED_LATELY | 1 << 5)


def state_of(pid):
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()


def test_what_changes_its_mappings_all_the_time_is_read_whole_while_it_is_held():
    churn = (
        "any(m.append(mmap.mmap(-1, 50 * P)) or m[-1].write(b'x' * P) < 0 or (len(m) > 9 and bool(m.pop(0).close()))"
        " for _ in iter(int, 1))"
    )
    with Living() as child:
        child.do("import mmap, threading; m = []; x = 1")
        child.do(f"threading.Thread(target=lambda: {churn}, daemon=True).start()")
        found = capture_memory([child.pid], samples=1, stop=True)
        assert state_of(child.pid) != "t"
    assert found.notes == []
    assert found.processes[0].attempts == 1


def test_nobody_is_told_of_progress_while_processes_are_held():
    """Who shows it may be among them; a write to a full terminal would then never end, and nobody would let them go."""
    with Living() as child:
        child.do("new(P)")
        told = []
        capture_memory([child.pid], interval=0, stop=True, progress=lambda *_: told.append(state_of(child.pid)))
        assert "t" not in told
        capture_memory([child.pid], interval=0, progress=lambda *_: told.append(state_of(child.pid)))
        assert told
