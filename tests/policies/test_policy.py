"""The interface of policies: what each answer does, what a wrong one gets, that nothing else is disturbed."""

import pickle

import hostcheck
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ksmcheck import check_ksm

from ksmwalk import Host
from ksmwalk.ksm import _asking
from ksmwalk.policies import POLICIES, ByDomain, Linux, Policy

PAGE = 4096
BASE = 1 << 32


def machine(*processes, smart_scan=0, **more):
    """A Host with these processes: contents of one marked area each."""
    host = Host(8192, **more)
    host.ksm.smart_scan = smart_scan
    for keys in processes:
        mm = host.new_mm()
        mm.mmap(len(keys) * PAGE, BASE)
        mm.write(BASE, np.array(keys, np.uint64))
        mm.madvise(BASE, len(keys) * PAGE, "mergeable")
    host.drain()
    return host


def scans(host, n):
    for _ in range(n):
        host.ksm.full_scan()
        check_ksm(host)


def items(host):
    return [mm.ksm_stat()["ksm_rmap_items"] for mm in host.mm_list]


# ---------------------------------------------------------------- areas


class Switch(Policy):
    answer = Policy.SCAN

    def area(self, area):
        return self.answer


def test_a_paused_area_keeps_its_items_and_what_is_merged():
    host = machine([7, 8, 9], [7, 8, 10])
    policy = host.ksm.policy = Switch()
    scans(host, 3)
    assert (host.ksm.pages_sharing, host.ksm.pages_unshared, items(host)) == (2, 2, [3, 3])
    policy.answer = Policy.PAUSE
    visited = host.ksm.pages_scanned
    scans(host, 300)  # more than the 8 bits of a scan's number
    assert host.ksm.pages_scanned == visited and items(host) == [3, 3]
    assert (host.ksm.pages_sharing, host.ksm.pages_unshared) == (2, 0)
    policy.answer = Policy.SCAN
    scans(host, 1)
    assert (host.ksm.pages_sharing, host.ksm.pages_unshared) == (2, 2)
    hostcheck.check(host)


def test_an_area_left_alone_loses_its_items_and_keeps_its_pages_merged():
    host = machine([7, 8], [7, 8])
    policy = host.ksm.policy = Switch()
    scans(host, 3)
    policy.answer = Policy.LEAVE
    scans(host, 1)
    assert items(host) == [0, 0] and host.ksm.pages_sharing == 0
    assert host.mm_list[0].read_pfns(BASE, 2).tolist() == host.mm_list[1].read_pfns(BASE, 2).tolist()


def test_an_area_is_asked_for_once_a_scan_however_many_batches_it_takes():
    asked = []

    class Counting(Policy):
        def area(self, area):
            asked.append((area.mm.number, area.start, area.end, area.pages))

        def after(self, area):
            asked.append((area.visited, area.merged, area.broken, area.changed))

    host = machine([7, 8, 9, 7], [7])
    host.ksm.policy = Counting()
    for _ in range(8):
        host.ksm.do_scan(1)
    assert asked == [
        (1, BASE, BASE + 4 * PAGE, 4), (4, 0, 0, 0), (2, BASE, BASE + PAGE, 1), (1, 0, 0, 0), (1, BASE, BASE + 4 * PAGE, 4),
    ]  # fmt: skip
    scans(host, 2)
    host.mm_list[0].write(BASE, 50)
    asked.clear()
    scans(host, 1)
    assert asked[1] == (4, 1, 1, 1)  # one of two sevens was copied by the write, and has another content now


# ---------------------------------------------------------------- pages


