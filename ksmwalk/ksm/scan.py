"""The scan cursor: mm slots, next item, smart scan; the range walk and the one-address-at-a-time scan before it."""

from __future__ import annotations

from ..errors import Strict, check
from ..gate import as_flag, shown
from ..layout import Strategy
from ..signatures import AddressSpace, AnyArray
from . import _cursor, _items
from .rmap import RmapItem

STRATEGIES = {"range": Strategy.RANGE, "per-address": Strategy.PER_ADDRESS}


class KsmScan(Strict, _cursor.Cursor):
    """The cursor of one KSM over the mergeable pages of a Host.

    A Host makes it: `host.ksm.scan`. Every state it has is in the Host's `cursor` record.

    Attributes
    ----------
    mm_slot : Mm or None
        Address space the cursor is in; None between full scans.
    address : int
        Bytes; where the search goes on.
    rmap_list : RmapItem or None
        Item after which the list of the mm goes on; None: from its first.
    seqnr : int
        Full scans completed.
    strategy : str
        "range" (the 2025 patch: one range walk that jumps holes) or "per-address" (before it).
    real_lookups : bool
        Perform the one-address lookups that meet a hole, instead of counting them in closed form.

    Models: struct ksm_scan and scan_get_next_rmap_item() of Linux 6.18; with "per-address" those of kernels with `SCAN_EACH`.
    Differs: nothing known.
    """

    __slots__ = ("__weakref__",)

    # ---------------------------------------------------------- the cursor's record

    @property
    def _cursor(self) -> AnyArray:
        return self._world.arrays["cursor"]

    @property
    def mm_slot(self) -> AddressSpace | None:
        number = int(self._cursor["slot"][0])
        host = self._world.live()
        if not number:
            return None
        if host is None:
            return number  # type: ignore[return-value] # a World without a Host, which only the engine's own tests make
        return host.mm_by_number(number)

    @property
    def address(self) -> int:
        return int(self._cursor["address"][0])

    @property
    def rmap_list(self) -> RmapItem | None:
        index = int(self._cursor["link"][0])
        return _items.py_rmap_item(self._world, index) if index else None

    @property
    def seqnr(self) -> int:
        return int(self._cursor["seqnr"][0])

    @property
    def strategy(self) -> str:
        return "range" if self._cursor["strategy"][0] == Strategy.RANGE else "per-address"

    @strategy.setter
    def strategy(self, name: str) -> None:
        if not isinstance(name, str) or name not in STRATEGIES:
            raise ValueError(f"strategy {shown(name)}: must be one of {', '.join(STRATEGIES)}")
        with self._world:
            self._cursor["strategy"][0] = STRATEGIES[name]

    @property
    def real_lookups(self) -> bool:
        return bool(self._cursor["real_lookups"][0])

    @real_lookups.setter
    def real_lookups(self, on: bool) -> None:
        on = as_flag(on, "real_lookups")
        with self._world:
            self._cursor["real_lookups"][0] = on

    # ---------------------------------------------------------- errors

    def _fail(self, code: int) -> None:
        check(code, f"mm {int(self._cursor['slot'][0])}, address {self.address:#x}", self._world.arrays["bad"])

    # ---------------------------------------------------------- work counts

    @property
    def work(self) -> dict[str, int]:
        """What the scans since `reset_work` did.

        Returns
        -------
        dict
            `pgd`, `p4d`, `pud`, `pmd`: entries read per level (p4d only with 5 levels); `pte`: ptes read; `searches`:
            range walks; `lookups`: one-address lookups; `lookup_misses`: those that met no page; `callbacks`: calls of
            the pmd operation; `resched`: scheduling points; `longest`: most entries read (range) or addresses looked up
            (per-address) between two pages; `holes`: empty entries jumped; `found`: pages found.
        """
        rec = self._world.arrays["work"][0]
        levels = int(self._world.arrays["ctl"]["levels"][0])
        cached = int(rec["cached"])
        # A search that went on in the table of the one before reads an entry a level, like any descent.
        entries = [int(rec["entries"][level]) + cached for level in range(6)]
        out = {"pgd": entries[levels], "pud": entries[3], "pmd": entries[2], "pte": int(rec["ptes"])}
        if levels == 5:
            out = {"pgd": entries[5], "p4d": entries[4], **{k: out[k] for k in ("pud", "pmd", "pte")}}
        out["searches"] = int(rec["searches"]) + cached
        out["resched"] = int(rec["resched"]) + cached
        out["callbacks"] = int(rec["callbacks"]) + cached
        out["longest"] = max(int(rec["longest"]), levels if cached else 0)
        for name in ("lookups", "lookup_misses", "holes", "found"):
            out[name] = int(rec[name])
        return out

    def reset_work(self) -> None:
        """Set all work counts to zero."""
        with self._world:
            self._world.arrays["work"][0] = 0

    def __repr__(self) -> str:
        slot = int(self._cursor["slot"][0])
        where = f"mm {slot} address {self.address:#x}" if slot else "between scans"
        return f"<KsmScan {where}, seqnr {self.seqnr}, {self.strategy}>"
