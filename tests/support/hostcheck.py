"""What must hold for the arrays of a Host at any time, found out slowly from the tables themselves."""

import numpy as np

from ksmwalk.host import _swap

FRAME = {"anon": 1, "ksm": 2, "head": 4, "tail": 8, "zero": 0x10, "lru": 0x100, "used": 0x400, "exclusive": 0x800}
PFN = 0x000FFFFFFFFFF000
P, RW, PS, G, SPECIAL, D = 1, 2, 0x80, 0x100, 0x200, 0x40


def leaves(rows, row, level, base, seen):
    """(addr, level, entry) of every present leaf below a table; every table's row goes into `seen`."""
    assert row not in seen, f"table {row} is reached twice"
    seen.add(row)
    for i in np.flatnonzero(rows[row]):
        e = int(rows[row, i])
        addr = base + (int(i) << (3 + 9 * level))
        if level == 1 or (level == 2 and e & PS):
            if e & (P | G) or level == 2:
                yield addr, level, e
        else:
            assert e & P, hex(e)
            yield from leaves(rows, (e & PFN) >> 12, level - 1, addr, seen)


def pfn_of(e, level):
    if not e & P:
        e ^= PFN
    return (e & PFN & ~((1 << (3 + 9 * level)) - 1) if level == 2 else e & PFN) >> 12


def check(host, pinned=(), torn=False):
    """Every invariant of frames, tables and vmas.

    `pinned`: frames with a pin each; `torn`: memory read while it ran, so that what may be stored to may be shared.
    """
    a = host.world.arrays
    ctl, mms, vmas, rows = a["ctl"][0], host.mms, host.vmas, host.tables.rows
    n = host.nr_frames
    mapped = np.zeros(n, np.int64)
    cached = np.zeros(n, np.int64)
    zero_placed, owners = {}, {}
    reached = set()
    for number in range(1, len(mms)):
        m = mms[number]
        flags = int(m["flags"])
        if not flags & 16 or not m["root"]:
            continue
        seen = set()
        backing = flags & 32
        spans = [] if backing else areas(vmas, mms, number)
        for addr, level, e in leaves(rows, int(m["root"]), host.levels, 0, seen):
            pfn = pfn_of(e, level)
            size = 1 << (3 + 9 * level)
            if not backing:
                assert any(s <= addr and addr + size <= t for s, t in spans), f"mm {number}: {addr:#x} outside any area"
            if e & SPECIAL:
                if level == 1 and pfn == 0 and e & D:
                    zero_placed[number] = zero_placed.get(number, 0) + 1
                continue
            if a["f_flags"][pfn] & FRAME["zero"]:
                continue
            target = cached if backing else mapped
            target[pfn : pfn + (512 if level == 2 else 1)] += 1
            flags = int(a["f_flags"][pfn])
            if backing:
                continue
            if flags & FRAME["anon"] and e & RW and not flags & FRAME["ksm"] and not (torn and a["f_mapcount"][pfn] > 1):
                assert flags & FRAME["exclusive"], f"mm {number}: {addr:#x} may be stored to and is not exclusive"
            if flags & (FRAME["head"] | FRAME["tail"]):
                of = owners.setdefault(int(a["f_head"][pfn]), {})
                of[number] = of.get(number, 0) + 1
        assert len(seen) == m["nr_tables"], (number, len(seen), m["nr_tables"])
        assert not seen & reached
        reached |= seen
    assert len(reached) == ctl["rows_live"]
    check_frames(host, mapped, cached, pinned)
    check_allocator(host)
    check_owners(host, owners)
    check_swap(host)
    check_families(host)
    for number in range(1, len(mms)):
        if int(mms["flags"][number]) & (16 | 4 | 32) == 16:
            assert int(mms["nr_zero"][number]) >= zero_placed.get(number, 0)


