"""Samepage merging with Python objects, for whole scans of small private pages without forks: no trees, no arrays.

Contents change between scans only, so the unstable tree is a dict, and a full scan meets every rmap_item, so when a
stale node is met within the scan makes no difference. Written from the description of what ksmd does.
"""

from __future__ import annotations


class Page:
    """A frame: its content, and the items that share it once it is a KSM page."""

    def __init__(self, content):
        self.content = content
        self.ksm = False
        self.items = []


ZERO = Page(0)


class Item:
    def __init__(self):
        self.checksum = None
        self.age = 0
        self.skips = 0
        self.page = None  # KSM page whose list it is on
        self.unstable = False

    def leave(self):
        if self.page is not None:
            self.page.items.remove(self)
        self.page, self.unstable = None, False


class Process:
    def __init__(self):
        self.pages = {}  # page number -> Page
        self.items = {}  # page number -> Item
        self.exiting = False

    def drop(self, keep):
        for number in [number for number in self.items if not keep(number)]:
            self.items.pop(number).leave()


class SlowKsm:
    def __init__(self):
        self.list = []
        self.smart_scan = True
        self.use_zero_pages = False
        self.zero = 0
        self.skipped = 0
        self.scanned = 0

    # ------------------------------------------------------------ what happens between scans

    def spawn(self, contents):
        process = Process()
        process.pages = {number: Page(content) for number, content in enumerate(contents)}
        self.list.append(process)
        return process

    def gone(self, process, number):
        page = process.pages.pop(number, None)
        self.zero -= page is ZERO

    def write(self, process, number, content):
        page = process.pages.get(number)
        if page is None or page.ksm or page is ZERO:
            self.gone(process, number)
            process.pages[number] = Page(content)
        else:
            page.content = content

    def exit(self, process):
        for number in list(process.pages):
            self.gone(process, number)
        process.exiting = True
        self.list.remove(process)
        if process.items:
            self.list.insert(0, process)

    # ------------------------------------------------------------ a full scan

    def scan(self):
        unstable = {}
        for process in list(self.list):
            if process.exiting:
                process.drop(lambda number: False)
                self.list.remove(process)
                continue
            found = sorted(number for number, page in process.pages.items() if page is not ZERO)
            process.drop(lambda number, found=found: number in found)
            for number in found:
                item = process.items.setdefault(number, Item())
                page = process.pages[number]
                if self.smart_scan and not page.ksm and self.skip(item):
                    self.skipped += 1
                    item.leave()
                    continue
                self.scanned += 1
                self.visit(process, number, item, page, unstable)

    def skip(self, item):
        age, item.age = item.age, min(255, item.age + 1)
        if age < 3:
            return False
        if item.skips:
            item.skips -= 1
            return True
        item.skips = {3: 1, 4: 2, 5: 2, 6: 4, 7: 4, 8: 4}.get(age, 8)
        return False

    def visit(self, process, number, item, page, unstable):
        if page.ksm and item.page is page:
            return
        item.leave()
        if item.checksum != page.content:
            item.checksum = page.content
            return
        if page.content == 0 and self.use_zero_pages:
            process.pages[number] = ZERO
            self.zero += 1
            return
        shared = self.shared_page(page.content)
        if shared is not None:
            process.pages[number] = shared
            self.join(item, shared)
        elif page.content in unstable:
            twin_process, twin_number, twin = unstable.pop(page.content)
            twin.unstable = False
            page.ksm = True
            twin_process.pages[twin_number] = page
            self.join(twin, page)
            self.join(item, page)
        else:
            unstable[page.content] = process, number, item
            item.unstable = True

    def shared_page(self, content):
        for process in self.list:
            for page in process.pages.values():
                if page.ksm and page.content == content:
                    return page
        return None

    def join(self, item, page):
        item.page = page
        page.items.append(item)

    # ------------------------------------------------------------ what is seen

    def counters(self):
        items = [item for process in self.list for item in process.items.values()]
        pages = {id(item.page) for item in items if item.page is not None}
        on_pages = sum(item.page is not None for item in items)
        unshared = sum(item.unstable for item in items)
        return {
            "pages_scanned": self.scanned,
            "pages_skipped": self.skipped,
            "pages_shared": len(pages),
            "pages_sharing": on_pages - len(pages),
            "pages_unshared": unshared,
            "pages_volatile": len(items) - on_pages - unshared,
            "ksm_zero_pages": self.zero,
            "general_profit": (on_pages - len(pages) + self.zero) * 4096 - len(items) * 64,
        }

    def classes(self, process):
        """Page numbers with the first page of the process that has the same frame, zero page and KSM pages told."""
        first = {}
        return [
            (number, page is ZERO, page.ksm, first.setdefault(id(page), number), page.content)
            for number, page in sorted(process.pages.items())
        ]
