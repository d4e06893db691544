"""Mutations of what goes by time: the advisor, the pruning of chains. See `mutations.py`."""

#: words in the names of recordings that are to be tried first
FIRST = ("prune", "chain")

#: name: (text as it stands, text as it is broken, facts that it breaks ...)
MUTATIONS: dict[str, tuple[str, ...]] = {
    "switched on, the advisor keeps the default": (
        "pages = sysfs.PAGES_TO_SCAN_DEFAULT if number == 0 else self.advisor_min_pages_to_scan & _U32",
        "pages = sysfs.PAGES_TO_SCAN_DEFAULT",
        "W43",
    ),
    "switched on, the advisor knows what was before": (
        '            self._ksm["advisor"][0, :_CPU_NOW] = 0\n',
        "",
        "W43",
    ),
    "the advisor's minimum is a floor": (
        '    return min(new, knobs["max_pages"]), change, scan_s',
        '    return max(500, min(new, knobs["max_pages"])), change, scan_s',
        "W43",
    ),
    "the advisor leaves ksmd one percent at least": (
        "LEAST_CPU = 10\n",
        "LEAST_CPU = 1\n",
        "W44",
    ),
    "the advisor weighs the newest change more": (
        "(70 * change + 30 * newest) // 100",
        "(60 * change + 40 * newest) // 100",
        "W44",
    ),
    "seconds of a scan are rounded up": (
        "scan_s = max(1, scan_ms // 1000)",
        "scan_s = max(1, -(-scan_ms // 1000))",
        "W44",
    ),
    "the advisor's cap is above its floor": (
        'new = max(min(new, per_percent * knobs["max_cpu"]), per_percent * LEAST_CPU)',
        'new = min(max(new, per_percent * LEAST_CPU), per_percent * knobs["max_cpu"])',
        "W44",
    ),
    "the advisor does not count the last visits": (
        "            self._set(then, cpu)  # the advisor counts these visits\n",
        "",
        "W45",
    ),
    "the advisor steps in the middle of scans": (
        "        if ended:\n            self._advise()\n        return done",
        "        self._advise()\n        return done",
        "W45",
    ),
    "the clock of a chain begins with the machine's": (
        "    w.nodes[chain].prune_time = <uint64_t>w.ksm.now_ms\n",
        "",
        "W46",
    ),
    "a chain is pruned a second late": (
        "    if may_prune and w.ksm.now_ms >= <int64_t>c.prune_time + w.ksm.prune_millisecs:",
        "    if may_prune and w.ksm.now_ms >= <int64_t>c.prune_time + w.ksm.prune_millisecs + 1000:",
        "W46",
    ),
}

#: those that have no time in recordings of single steps
ADVISOR = tuple(name for name, (_, _, *facts) in MUTATIONS.items() if {"W43", "W44", "W45"} & set(facts))