def areas(vmas, mms, number):
    """[start, end) of the areas of an mm, with their list checked."""
    out, at, before, count = [], int(mms["vma_first"][number]), 0, 0
    while at:
        v = vmas[at]
        assert v["mm"] == number and v["prev"] == before and v["start"] < v["end"]
        assert not out or out[-1][1] <= v["start"]
        assert not (int(v["start"]) | int(v["end"])) & 0xFFF
        out.append((int(v["start"]), int(v["end"])))
        before, at = at, int(v["next"])
        count += 1
    assert count == mms["nr_vmas"][number]
    return out


def check_frames(host, mapped, cached, pinned):
    f = host.frames
    zero = (f.flags & FRAME["zero"]) != 0
    assert np.array_equal(np.where(zero, 0, f.mapcount), mapped), np.flatnonzero(f.mapcount != mapped)[:5]
    used = (f.flags & FRAME["used"]) != 0
    assert not mapped[~used].any() and not f.refs[~used].any() and not f.node[~used].any()
    refs = np.zeros(host.nr_frames, np.int64)
    head = f.head.astype(np.int64)
    np.add.at(refs, head[used], mapped[used])
    np.add.at(refs, head[cached > 0], np.where((f.flags[cached > 0] & FRAME["tail"]) == 0, 1, 0))
    np.add.at(refs, head[(f.flags & FRAME["lru"]) != 0], 1)
    for batch in host.world.arrays["batches"]:
        waiting = batch["mlock"][: batch["nr_mlock"]]
        np.add.at(refs, waiting[waiting > 0], 1)  # new ones have their mark
        np.add.at(refs, batch["lazy"][: batch["nr_lazy"]], 1)
    if host.world.arrays["ctl"]["slots_used"][0] > 1:
        np.add.at(refs, head[host.world.arrays["slot_of"] != 0], 1)
    for pfn in pinned:
        refs[head[pfn]] += 1
    if host.world.arrays["ctl"]["dma_pins"][0]:
        refs += host.world.arrays["pins_of"]
    heads = used & ~zero & (head == np.arange(host.nr_frames))
    assert np.array_equal(f.refs[heads], refs[heads]), [
        (int(p), int(f.refs[p]), int(refs[p])) for p in np.flatnonzero(heads & (f.refs != refs))[:5]
    ]
    assert (f.refs[heads] > 0).all(), "an allocated page that nobody holds"
    tails = np.flatnonzero(f.flags & FRAME["tail"])
    assert (f.flags[head[tails]] & FRAME["head"]).all()
    exclusive = (f.flags & FRAME["exclusive"]) != 0
    assert (f.mapcount[exclusive] <= 1).all() and not (f.flags[exclusive] & (FRAME["ksm"] | FRAME["zero"])).any()
    assert (f.flags[(f.flags & FRAME["ksm"]) != 0] & FRAME["anon"]).all()


def check_swap(host):
    """Every slot is meant by as many entries as it says, and the swap cache says the same from both sides."""
    a = host.world.arrays
    slots = a["slots"][: int(a["ctl"]["slots_used"][0])]
    meant = np.zeros(len(slots), np.int64)
    for mm in host.mm_list:
        for addr, slot in zip(*_swap.swapped(host.world, mm.index), strict=True):
            meant[slot] += slot > 0
            assert not slot or mm.read_pfns(int(addr), 1)[0] == -1 and mm.read_keys(int(addr), 1)[0] == slots["key"][slot]
    used = slots["flags"] & 1 != 0
    assert np.array_equal(meant, np.where(used, slots["count"], 0)) and (slots["count"][used] > 0).all()
    assert used.sum() == host.swap_used <= host.swap_pages
    for number in np.flatnonzero(slots["pfn"]):
        pfn = int(slots["pfn"][number])
        assert used[number] and a["slot_of"][pfn] == number and a["f_key"][pfn] == slots["key"][number]
    if len(slots) > 1:
        assert np.count_nonzero(a["slot_of"]) == np.count_nonzero(slots["pfn"])


    listed, at = [], int(a["ctl"]["swap_first"][0])
    while at:
        listed.append(at)
        assert a["mms"]["swap_prev"][at] == (listed[-2] if len(listed) > 1 else 0)
        at = int(a["mms"]["swap_next"][at])
    swapped_out = {mm.index for mm in host.mm_list if len(_swap.swapped(host.world, mm.index)[0])}
    assert len(set(listed)) == len(listed) and swapped_out <= set(listed) <= {mm.index for mm in host.mm_list}


