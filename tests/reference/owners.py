"""Who owns a folio of several pages, slowly: one folio and the processes that map it, by the rules as they are said.

A process maps the folio as a whole (one leaf pmd) or page by page. Written from what Linux 6.18 was seen to do, without a
look at the engine: nothing here is shared with it.
"""

HUGE = 512


class Folio:
    """A folio that process `first` has just made: a huge page, mapped whole, or a smaller one, mapped page by page.

    Attributes
    ----------
    whole : set
        Processes that map it by one leaf pmd.
    parts : dict
        Process -> pages of it that it maps one by one.
    slots : list of [process, number] or None
        The two owners that the kernel knows of.
    shared : bool
        Maybe shared.
    exclusive : set of int
        Pages of which one mapping alone may exist.
    pins : int
        References besides the mappings.
    """

    def __init__(self, first, pages=HUGE):
        self.pages, self.whole, self.parts = pages, set(), {first: set()}
        self.slots, self.shared, self.pins = [None, None], False, 0
        self.exclusive = set(range(pages))
        self.total = 0
        if pages == HUGE:
            self._more(first, 1)
            self.whole.add(first)
        else:
            self._more(first, pages)
            self.parts[first] = set(range(pages))

    # ---------------------------------------------------------------- the two slots

    def _slot(self, who):
        return next((i for i in (0, 1) if self.slots[i] is not None and self.slots[i][0] == who), None)

    def _more(self, who, n):
        self.total += n
        if self.total == n:
            self.slots, self.shared = [[who, n], None], False
            return
        at = self._slot(who)
        if at is not None:
            self.slots[at][1] += n
            return
        free = [i for i in (0, 1) if self.slots[i] is None]
        if free:
            self.slots[free[0]] = [who, n]
        self.shared = True

    def _fewer(self, who, n):
        self.total -= n
        at = self._slot(who)
        if at is not None:
            self.slots[at][1] -= n
            if self.slots[at][1] > 0:
                return
            self.slots[at] = None
        if self.total == 0 or any(slot is not None and slot[1] == self.total for slot in self.slots):
            self.shared = False

    # ---------------------------------------------------------------- what processes do

    def split_pmd(self, who):
        """A leaf pmd becomes 512 ptes."""
        if who in self.whole:
            self._more(who, HUGE)
            self._fewer(who, 1)
            self.whole.remove(who)
            self.parts[who] = set(range(HUGE))

    def unmap(self, who, first, n):
        """Pages [first, first + n) of the folio are not mapped by this process any more."""
        if who in self.whole and n == HUGE:
            self.whole.remove(who)
            self._fewer(who, 1)
            return
        if who in self.whole:
            self.split_pmd(who)
        gone = self.parts[who] & set(range(first, first + n))
        self.parts[who] -= gone
        for _ in gone:
            self._fewer(who, 1)

    def fork(self, who, child):
        """The child maps what its parent maps."""
        self.parts[child] = set()
        if who in self.whole:
            self.exclusive.clear()
            self.whole.add(child)
            self._more(child, 1)
        else:
            self.exclusive -= self.parts[who]
            for page in sorted(self.parts[who]):
                self.parts[child].add(page)
                self._more(child, 1)

    def store(self, who, page):
        """A store of a process that maps the page: whether it goes into the page, not into a copy."""
        if who in self.whole:
            if page in self.exclusive:
                return True
            if self.total == 1 and self.pins == 0:
                self.exclusive = set(range(HUGE))
                return True
            self.split_pmd(who)
        if page in self.exclusive:
            return True
        # a folio of which one page is left is given up rather than kept for it
        if not self.shared and self.pins == 0 and self.total > 1:
            self.exclusive.add(page)
            return True
        self.parts[who].remove(page)
        self._fewer(who, 1)
        return False

    def maps(self, who, page):
        """Whether a process maps a page of the folio."""
        return who in self.whole or page in self.parts[who]
