"""Predicates on one packed page-table entry, as Python ints. Levels: 1 pte, 2 pmd, 3 pud, 4 p4d, 5 pgd."""

P, RW, US, PWT, PCD, A, D, PS, G, SPECIAL, UFFD_WP, SOFT_DIRTY = (1 << bit for bit in range(12))
PAT_LARGE = 1 << 12
NX = 1 << 63
FRAME_BITS = [bit for bit in range(12, 52)]


def size(level):
    """Bytes that one entry of this level covers."""
    return {1: 4096, 2: 2 << 20, 3: 1 << 30, 4: 512 << 30, 5: 256 << 40}[level]


def none(e):
    return all(not e >> bit & 1 for bit in range(64) if bit not in (5, 6))


def present(e, level):
    if level == 1 or level == 3:
        return bool(e & P) or bool(e & G)
    if level == 2:
        return bool(e & P) or bool(e & G) or bool(e & PS)
    return bool(e & P)


def leaf(e, level):
    if level == 1:
        return True
    if level in (2, 3):
        return bool(e & PS)
    return False


def special(e):
    return bool(e & SPECIAL)


def prot_none(e):
    return not e & P and bool(e & G)


def swap_like(e, level):
    return not none(e) and not present(e, level)


def pfn(e, level):
    inverted = e != 0 and not e & P
    lowest = 12
    if leaf(e, level) and level > 1:
        lowest = {2: 21, 3: 30}[level]
    out = 0
    for bit in FRAME_BITS:
        if bit < lowest:
            continue
        value = e >> bit & 1
        if inverted:
            value = 1 - value
        out |= value << (bit - 12)
    return out


def flags(e, level):
    """Everything of the entry that is not a frame number (bit 12 of a large leaf is a flag)."""
    out = 0
    for bit in range(64):
        if bit in FRAME_BITS:
            continue
        out |= e & (1 << bit)
    if level > 1 and leaf(e, level):
        out |= e & PAT_LARGE
    return out


def make(pfn_, flags_, level=1):
    """A packed entry: the frame bits are stored inverted where P is clear (and the entry is not zero)."""
    e = flags_
    lowest = {2: 21, 3: 30}[level] if level > 1 and leaf(flags_, level) else 12
    for bit in FRAME_BITS:
        if bit < lowest:
            continue
        value = pfn_ >> (bit - 12) & 1
        if not flags_ & P and (pfn_ or flags_):
            value = 1 - value
        if value:
            e |= 1 << bit
    return e