def check_families(host):
    """Records of families are there for areas and for what descends from them, and count them."""
    a = host.world.arrays
    records = a["anons"][: int(a["ctl"]["anons_used"][0])]
    vmas = [a["vmas"][vma.index] for mm in host.mm_list for vma in mm.vmas]
    areas, users, children = (np.zeros(len(records), np.int64) for _ in range(3))
    for vma in vmas:
        chain, at = [], int(vma["anon_chain"])
        while at:
            chain.append(at)
            at = int(records["above"][at])
        assert (vma["anon_vma"] in chain) == bool(chain) and len(set(chain)) == len(chain)
        areas[vma["anon_vma"]] += 1
        users[vma["anon_chain"]] += 1
    used = records["users"] > 0
    np.add.at(users, records["above"][used], 1)
    np.add.at(children, records["parent"][used], 1)
    for counted, name in ((areas, "areas"), (users, "users"), (children, "children")):
        assert np.array_equal(counted[1:], np.where(used, records[name], 0)[1:]), name
    linked = [int(vma["linked"]) for vma in vmas if vma["anon_vma"]]
    assert len(set(linked)) == len(linked)


def check_allocator(host):
    a = host.world.arrays
    used = (a["f_flags"] & FRAME["used"]) != 0
    blocks = len(a["b_count"])
    free = np.unpackbits(a["b_free"].view(np.uint8), bitorder="little")[: host.nr_frames]
    assert np.array_equal(free == 0, used)
    assert not np.unpackbits(a["b_free"].view(np.uint8), bitorder="little")[host.nr_frames :].any()
    counts = np.add.reduceat(free.astype(np.int64), np.arange(blocks) * 512)
    assert np.array_equal(counts, a["b_count"])
    assert int(used.sum()) == host.frames_used
    nodes = host.nr_nodes
    listed = {}
    for kind in (0, 1):
        for nid in range(nodes):
            b, before = int(a["b_heads"][kind * nodes + nid]), -1
            while b >= 0:
                assert b not in listed and a["b_prev"][b] == before and a["f_nid"][b * 512] == nid
                listed[b] = kind
                before, b = b, int(a["b_next"][b])
    for b in range(blocks):
        want = None if counts[b] == 0 else 1 if counts[b] == 512 else 0
        assert listed.get(b) == want, (b, listed.get(b), want)


def check_owners(host, mapped):
    """Folios of several pages: their size and order, and their owners; mapped: head -> mm -> entries that map it."""
    f, owners = host.frames, host.world.arrays["owners"]
    heads = np.flatnonzero(f.flags & FRAME["head"])
    pages = 1 << owners["order"][heads >> 2].astype(np.int64)
    assert (pages >= 4).all() and not (heads & (pages - 1)).any()
    for head, n in zip(heads.tolist(), pages.tolist(), strict=True):
        assert (f.head[head : head + n] == head).all() and (f.flags[head + 1 : head + n] & FRAME["tail"]).all()
    assert np.count_nonzero(f.flags & FRAME["tail"]) == int((pages - 1).sum())
    others = np.ones(len(owners), bool)
    others[heads >> 2] = False
    assert not owners[others].view(np.uint8).any(), "owners of no folio"
    for head in heads.tolist():
        o, counts = owners[head >> 2], mapped.get(head, {})
        assert o["total"] == sum(counts.values()), (head, o, counts)
        for mm, nr in zip(o["mm"].tolist(), o["nr"].tolist(), strict=True):
            # A pmd split by one that found no slot before leaves it with a number that is short by one.
            assert (mm == 0) == (nr == 0) and nr <= counts.get(mm, 0), (head, o, counts)
        if not f.flags[head] & FRAME["anon"]:
            assert not o["mm"].any() and not o["shared"], (head, o)
        elif not o["shared"]:
            assert len(counts) <= 1 and o["total"] in o["nr"], (head, o, counts)
