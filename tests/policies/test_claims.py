"""Each shipped policy shows what its authors claim where it should, and loses where it should: `claims.py` has both."""

import claims
import numpy as np
from ksmcheck import check_ksm

from ksmwalk.estimates.comparing import follow
from ksmwalk.policies import BeforeThePatch, ByDomain, OnRequest, Sampling, SkipHot


def run(scenario, policy=None, scans=None):
    host = scenario.build()
    rows = follow(host, policy, scans=scans or scenario.scans, write=lambda host, scan, seconds: scenario.write(host, scan))
    check_ksm(host)
    return host, rows


def looked_at(policy, host):
    """Entries and ptes read."""
    host.ksm.policy = policy
    for _ in range(3):
        host.ksm.full_scan()
    work = host.ksm.scan.work
    return sum(work.get(name, 0) for name in ("pgd", "p4d", "pud", "pmd", "pte"))


# ---------------------------------------------------------------- the scan before the patch


def test_the_old_scan_looks_at_every_address_of_a_hole():
    old, new = claims.sparse(), claims.sparse()
    ratio = looked_at(BeforeThePatch(), old) / looked_at(None, new)
    assert ratio > claims.SPARSE_LEAST
    assert old.ksm.pages_sharing == new.ksm.pages_sharing == 1


def test_without_holes_the_new_scan_gains_nothing():
    _, old = run(claims.DENSE, BeforeThePatch())
    _, new = run(claims.DENSE)
    assert np.array_equal(old["freed"], new["freed"]) and np.array_equal(old["examined"], new["examined"])
    old_host, new_host = claims.DENSE.build(), claims.DENSE.build()
    assert 0.9 < looked_at(BeforeThePatch(), old_host) / looked_at(None, new_host) < 1.1


# ---------------------------------------------------------------- by domain


def tenant(mm):
    return (mm.number - 1) // claims.MACHINES


def mapped_by_several_tenants(host):
    frames = [set(mm.read_pfns(claims.BASE, 500).tolist()) for mm in host.mm_list]
    tenants = [set().union(*frames[i : i + claims.MACHINES]) for i in range(0, len(frames), claims.MACHINES)]
    return len(set.union(*(a & b for i, a in enumerate(tenants) for b in tenants[:i])))


def largest_tree(host):
    nodes = host.world.arrays["nodes"]
    return int(np.bincount(nodes["tree"][nodes["pfn"] > 0]).max())


def test_domains_share_nothing_have_smaller_trees_and_free_less():
    together, linux = run(claims.TENANTED)
    apart, domains = run(claims.TENANTED, ByDomain(tenant))
    assert (mapped_by_several_tenants(together), mapped_by_several_tenants(apart)) == (100, 0)
    assert largest_tree(apart) < largest_tree(together) / 2
    assert linux["freed"][-1] == claims.TENANTED_FREED_LINUX
    assert domains["freed"][-1] == claims.TENANTED_FREED_DOMAINS


def test_a_tenant_with_one_machine_frees_nothing():
    assert run(claims.LONELY)[1]["freed"][-1] == 200 * (claims.TENANTS - 1)
    assert run(claims.LONELY, ByDomain(tenant_of_one))[1]["freed"][-1] == 0


def tenant_of_one(mm):
    return mm.number


# ---------------------------------------------------------------- sampling


def test_sampling_frees_more_with_the_same_cpu_time():
    _, sampled = run(claims.DISTILLED, Sampling())
    _, linux = run(claims.DISTILLED)
    enough = 0.9 * claims.RICH_FREED
    assert sampled["freed"].max() >= enough and linux["freed"][-1] == claims.RICH_FREED
    spent = float(sampled["cpu_seconds"][np.argmax(sampled["freed"] >= enough)])
    by_then = linux["freed"][linux["cpu_seconds"] <= spent].max(initial=0)
    assert by_then < enough / 3
    linux_takes = float(linux["cpu_seconds"][np.argmax(linux["freed"] >= enough)])
    assert claims.DISTILLED_LEAST < linux_takes / spent < claims.DISTILLED_MOST


def test_sampling_does_not_see_what_is_spread_thinly():
    _, sampled = run(claims.THIN, Sampling(), scans=150)
    _, linux = run(claims.THIN)
    done = np.argmax(linux["freed"] == claims.THIN_FREED)
    assert linux["freed"][done] == claims.THIN_FREED
    same = sampled[sampled["cpu_seconds"] <= linux["cpu_seconds"][done]]
    assert 0 < len(same) and same["freed"].max() < claims.THIN_FREED / 2


# ---------------------------------------------------------------- skipping hot areas


def test_hot_areas_skipped_are_fewer_merges_broken_and_less_cpu_time():
    host, skipping = run(claims.HEATED, SkipHot())
    _, linux = run(claims.HEATED)
    assert linux["broken"][-1] > 1000
    assert skipping["broken"][-1] <= claims.HEATED_BROKEN * linux["broken"][-1]
    assert skipping["cpu_seconds"][-1] <= claims.HEATED_CPU * linux["cpu_seconds"][-1]
    assert skipping["freed"][-1] >= claims.HEATED_FREED
    # paused areas keep their items
    assert all(mm.ksm_stat()["ksm_rmap_items"] == (claims.QUIET + claims.HOT) * 512 for mm in host.mm_list)


def test_what_was_hot_once_is_freed_later():
    _, skipping = run(claims.COOLED, SkipHot())
    _, linux = run(claims.COOLED)
    assert linux["freed"][-1] == claims.COOLED_FREED
    assert skipping["freed"][-1] < 2 / 3 * claims.COOLED_FREED


# ---------------------------------------------------------------- on request


def test_a_request_frees_at_once_what_linux_frees_in_the_end():
    _, asked = run(claims.ASKED, OnRequest())
    _, linux = run(claims.ASKED)
    assert asked["freed"][0] == claims.ASKED_FREED == linux["freed"][-1] and linux["freed"][0] == 0
    assert asked["examined"][-1] == asked["examined"][0] == 3 * 1024
    assert linux["cpu_seconds"][-1] >= claims.ASKED_CPU * asked["cpu_seconds"][-1]


def test_a_request_merges_the_range_that_it_names():
    host = claims.ASKED.build()
    policy = host.ksm.policy = OnRequest(at_first=False)
    host.ksm.full_scan()
    assert host.ksm.pages_sharing == host.ksm.pages_scanned == 0
    a, b, _ = host.mm_list
    assert policy.request(host.ksm, [(mm, claims.BASE, 100 * claims.PAGE) for mm in (a, b)]) == 200
    assert host.ksm.pages_sharing == 100
    check_ksm(host)
    assert policy.request(host.ksm, [(a, claims.BASE + 1000 * claims.PAGE, 10 * claims.PAGE)]) == 10
    assert host.ksm.pages_sharing == 100


def test_what_becomes_alike_after_the_request_is_not_merged():
    assert run(claims.ALIKE_LATER, OnRequest())[1]["freed"][-1] == 0
    assert run(claims.ALIKE_LATER)[1]["freed"][-1] == claims.ASKED_FREED
