"""Page tables as dictionaries of lists, the mappings in them, splitting a leaf."""

from . import entries as E


class Tables:
    """A private copy of table pages: `rows` of the same packed entries as Python ints, made on demand."""

    def __init__(self, rows, root, levels, frames=None, max_pfn=0):
        self.source = rows
        self.where = None if frames is None else {int(f): i for i, f in enumerate(frames)}
        self.copies = {}
        self.root = root
        self.levels = levels
        self.max_pfn = max_pfn
        self.next_row = len(rows) + 1000

    def table(self, row):
        """The 512 entries of the table page in this frame."""
        if row not in self.copies:
            at = row if self.where is None else self.where[row]
            self.copies[row] = [int(e) for e in self.source[at]]
        return self.copies[row]

    def new_table(self):
        self.next_row += 1
        self.copies[self.next_row] = [0] * 512
        return self.next_row

    def split(self, table, index, level):
        """A large leaf becomes a table of 512 leaves one level down: same pages, same flags."""
        e = table[index]
        first = E.pfn(e, level)
        flags = E.flags(e, level)
        below = flags & ~(E.PS | E.PAT_LARGE)
        row = self.new_table()
        if level == 2:
            if flags & E.PAT_LARGE:
                below |= E.PS  # PAT of a pte is bit 7
            step = 1
        else:
            below |= flags & (E.PS | E.PAT_LARGE)
            step = 512
        for i in range(512):
            self.table(row)[i] = E.make(first + i * step, below, level - 1)
        table[index] = E.make(row, E.P | E.RW | E.US | E.A | E.D)

    def lookup(self, addr, view="kernel"):
        """(pfn of the 4 KiB page, leaf's flags, level) of an address, or None."""
        row, level = self.root, self.levels
        while True:
            e = self.table(row)[addr // E.size(level) % 512]
            seen = E.present(e, level) if view == "kernel" else bool(e & E.P)
            if E.none(e) or not seen:
                return None
            if E.leaf(e, level):
                return E.pfn(e, level) + addr % E.size(level) // 4096, E.flags(e, level), level
            row, level = E.pfn(e, level), level - 1

    def mappings(self, start, end, view="kernel"):
        """Every leaf that overlaps [start, end): (addr, pfn, flags, level, perms), ascending. Addresses canonical."""
        out = []
        self._mappings(self.root, self.levels, 0, (True, True, True), start, end, view, out)
        return out

    def _mappings(self, row, level, base, perms, start, end, view, out):
        for index, e in enumerate(self.table(row)):
            addr = canonical(base + index * E.size(level), self.levels)
            if addr + E.size(level) <= start or addr >= end:
                continue
            seen = E.present(e, level) if view == "kernel" else bool(e & E.P)
            if E.none(e) or not seen:
                continue
            w, u, x = perms[0] and bool(e & E.RW), perms[1] and bool(e & E.US), perms[2] and not e & E.NX
            if E.leaf(e, level):
                readable = bool(e & E.P)
                bits = 1 * readable + 2 * (readable and w) + 4 * (readable and x) + 8 * (readable and u)
                out.append((addr, E.pfn(e, level), E.flags(e, level), level, bits))
            else:
                below = base + index * E.size(level)
                self._mappings(E.pfn(e, level), level - 1, below, (w, u, x), start, end, view, out)


def canonical(addr, levels):
    """Sign-extend an address as the processor wants it."""
    top = {4: 1 << 47, 5: 1 << 56}[levels]
    return addr + (1 << 64) - 2 * top if addr >= top else addr


def runs(mappings):
    """Neighbours merged: (addr, pfn, flags, level, perms, nr)."""
    out = []
    for addr, pfn, flags, level, perms in mappings:
        step = E.size(level)
        if out:
            a, p, f, lv, pm, nr = out[-1]
            if (f, lv, pm) == (flags, level, perms) and a + nr * step == addr and p + nr * step // 4096 == pfn:
                out[-1] = (a, p, f, lv, pm, nr + 1)
                continue
        out.append((addr, pfn, flags, level, perms, 1))
    return out