@given(st.lists(st.booleans(), min_size=6, max_size=6), st.integers(1, 6))
def test_pages_that_are_left_out_are_not_visited_and_keep_their_items(mask, batch):
    class Mask(Policy):
        on = False

        def pages(self, pages):
            assert len(pages) == 6 and pages.addr[0] == BASE and (pages.key == [7, 8, 9, 7, 0, 11]).all()
            return np.array(mask) if self.on else None

    host = machine([7, 8, 9, 7, 0, 11])
    policy = host.ksm.policy = Mask()
    scans(host, 2)
    policy.on = True
    before, full = host.ksm.pages_scanned, host.ksm.full_scans
    while host.ksm.full_scans == full:
        host.ksm.do_scan(batch)
        check_ksm(host)
    assert host.ksm.pages_scanned - before == sum(mask) and items(host) == [6]
    assert host.ksm.pages_sharing == 1
    # those that are left out leave the unstable tree; of two that are merged nothing is seen
    assert host.ksm.pages_unshared == sum(m for i, m in enumerate(mask) if i not in (0, 3))
    hostcheck.check(host)


def test_what_the_arrays_of_pages_say():
    seen = []

    class Looking(Policy):
        def pages(self, pages):
            seen.append({name: getattr(pages, name).tolist() for name in ("merged", "seen", "changed", "dirty", "accessed")})

    host = machine([7, 7, 9])
    host.ksm.policy = Looking()
    scans(host, 2)
    host.mm_list[0].write(BASE + 2 * PAGE, 10)
    scans(host, 1)
    assert seen[0]["seen"] == [False] * 3 and seen[1]["seen"] == [True] * 3
    assert seen[2]["merged"] == [True, True, False] and seen[2]["changed"] == [False, False, True]
    assert seen[0]["dirty"] == [True] * 3 and seen[2]["dirty"] == [False, False, True]
    assert seen[0]["accessed"] == [True] * 3


def test_pages_of_huge_pages_are_asked_for_table_by_table():
    sizes = []

    class Tables(Policy):
        def pages(self, pages):
            sizes.append((len(pages), int(pages.pfn[-1] - pages.pfn[0])))
            return np.arange(len(pages)) % 2 == 0

    host = Host(8192, thp="always")
    host.ksm.smart_scan = 0
    mm = host.new_mm()
    mm.mmap(1024 * PAGE, BASE)
    mm.write(BASE, np.arange(1, 1025, dtype=np.uint64))
    mm.madvise(BASE, 1024 * PAGE, "mergeable")
    host.drain()
    host.ksm.policy = Tables()
    scans(host, 2)
    assert sizes == [(512, 511)] * 4 and host.ksm.pages_scanned == 1024


# ---------------------------------------------------------------- actions


def after(action, keys, n):
    class Acting(Policy):
        def action(self, pages):
            return action

    host = machine(keys)
    host.ksm.policy = Acting()
    scans(host, n)
    c = host.ksm.counters()
    return c["pages_sharing"], c["ksm_zero_pages"], c["pages_unshared"], c["pages_scanned"]


def test_what_happens_to_pages():
    keys = [7, 7, 0, 9]
    assert after(Policy.COMPARE, keys, 1) == (0, 0, 0, 4) and after(Policy.COMPARE, keys, 2) == (1, 0, 2, 8)
    assert after(Policy.NOW, keys, 1) == (1, 0, 2, 4)
    assert after(Policy.ZERO_FIRST, keys, 1) == (0, 1, 0, 4) and after(Policy.ZERO_FIRST, keys, 2) == (1, 1, 1, 7)
    assert after(Policy.IGNORE, keys, 3) == (0, 0, 0, 12)
    each = np.array([Policy.NOW, Policy.NOW, Policy.ZERO_FIRST, Policy.IGNORE])
    assert after(each, keys, 1) == (1, 1, 0, 4)


# ---------------------------------------------------------------- processes


def test_the_order_of_processes_and_those_left_out():
    seen = []

    class Backwards(Policy):
        most = 3

        def order(self, mms):
            seen.append(mms.tolist())
            return mms[::-1][: self.most]

        def area(self, area):
            seen.append(area.mm.number)

    host = machine([7], [8], [7])
    policy = host.ksm.policy = Backwards()
    scans(host, 1)
    assert seen == [[1, 2, 3], 3, 2, 1]
    seen.clear()
    scans(host, 1)
    assert seen == [[3, 2, 1], 1, 2, 3] and host.ksm.pages_sharing == 1
    seen.clear()
    policy.most = 1
    scans(host, 1)
    assert seen == [[1, 2, 3], 3] and items(host) == [1, 1, 1] and host.ksm.pages_sharing == 1
    host.mm_list[0].exit()
    scans(host, 2)
    assert len(host.mm_list) == 2 and host.ksm.pages_sharing == 0
    hostcheck.check(host)


