"""Predicates on one packed page-table entry, as Python ints. Levels: 1 pte, 2 pmd, 3 pud, 4 p4d, 5 pgd."""

P, RW, US, PWT, PCD, A, D, PS, G, SPECIAL, UFFD_WP, SOFT_DIRTY = (1 << bit for bit in range(12))
PAT_LARGE = 1 << 12
NX = 1 << 63
FRAME = ((1 << 52) - 1) & ~0xFFF


def size(level):
    """Bytes that one entry of this level covers."""
    return {1: 4096, 2: 2 << 20, 3: 1 << 30, 4: 512 << 30, 5: 256 << 40}[level]


def none(e):
    return e | A | D == A | D


def present(e, level):
    if level == 1 or level == 3:
        return bool(e & P) or bool(e & G)
    if level == 2:
        return bool(e & P) or bool(e & G) or bool(e & PS)
    return bool(e & P)


def large(e, level):
    """Whether the entry has the layout of a large leaf: fewer frame bits, PAT at bit 12."""
    return level in (2, 3) and bool(e & PS)


def leaf(e, level):
    return present(e, level) and (level == 1 or large(e, level))


def special(e):
    return bool(e & SPECIAL)


def prot_none(e):
    return not e & P and bool(e & G)


def swap_like(e, level):
    return not none(e) and not present(e, level)


def frame_bits(e, level):
    """Where the frame number stands: from bit 12 to 51, in a large leaf from the bit of its size."""
    return FRAME & ~(size(level) - 1) if large(e, level) else FRAME


def pfn(e, level):
    stored = e & frame_bits(e, level)
    if e != 0 and not e & P:
        stored = ~e & frame_bits(e, level)
    return stored >> 12


def flags(e, level):
    """Everything of the entry that is not a frame number (bit 12 of a large leaf is a flag)."""
    out = e & ~FRAME
    if large(e, level):
        out |= e & PAT_LARGE
    return out


def make(pfn_, flags_, level=1):
    """A packed entry: the frame bits are stored inverted where P is clear (and the entry is not zero)."""
    bits = frame_bits(flags_, level)
    stored = pfn_ << 12
    if not flags_ & P and (pfn_ or flags_):
        stored = ~stored
    return flags_ | stored & bits
