"""The range walk of page tables with callbacks, level by level."""

from . import entries as E

EINVAL = -22
SUBTREE, CONTINUE, AGAIN = "SUBTREE", "CONTINUE", "AGAIN"
NAMES = {5: "pgd_entry", 4: "p4d_entry", 3: "pud_entry", 2: "pmd_entry", 1: "pte_entry"}
DEPTH = {5: 0, 4: 1, 3: 2, 2: 3}


class Vma:
    """What the walk needs to know of a vma."""

    def __init__(self, vm_start, vm_end, *, mm=None, pfnmap=False, page_size=4096, hugetlb=False, name=None):
        self.vm_start, self.vm_end, self.vm_mm = vm_start, vm_end, mm
        self.pfnmap, self.hugetlb, self.page_size, self.name = pfnmap, hugetlb, page_size, name


class Entry:
    """A mutable entry in its table."""

    def __init__(self, tables, table, index, level):
        self.tables, self.table, self.index, self.level = tables, table, index, level

    @property
    def value(self):
        return self.table[self.index]

    @value.setter
    def value(self, e):
        self.table[self.index] = e

    @property
    def none(self):
        return E.none(self.value)

    @property
    def present(self):
        return E.present(self.value, self.level)

    @property
    def leaf(self):
        return E.leaf(self.value, self.level)

    @property
    def pfn(self):
        return E.pfn(self.value, self.level)

    @property
    def ptes(self):
        e = self.value
        if self.level != 2 or E.none(e) or not E.present(e, 2) or E.leaf(e, 2):
            return None
        return self.tables.table(E.pfn(e, 2))


class Walk:
    """One walk: `ops` is a dict of callbacks."""

    def __init__(self, tables, ops, private, vma=None, mm=None):
        self.tables, self.ops, self.private, self.vma, self.mm = tables, ops, private, vma, mm
        self.action = SUBTREE

    def lowest(self):
        """The lowest level that has a callback; below it nothing is read."""
        return min([lv for lv, name in NAMES.items() if name in self.ops], default=99)

    def hole(self, addr, next_, depth):
        return self.ops["pte_hole"](addr, next_, depth, self) if "pte_hole" in self.ops else 0

    def entry(self, name, table, index, level, addr, next_):
        if name not in self.ops:
            return 0
        return self.ops[name](Entry(self.tables, table, index, level), addr, next_, self)

    def tree(self, start, end):
        return self.level(self.tables.table(self.tables.root), self.tables.levels, start, end)

    def level(self, table, level, start, end):
        addr = start
        while addr < end:
            next_ = min(addr // E.size(level) * E.size(level) + E.size(level), end)
            result = self.one(table, addr // E.size(level) % 512, level, addr, next_)
            if result:
                return result
            addr = next_
        return 0

    def one(self, table, index, level, addr, next_):
        top = level == self.tables.levels
        if level == 1:
            return self.entry("pte_entry", table, index, 1, addr, next_)
        while True:
            if E.none(table[index]):
                return self.hole(addr, next_, 0 if top else DEPTH[level])
            if top:
                names = ["pgd_entry"] if level == 5 else ["pgd_entry", "p4d_entry"]
            else:
                names = [NAMES[level]]
            if level in (3, 2):
                self.action = SUBTREE
            for name in names:
                result = self.entry(name, table, index, level, addr, next_)
                if result:
                    return result
            if level in (3, 2):
                if self.action == AGAIN:
                    continue
                if self.action == CONTINUE:
                    return 0
            break
        if self.lowest() >= level:
            return 0
        e = table[index]
        if E.none(e) or not E.present(e, level):
            return 0
        if E.leaf(e, level):
            if self.vma is None:
                return 0
            self.tables.split(table, index, level)
        return self.level(self.tables.table(E.pfn(table[index], level)), level - 1, addr, next_)

    def one_vma(self, vma, start, end):
        self.vma = vma
        if "pre_vma" in self.ops:
            result = self.ops["pre_vma"](start, end, self)
            if result:
                return result
        result = self.hugetlb(vma, start, end) if vma.hugetlb else self.tree(start, end)
        if "post_vma" in self.ops:
            self.ops["post_vma"](self)
        return result

    def hugetlb(self, vma, start, end):
        if "hugetlb_entry" not in self.ops:
            return 0
        level = {2 << 20: 2, 1 << 30: 3}[vma.page_size]
        addr = start
        while addr < end:
            next_ = min(addr // vma.page_size * vma.page_size + vma.page_size, end)
            found = self.find(addr, level)
            if found is None:
                result = self.hole(addr, next_, -1)
            else:
                result = self.entry("hugetlb_entry", *found, level, addr, next_)
            if result:
                return result
            addr = next_
        return 0

    def find(self, addr, level):
        """Where the huge entry of addr stands, empty or not; None where there is not even a table for it."""
        row, at = self.tables.root, self.tables.levels
        while True:
            table, index = self.tables.table(row), addr // E.size(at) % 512
            if at == level:
                return table, index
            if E.none(table[index]):
                return None
            row, at = E.pfn(table[index], at), at - 1


def walk_page_range_novma(tables, start, end, ops, private=None):
    if start >= end:
        return EINVAL
    return Walk(tables, ops, private).tree(start, end)


def walk_page_range_vma(tables, vma, start, end, ops, private=None):
    if start >= end or vma.vm_mm is None or start < vma.vm_start or end > vma.vm_end:
        return EINVAL
    return Walk(tables, ops, private, mm=vma.vm_mm).one_vma(vma, start, end)


def walk_page_vma(tables, vma, ops, private=None):
    return walk_page_range_vma(tables, vma, vma.vm_start, vma.vm_end, ops, private)


def walk_page_range(tables, mm, vmas, start, end, ops, private=None):
    """`vmas` in ascending order."""
    if start >= end or mm is None:
        return EINVAL
    walk = Walk(tables, ops, private, mm=mm)
    addr = start
    while addr < end:
        vma = next((v for v in vmas if v.vm_end > addr), None)
        if vma is None or vma.vm_start >= end:
            walk.vma = None
            return walk.hole(addr, end, -1)
        if vma.vm_start > addr:
            walk.vma = None
            result = walk.hole(addr, vma.vm_start, -1)
            next_ = vma.vm_start
        else:
            next_ = min(vma.vm_end, end)
            walk.vma = vma
            result = 0
            skip = False
            if "test_walk" in ops:
                result = ops["test_walk"](addr, next_, walk)
                if result > 0:
                    result, skip = 0, True
            elif vma.pfnmap:
                result, skip = walk.hole(addr, next_, -1), True
            if result == 0 and not skip:
                result = walk.one_vma(vma, addr, next_)
        if result:
            return result
        addr = next_
    return 0
