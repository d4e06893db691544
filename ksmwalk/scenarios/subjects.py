"""What random scenarios of the world around KSM are about, and what must be possible for that."""

from __future__ import annotations

from typing import Any

from .generate_plain import FIRST_VPN
from .kinds import Op

#: what each subject adds to what processes do anyway, with weights
SUBJECTS: dict[str, tuple[tuple[str, int], ...]] = {
    "locks": (
        ("mlock", 20), ("munlock", 7), ("mlock2", 6), ("mlockall", 2), ("munlockall", 1), ("cpu", 5),
        ("dontneed_locked", 3), ("locked_area", 3), ("fork", 8), ("unmerge", 6),
    ),
    "owners": (
        ("move_part", 12), ("pin", 9), ("unpin", 6), ("dmapin", 7), ("dmaunpin", 5), ("fork", 14), ("exit", 5),
        ("write", 20), ("area", 5),
    ),
    "folios": (("move_part", 4), ("fork", 6), ("area", 8), ("punch", 5), ("touch", 5), ("write", 10)),
    "khuge": (("khuge", 14), ("thin_area", 10), ("punch", 8), ("fork", 4), ("write", 10)),
    "swap": (("reclaim", 10), ("pageout", 12), ("willneed", 5), ("swapoff", 3), ("fork", 8), ("touch", 12), ("rewrite", 8)),
    "advice": (
        ("cold", 10), ("pageout", 8), ("willneed", 2), ("free", 8), ("populate", 6), ("remove", 2), ("advise", 12),
        ("shared_area", 2), ("uffd_wp", 4),
    ),
    "uffd": (
        ("uffd", 10), ("uffd_protect", 16), ("uffd_copy", 12), ("uffd_zero", 5), ("uffd_move", 10), ("uffd_unregister", 3),
        ("fork", 5),
    ),
    "tasks": (("clone", 6), ("vfork", 7), ("growsdown", 4), ("dontunmap", 7), ("file_area", 5), ("fork", 4), ("exec", 3)),
}  # fmt: skip

_SMALL = ["A", FIRST_VPN, 1]
#: what must be possible for a kind that is not called as its operation is; None where every model has it
NEEDS: dict[str, list[Op] | None] = {
    "dontneed_locked": [["mlock", *_SMALL]],
    "locked_area": [["mmap", *_SMALL, {"locked": 1}], ["mlock", *_SMALL]],
    "growsdown": [["mmap", *_SMALL, {"growsdown": 1}], ["watch", *_SMALL]],
    "file_area": [["mmap", *_SMALL, {"file": 1}], ["clone", "A", "B"]],
    "dontunmap": [["mremap", *_SMALL, 1, 2 * FIRST_VPN, {"dontunmap": 1}], ["clone", "A", "B"]],
    "swapoff": [["swapoff"], ["swapon"]],
    "vfork": [["vfork", "A", "B"], ["exit", "B"], ["vforked", "A"]],
    "cold": [["reclaim"]],
}
SMALLEST: dict[str, Op] = {
    "mlock": ["mlock", *_SMALL], "munlock": ["munlock", *_SMALL], "mlock2": ["mlock2", *_SMALL, 1],
    "mlockall": ["mlockall", "A", 1], "munlockall": ["munlockall", "A"], "cpu": ["cpu", "A", 1],
    "pin": ["pin", *_SMALL[:2]], "unpin": ["unpin", *_SMALL[:2]], "dmapin": ["dmapin", *_SMALL],
    "dmaunpin": ["dmaunpin", *_SMALL[:2]], "khuge": ["khuge"], "reclaim": ["reclaim"], "advise": ["advise", "A", *_SMALL, "cold"],
    "uffd": ["uffd", *_SMALL, {"missing": 1}], "uffd_protect": ["uffd_protect", *_SMALL, 1],
    "uffd_copy": ["uffd_copy", *_SMALL[:2], [1]], "uffd_zero": ["uffd_zero", *_SMALL],
    "uffd_move": ["uffd_move", "A", FIRST_VPN, FIRST_VPN + 2, 1], "uffd_unregister": ["uffd_unregister", *_SMALL],
    "uffd_wp": ["uffd_wp", *_SMALL], "clone": ["clone", "A", "B"], "brk": ["brk", "A", 1], "store": ["store", *_SMALL[:2], 1, [1]],
}  # fmt: skip
#: what a subject needs of the surroundings
AROUND: dict[str, dict[str, Any]] = {"swap": {"swap_mib": 64, "memcg": 1}, "folios": {"thp": "always"}}
