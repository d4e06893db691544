"""KSM: the scan cursor with its rmap_items, the trees, the merging, tunables and counters."""