@given(st.data())
def test_any_order_keeps_the_list_whole(data):
    class Random(Policy):
        def order(self, mms):
            chosen = data.draw(st.permutations(mms.tolist()))
            return chosen[: data.draw(st.integers(0, len(chosen)))]

    host = machine([7, 8], [7], [8, 9], [9, 7])
    host.ksm.policy = Random()
    for step in range(12):
        host.ksm.do_scan(data.draw(st.integers(1, 4)))
        check_ksm(host)
        if step == 5:
            host.mm_list[data.draw(st.integers(0, 3))].exit()
        if step == 8:
            host.mm_list[0].fork()
    host.ksm.policy = None
    scans(host, 3)
    hostcheck.check(host)


def test_domains_are_asked_for_when_a_process_is_come_to():
    class Parity(Policy):
        def domain(self, mm):
            return mm.number % 2

    host = machine([7], [7], [7], [7])
    scans(host, 2)
    assert host.ksm.pages_sharing == 3
    host.ksm.policy = Parity()
    scans(host, 3)
    assert host.ksm.pages_sharing == 2 and [mm.domain for mm in host.mm_list] == [1, 0, 1, 0]
    hostcheck.check(host)


def test_a_policy_without_an_answer_leaves_domains_as_they_are():
    class Silent(Policy):
        def domain(self, mm):
            return None

    host = machine([7], [7], [7], [7])
    for mm in host.mm_list[2:]:
        mm.domain = 1
    host.ksm.policy = Silent()
    scans(host, 3)
    assert host.ksm.pages_sharing == 2 and [mm.domain for mm in host.mm_list] == [0, 0, 1, 1]


def test_without_its_policy_a_host_is_linux_again():
    host = machine([7], [7], [7], [7])
    host.mm_list[3].domain = 2
    host.ksm.policy = ByDomain()
    scans(host, 3)
    assert host.ksm.pages_sharing == 0
    child = host.mm_list[0].fork()
    host.ksm.policy = None
    assert [mm.domain for mm in host.mm_list] == [0, 0, 0, 2, 0] and child.domain == 0
    scans(host, 3)
    assert host.ksm.pages_sharing == 3
    hostcheck.check(host)


def test_a_policy_is_plugged_into_one_host():
    first, second = machine([7]), machine([7])
    policy = first.ksm.policy = Linux()
    with pytest.raises(ValueError, match="policy .*Linux.* is plugged into another Host: make one for each"):
        second.ksm.policy = policy
    assert second.ksm.policy is None
    first.ksm.policy = policy
    first.ksm.policy = None
    second.ksm.policy = policy


def test_pages_that_are_ignored_count_as_merged_where_they_are():
    seen = []

    class Ignoring(Policy):
        def action(self, pages):
            return np.full(len(pages), self.IGNORE)

        def after(self, area):
            seen.append((area.visited, area.merged))

    host = machine([7, 7, 8])
    scans(host, 3)
    host.ksm.policy = Ignoring()
    scans(host, 1)
    assert seen == [(3, 2)]


def test_trees_that_somebody_holds_are_kept_up_with_a_policy():
    class Looking(Policy):
        def area(self, area):
            return None

    hosts = [machine(list(range(1, 40))) for _ in range(2)]
    for host, policy in zip(hosts, (None, Looking()), strict=True):
        host.ksm.policy = policy
        scans(host, 1)
    held = [host.world.arrays["links"] for host in hosts]
    for host in hosts:
        host.ksm.do_scan(25)
    assert held[0].tobytes() == held[1].tobytes()


