"""The mergeable-page search and the scan cursor with its rmap_items, by the behaviour of the kernel's samepage scan."""

from . import entries as E

PAGE = 4096
ANON, KSM, ZERO, DEVICE = 1, 2, 0x10, 0x80


class Space:
    """An address space as the scan sees it at one moment: `vmas` are (start, end, mergeable, anon_vma) in order."""

    def __init__(self, ident, vmas, tables, exiting=False):
        self.ident, self.vmas, self.tables, self.exiting = ident, vmas, tables, exiting


def normal_anon(e, pfn, frame_flags):
    """Whether this leaf maps a page that the scan may take."""
    if E.special(e):
        return False
    flags = int(frame_flags[pfn])
    return bool(flags & ANON) and not flags & DEVICE and not flags & ZERO


def page_at(tables, addr, frame_flags):
    """The frame number of the mergeable page mapped at addr, or None: one full descent."""
    row, level = tables.root, tables.levels
    while True:
        e = tables.table(row)[addr // E.size(level) % 512]
        if E.none(e) or not E.present(e, level):
            return None
        if E.leaf(e, level):
            pfn = E.pfn(e, level) + addr % E.size(level) // PAGE
            return pfn if normal_anon(e, pfn, frame_flags) else None
        row, level = E.pfn(e, level), level - 1


def next_page(tables, start, end, frame_flags):
    """The first mergeable page of [start, end): (address, pfn), or None. Jumps over whole entries that are none."""
    addr = start
    while addr < end:
        row, level = tables.root, tables.levels
        while True:
            e = tables.table(row)[addr // E.size(level) % 512]
            if E.none(e) or not E.present(e, level) or E.leaf(e, level):
                break
            row, level = E.pfn(e, level), level - 1
        if E.present(e, level) and not E.none(e):
            pfn = E.pfn(e, level) + addr % E.size(level) // PAGE
            if normal_anon(e, pfn, frame_flags):
                return addr, pfn
        addr = (addr // E.size(level) + 1) * E.size(level)
    return None


class Item:
    """One rmap_item."""

    def __init__(self, addr):
        self.addr, self.age, self.skips = addr, 0, 0

    def state(self):
        return self.addr, self.age, self.skips


class Slot:
    """One registered address space on the list."""

    def __init__(self, ident):
        self.ident, self.items = ident, []


class Cursor:
    """The scan cursor. `spaces` is asked for the present state of an address space at every step."""

    def __init__(self, spaces, frame_flags, smart_scan=True):
        self.spaces, self.frame_flags, self.smart_scan = spaces, frame_flags, smart_scan
        self.slots = []
        self.at = None  # the slot the cursor is in; None: at the head, between two scans
        self.address = 0
        self.passed = 0  # how many items of the slot's list are behind the cursor
        self.seqnr = 0
        self.skipped = 0

    def slot(self, ident):
        return next((s for s in self.slots if s.ident == ident), None)

    # -------------------------------------------------------------- the list of address spaces

    def enter(self, ident):
        """Register: just behind the cursor."""
        if self.slot(ident):
            return
        where = len(self.slots) if self.at is None else self.slots.index(self.at)
        self.slots.insert(where, Slot(ident))

    def exit(self, ident):
        """The address space exits."""
        slot = self.slot(ident)
        if slot is None or slot is self.at:
            return
        self.slots.remove(slot)
        if slot.items:
            where = 0 if self.at is None else self.slots.index(self.at) + 1
            self.slots.insert(where, slot)

    # -------------------------------------------------------------- the next page

    def next(self):
        """(ident, addr, pfn) of the next page, or None at the end of a full scan."""
        if not self.slots:
            return None
        if self.at is None:
            self.at, self.address, self.passed = self.slots[0], 0, 0
        while self.at is not None:
            found = self.in_space()
            if found:
                return found
            self.leave_space()
        self.seqnr += 1
        return None

    def in_space(self):
        space = self.spaces(self.at.ident)
        if space.exiting:
            return None
        for start, end, mergeable, anon_vma in space.vmas:
            if end <= self.address or not mergeable:
                continue
            self.address = max(self.address, start)
            if not anon_vma:
                self.address = end
            while self.address < end:
                found = next_page(space.tables, self.address, end, self.frame_flags)
                if found is None:
                    self.address = end
                    break
                self.address, pfn = found
                item = self.item(self.address)
                skip = self.skip(item, pfn)
                self.address += PAGE
                if not skip:
                    return self.at.ident, item.addr, pfn
        return None

    def item(self, addr):
        items = self.at.items
        while len(items) > self.passed and items[self.passed].addr < addr:
            del items[self.passed]
        if len(items) == self.passed or items[self.passed].addr != addr:
            items.insert(self.passed, Item(addr))
        self.passed += 1
        return items[self.passed - 1]

    def skip(self, item, pfn):
        if not self.smart_scan or int(self.frame_flags[pfn]) & KSM:
            return False
        age = item.age
        item.age = min(age + 1, 255)
        if age < 3:
            return False
        if item.skips == 0:
            item.skips = 1 if age <= 3 else 2 if age <= 5 else 4 if age <= 8 else 8
            return False
        item.skips -= 1
        self.skipped += 1
        return True

    def leave_space(self):
        slot, space = self.at, self.spaces(self.at.ident)
        where = self.slots.index(slot)
        if space.exiting:
            slot.items.clear()
        else:
            del slot.items[self.passed:]
        self.at = self.slots[where + 1] if where + 1 < len(self.slots) else None
        if space.exiting or self.address == 0:
            slot.items.clear()
            self.slots.remove(slot)
        self.address, self.passed = 0, 0

    def scan(self, n):
        """A batch: up to n pages, never beyond the end of a full scan."""
        out = []
        for _ in range(n):
            found = self.next()
            if found is None:
                break
            out.append(found)
        return out
