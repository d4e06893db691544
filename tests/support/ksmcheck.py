"""Holds the arrays of a Host's KSM against each other: what must be true between any two operations.

Written from the meaning of the fields, not from the engine: everything is counted again from the items and nodes.
"""

from __future__ import annotations

import numpy as np

from ksmwalk.layout import Frame, ItemFlag, NodeFlag


def check_ksm(host) -> None:
    """Assert that items, nodes, trees, frames and counters agree."""
    a = host.world.arrays
    ksm, ctl = a["ksm"][0], a["ctl"][0]
    items = a["items"][: int(ctl["items_used"])]
    nodes = a["nodes"][: int(ctl["stable_used"])]
    live = np.flatnonzero(items["flags"] & ItemFlag.USED)
    assert len(live) == ctl["items_live"]
    _check_lists(a, items, set(live.tolist()))
    pages = {}
    for index in range(1, len(nodes)):
        node = nodes[index]
        if node["flags"] & NodeFlag.USED and not node["flags"] & NodeFlag.CHAIN:
            pages[index] = _check_node(a, items, index, node)
    shared = sum(1 for listed in pages.values() if listed)
    assert ksm["pages_shared"] == shared
    assert ksm["pages_sharing"] == sum(map(len, pages.values())) - shared
    on_nodes = {item for listed in pages.values() for item in listed}
    stable = {int(i) for i in live if items[i]["flags"] & ItemFlag.STABLE}
    assert stable == on_nodes
    assert ksm["pages_unshared"] == np.count_nonzero(items["flags"] & ItemFlag.UNSTABLE)
    merging = np.bincount(items["mm"][sorted(on_nodes)], minlength=len(host.mms)) if on_nodes else None
    if merging is not None:
        assert (host.mms["nr_merging"] == merging[: len(host.mms)]).all()
    _check_stable(a, nodes, pages)
    _check_unstable(a, items)
    ksm_frames = np.flatnonzero(a["f_node"])
    assert all(int(nodes[a["f_node"][pfn]]["pfn"]) == pfn for pfn in ksm_frames)
    assert (a["f_flags"][ksm_frames] & Frame.KSM != 0).all()


def _check_lists(a, items, live: set[int]) -> None:
    seen = set()
    for number, mm in enumerate(a["mms"][: int(a["ctl"]["mms_used"][0])]):
        index, last, count = int(mm["rmap_list"]), -1, 0
        while index and number:
            item = items[index]
            assert item["mm"] == number and int(item["addr"]) > last and index in live
            last, count = int(item["addr"]), count + 1
            seen.add(index)
            index = int(item["next"])
        if number and mm["flags"] & 16:
            assert mm["nr_rmap_items"] == count
    assert seen == live


def _check_node(a, items, index: int, node) -> list[int]:
    """The items listed on a page's node, oldest last."""
    listed, before, item = [], 0, int(node["items"])
    while item:
        assert items[item]["node"] == index and items[item]["flags"] & ItemFlag.STABLE
        assert a["links"][item]["right"] == before
        listed.append(item)
        before, item = item, int(a["links"][item]["left"])
    assert len(listed) == node["count"] == len(set(listed))
    pfn = int(node["pfn"])
    if pfn >= 0:
        assert a["f_node"][pfn] == index and a["f_key"][pfn] == node["key"]
    return listed


def _walk(left, right, parent, colour, root: int) -> list[int]:
    """The records of a red-black tree in order, its rules checked on the way."""
    order: list[int] = []

    def down(at: int, above: int) -> int:
        if not at:
            return 1
        assert parent(at) == above
        if not colour(at):
            assert above and colour(above), "red under red, or a red root"
        black = down(left(at), at)
        order.append(at)
        assert down(right(at), at) == black, "unequal numbers of black records on two paths"
        return black + colour(at)

    down(root, 0)
    return order


def _check_stable(a, nodes, pages) -> None:
    seen, chains, dups = set(), 0, 0
    for tree in range(int(a["ctl"]["trees_used"][0])):
        order = _walk(
            lambda i: int(nodes[i]["left"]), lambda i: int(nodes[i]["right"]), lambda i: int(nodes[i]["parent"]),
            lambda i: int(nodes[i]["colour"]) & 1, int(a["trees"][tree, 0]),
        )
        keys = [int(nodes[i]["key"]) for i in order]
        assert keys == sorted(set(keys)), "contents in the stable tree are in order, each once"
        assert all(nodes[i]["tree"] == tree for i in order)
        for entry in order:
            if not nodes[entry]["flags"] & NodeFlag.CHAIN:
                seen.add(entry)
                continue
            chains += 1
            dup, before = int(nodes[entry]["dups"]), 0
            while dup:
                assert nodes[dup]["key"] == nodes[entry]["key"] and nodes[dup]["chain"] == entry
                assert nodes[dup]["flags"] & NodeFlag.DUP and nodes[dup]["dup_prev"] == before
                seen.add(dup)
                dups += 1
                before, dup = dup, int(nodes[dup]["dup_next"])
    waiting = int(a["ksm"]["migrate"][0])
    while waiting:
        seen.add(waiting)
        waiting = int(nodes[waiting]["left"])
    assert seen == set(pages)
    assert a["ksm"]["chains"][0] == chains and a["ksm"]["dups"][0] == dups


def _check_unstable(a, items) -> None:
    links = a["links"]
    if not a["cursor"]["slot"][0]:
        return  # between scans the tree is left over, and forgotten when the next scan starts
    seen = set()
    for tree in range(int(a["ctl"]["trees_used"][0])):
        seen |= set(_walk(
            lambda i: int(links[i]["left"]), lambda i: int(links[i]["right"]), lambda i: int(links[i]["parent"]),
            lambda i: int(links[i]["aux"]) & 1, int(a["trees"][tree, 1]),
        ))
    number = int(a["cursor"]["seqnr"][0]) & 255
    fresh = np.flatnonzero((items["flags"] & ItemFlag.UNSTABLE != 0) & (items["seq"] == number))
    assert seen == set(fresh.tolist())