def test_pace():
    class Slow(Policy):
        answer = (2, 500)

        def pace(self, ksm):
            return self.answer

    host = machine([7, 8, 9])
    assert host.ksm.pace() == (100, 20)
    policy = host.ksm.policy = Slow()
    assert host.ksm.pace() == (2, 500) and host.ksm.do_scan() == 2
    policy.answer = None
    assert host.ksm.pace() == (100, 20)
    for wrong, error in (((1,), TypeError), ((-1, 0), ValueError), ((1, "x"), TypeError), (7, TypeError)):
        policy.answer = wrong
        with pytest.raises(error, match=r"pace\(\)"):
            host.ksm.do_scan()


# ---------------------------------------------------------------- what is wrong


class Odd(Policy):
    """Answers what it is told to."""

    def __init__(self, method, answer):
        setattr(self, "_" + method, answer)

    def order(self, mms):
        return getattr(self, "_order", None)

    def domain(self, mm):
        return getattr(self, "_domain", None)

    def area(self, area):
        return getattr(self, "_area", None)

    def pages(self, pages):
        return getattr(self, "_pages", None)

    def action(self, pages):
        return getattr(self, "_action", None)


@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        ("order", [1, 1], r"order\(\) answered 1: not on the list, or twice"),
        ("order", [9], r"order\(\) answered 9"), ("order", [0.5], r"order\(\) answered"), ("order", 3, r"order\(\) answered"),
        ("domain", -1, r"domain\(\) answered -1: must be from 0"), ("domain", 1 << 16, r"domain\(\) answered 65536"),
        ("domain", "web", r"domain\(\) answered 'web'"), ("domain", True, r"domain\(\) answered True"),
        ("area", 3, r"area\(\) answered 3: must be SCAN, PAUSE or LEAVE"), ("area", -5002, r"area\(\) answered -5002"),
        ("domain", np.True_, r"domain\(\) answered"), ("domain", np.zeros(2, int), r"domain\(\) answered"),
        ("area", np.int64(3), r"area\(\) answered"), ("area", np.True_, r"area\(\) answered"), ("area", 1.0, r"area\(\) answered"),
        ("area", True, r"area\(\) answered True"), ("area", "scan", r"area\(\) answered 'scan'"),
        ("pages", [True], r"pages\(\) answered bool of shape \(1,\): must be a bool for each of the 2"),
        ("pages", [0, 1], r"pages\(\) answered int64"), ("pages", True, r"pages\(\) answered bool of shape \(\)"),
        ("action", 0, r"action\(\) answered 0: must be COMPARE"), ("action", [1, 5], r"action\(\) answered"),
        ("action", [1], r"action\(\) answered"), ("action", "now", r"action\(\) answered 'now'"),
    ],
)  # fmt: skip
def test_a_wrong_answer_is_named_and_the_host_stays_whole(method, answer, message):
    host = machine([7, 8], [7, 8])
    host.ksm.policy = Odd(method, answer)
    for _ in range(2):
        with pytest.raises((ValueError, TypeError), match=message):
            host.ksm.full_scan()
        check_ksm(host)
    host.ksm.policy = None
    scans(host, 3)
    assert host.ksm.pages_sharing == 2
    hostcheck.check(host)


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, np.array])
def test_numbers_of_any_type_are_answers(kind):
    for answer, items_left in ((Policy.SCAN, [2, 1]), (Policy.PAUSE, [0, 0])):
        host = machine([7, 8], [7])
        host.ksm.policy = Odd("area", kind(answer))
        scans(host, 2)
        assert items(host) == items_left
    host = machine([7, 8], [7])
    policy = host.ksm.policy = Odd("domain", kind(3))
    policy._action = kind(Policy.COMPARE)
    scans(host, 3)
    assert host.ksm.pages_sharing == 1 and {mm.domain for mm in host.mm_list} == {3}


def test_what_a_method_raises_comes_out():
    class Failing(Policy):
        def __init__(self, method):
            def fail(*_):
                raise LookupError(method)

            self.fail = fail

        begin = order = domain = area = pages = action = after = lambda self, *args: self.fail()

    host = machine([7, 8], [7, 8])
    host.ksm.policy = Failing("begin")
    with pytest.raises(LookupError, match="begin"):
        host.ksm.full_scan()
    host.ksm.policy = Linux()
    scans(host, 3)
    assert host.ksm.pages_sharing == 2


@pytest.mark.parametrize("what", ["write", "scan", "domain", "mmap", "tunable", "strategy", "thp"])
def test_a_policy_may_look_but_change_nothing(what):
    class Meddling(Policy):
        def area(self, area):
            mm = area.mm
            {
                "write": lambda: mm.write(area.start, 5), "scan": lambda: mm.host.ksm.do_scan(1),
                "domain": lambda: setattr(mm, "domain", 3), "mmap": lambda: mm.mmap(PAGE),
                "tunable": lambda: setattr(mm.host.ksm, "pages_to_scan", 7), "thp": lambda: setattr(mm.host, "thp", "always"),
                "strategy": lambda: setattr(mm.host.ksm.scan, "strategy", "per-address"),
            }[what]()  # fmt: skip

    host = machine([7, 7], [7, 8])
    scans(host, 2)
    host.ksm.policy = Meddling()
    with pytest.raises(RuntimeError, match=r"changed the Host|can't let the scan go on"):
        host.ksm.full_scan()
    check_ksm(host)
    host.ksm.policy = None
    scans(host, 3)
    hostcheck.check(host)


def test_only_policies_are_plugged_in():
    host = machine([7])
    for wrong in (Linux, "linux", 3, object()):
        with pytest.raises(TypeError, match="policy .*: must be an object of a class made from Policy, or None"):
            host.ksm.policy = wrong
    assert host.ksm.policy is None
    policy = host.ksm.policy = Linux()
    assert host.ksm.policy is policy
    for cls in (_asking.Area, _asking.TablePages):
        with pytest.raises(TypeError):
            cls()


def test_a_policy_is_not_kept_with_its_host(tmp_path):
    host = machine([7, 8], [7])
    host.ksm.policy = Linux()
    host.ksm.do_scan(1)
    host.save(tmp_path / "host")
    for copy in (pickle.loads(pickle.dumps(host)), Host.load(tmp_path / "host")):
        assert copy.ksm.policy is None
        scans(copy, 3)
        assert copy.ksm.pages_sharing == 1


def test_pages_are_of_their_call_but_stay_readable():
    kept = []

    class Keeping(Policy):
        def pages(self, pages):
            kept.append(pages)

        def area(self, area):
            kept.append(area)

    host = machine([7, 8])
    host.ksm.policy = Keeping()
    scans(host, 1)
    area, pages = kept[:2]
    assert area.start == BASE and pages.area.serial == area.serial and pages.key.tolist() == [7, 8]
    assert "2 pages" in repr(area) and "2 of" in repr(pages)
    number = area.serial
    del host
    with pytest.raises(ReferenceError):
        area.mm  # noqa: B018
    assert area.serial == number


def test_every_shipped_policy_has_a_name_and_a_source():
    assert len(POLICIES) == 6
    for name, policy in POLICIES.items():
        assert policy.name == name and "Source:" in policy.__doc__ and issubclass(policy, Policy)


@pytest.mark.parametrize("name", POLICIES)
@given(number=st.integers(0, 10**6), batch=st.integers(1, 50))
def test_every_shipped_policy_leaves_a_host_whole(name, number, batch):
    random = np.random.default_rng(number)
    host = machine(*(random.integers(0, 12, random.integers(1, 40)) for _ in range(5)))
    host.ksm.policy = POLICIES[name]()
    for _ in range(40):
        host.ksm.do_scan(batch)
        check_ksm(host)
        mms = host.mm_list
        mm = mms[random.integers(len(mms))]
        match random.integers(6):
            case 0:
                mm.write(BASE, int(random.integers(0, 12)))
            case 1 if len(mms) > 2:
                mm.exit()
            case 2 if len(mms) < 8:
                mm.fork()
            case 3:
                mm.munmap(BASE + PAGE * int(random.integers(1, 20)), PAGE)
    host.ksm.policy = None
    scans(host, 2)
    hostcheck.check(host)
