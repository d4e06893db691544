"""A Host as other kernels: which profile answers, what it shows, what its calls refuse."""

import errno
import pickle
import warnings

import numpy as np
import pytest

from ksmwalk import Host, kernels
from ksmwalk.layout import Strategy, Switch

P = 4096


def refused(call, *args):
    with pytest.raises(OSError) as caught:
        call(*args)
    return caught.value.errno


def marked(host, keys):
    mm = host.new_mm()
    addr = mm.mmap(len(keys) * P)
    mm.write(addr, keys)
    mm.madvise(addr, len(keys) * P, "mergeable")
    return mm, addr


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("release", "version", "answer"),
    [
        ("5.10.0-32-cloud-amd64", "", "5.10.223"),
        ("6.1.0-56-cloud-amd64", "", "6.1.192"),
        ("6.1.0-44-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.170-1 (2026-05-01)", "6.1.170"),
        ("6.12.43+deb13-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.12.43-1 (2025-08-27)", "6.12.43"),
        ("6.12.117+deb12-cloud-amd64", "", "6.12.117"),
        ("7.3.4+deb13-cloud-amd64", "", "7.3.4"),
        ("6.18.44-fc-v857", "", "6.18.44"),
        ("6.17.8", "", "6.17.8"),
    ],
)
def test_a_kernel_that_was_seen_is_known_by_its_full_version(release, version, answer):
    found = kernels.find(release, version)
    assert (found.profile.version, found.exact, found.note) == (answer, True, "")


@pytest.mark.parametrize(
    ("version", "answer"),
    [
        ("6.12.50", "6.12.43"), ("6.12.100", "6.12.117"), ("6.12.200", "6.12.117"),  # within a series by patches
        ("5.15.1", "5.10.223"), ("6.2", "6.1.170"), ("6.13.4", "6.12.43"), ("6.15", "6.16.12"), ("6.18.1", "6.18.15"),
        ("7.3.90", "7.3.4"), ("5.10.1", "5.10.223"), ("6.6.87", "6.1.170"),
    ],
)  # fmt: skip
def test_what_lies_between_is_answered_with_the_nearest_and_says_so(version, answer):
    found = kernels.find(version)
    assert found.profile.version == answer and not found.exact
    assert version in found.note and answer in found.note
    with pytest.warns(UserWarning, match=f"answered as {answer}"):
        assert Host(64, kernel=version).kernel.version == answer


@pytest.mark.parametrize("release", ["6.6.87.2-microsoft-standard-WSL2", "6.6.87_1", "6.6.87 (tainted)", "6.6.87-rc1+"])
def test_what_builders_add_says_nothing_of_the_version(release):
    assert kernels.find(release).profile.version == "6.1.170"


@pytest.mark.parametrize("release", ["6.18.44foo", "6.1.192;x", "6.18.44\0", "6.18,44", "\u0666.\u0661.\u0661", "6.1.192\n"])
def test_what_only_begins_like_a_version_is_none(release):
    with pytest.raises(ValueError, match="no version"):
        kernels.find(release)
    with pytest.raises(TypeError, match="version None: must be a text"):
        kernels.find("6.1.192", None)


@pytest.mark.parametrize("version", ["4.19.1", "8.0", "7.4.0", "", "six", "6", "6.x", "-6.1.1", "6.1.192.3", "9999.1"])
def test_what_is_not_known_is_refused_by_name_with_those_that_are(version):
    with pytest.raises(ValueError, match="known are 5.10.223, .*, 7.3.4") as caught:
        Host(64, kernel=version)
    assert repr(version)[1:-1].split("x")[0] in str(caught.value)


def test_a_host_keeps_its_kernel(tmp_path):
    for version in kernels.PROFILES:
        host = Host(64, kernel=version)
        assert host.kernel is kernels.PROFILES[version]
        host.ksm  # noqa: B018 # its record is set up
        host.save(tmp_path / version)
        assert Host.load(tmp_path / version).kernel.version == version
        assert pickle.loads(pickle.dumps(host)).kernel.version == version


def test_every_switch_has_its_sentence_and_every_profile_its_source():
    assert set(kernels.SWITCHES) == set(Switch)
    assert all(one.seen and len(one.differences) == one.switches.bit_count() for one in kernels.PROFILES.values())
    assert len({one.bits for one in kernels.PROFILES.values()}) == len(kernels.PROFILES)
    assert all(one.bits >> kernels.BITS == 0 for one in kernels.PROFILES.values())


def test_the_default_is_this_machines_and_differs_in_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        host = Host(64)
    assert host.kernel.version == kernels.DEFAULT and not host.kernel.switches
    assert host.ksm.scan.strategy == "range"


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("version", ["5.10.223", "6.1.170", "6.1.192"])
def test_files_that_are_not_there(version):
    host = Host(64, kernel=version)
    ksm = host.ksm
    for name in ("smart_scan", "advisor_mode", "advisor_target_scan_time"):
        assert not ksm.has(name)
        assert refused(ksm.write, name, 1) == errno.ENOENT
        assert refused(getattr, ksm, name) == errno.ENOENT
    assert not {"pages_scanned", "pages_skipped", "ksm_zero_pages", "general_profit"} & set(ksm.counters())
    assert {"pages_shared", "full_scans"} <= set(ksm.counters()) and not ksm.skips_pages
    assert "smart_scan" not in ksm._repr_html_()
    assert len(ksm.run_until(limit=1)) == 0


@pytest.mark.parametrize(
    ("version", "shown"),
    [("5.10.223", 0), ("6.1.192", 2), ("6.12.43", 4), ("6.12.117", 4), ("6.16.12", 6), ("6.18.44", 6), ("7.3.4", 6)],
)
def test_what_a_process_shows(version, shown):
    mm, _ = marked(Host(64, kernel=version), [1, 1])
    assert len(mm.ksm_stat()) == shown


def test_what_is_counted_in_vmstat():
    assert Host(64, kernel="5.10.223").vmstat() == {}
    assert Host(64, kernel="6.1.192").vmstat() == {"ksm_swpin_copy": 0, "cow_ksm": 0}


# ---------------------------------------------------------------- calls


def test_what_recordings_can_not_tell_of_kernels():
    """How long scans and unmerging take, and what /proc/kpageflags shows: as it was seen."""
    def those(switch):
        return {version for version, profile in kernels.PROFILES.items() if profile.switches & switch}

    assert those(Switch.SCAN_EACH) == {"5.10.223", "6.12.43", "6.16.12", "6.17.8"}
    assert those(Switch.UNMERGE_RANGE) == {"6.19.14", "7.0.13", "7.1.13", "7.2.12", "7.2.13", "7.3.4"}
    assert those(Switch.BITS_LIE) == {
        "6.12.43", "6.12.117", "6.16.12", "6.17.8", "6.17.13", "6.18.15", "6.19.14", "7.0.13",
    }  # fmt: skip


def test_calls_that_some_kernels_refuse():
    old, new = Host(4096, kernel="5.10.223"), Host(4096)
    for host, want in ((old, errno.EINVAL), (new, 0)):
        mm, addr = marked(host, [1, 2])
        if want:
            assert refused(mm.prctl_merge, True) == want
        else:
            mm.prctl_merge(True)
        big = mm.mmap(1024 * P)
        mm.write(big, list(range(1024)))
        if want:
            assert refused(mm.madvise, big, 1024 * P, "collapse") == want
        else:
            mm.madvise(big, 1024 * P, "collapse")


@pytest.mark.parametrize(("version", "others", "own", "absent"), [
    ("5.10.223", {"cold", "pageout"}, {"cold", "pageout"}, {"populate_read", "populate_write", "dontneed_locked", "guard_install"}),
    ("6.1.192", {"cold", "pageout", "willneed"}, {"cold", "pageout", "willneed"}, {"guard_install"}),
    ("6.12.117", {"cold", "pageout", "willneed"}, {"cold", "pageout", "willneed"}, {"guard_install"}),
    ("6.16.12", {"cold", "pageout", "willneed"}, None, set()),
])  # fmt: skip
def test_advice_there_is_and_for_whom(version, others, own, absent):
    host = Host(256, kernel=version)
    mm, other = host.new_mm(), host.new_mm()
    addr = mm.mmap(4 * P)
    every = ("cold", "pageout", "willneed", "dontneed", "free", "mergeable", "populate_read", "populate_write", "dontneed_locked",
             "guard_install")  # fmt: skip
    for advice in every:
        answers = (
            fails(mm.madvise, addr, 4 * P, advice),
            fails(mm.process_madvise, mm, addr, 4 * P, advice),
            fails(other.process_madvise, mm, addr, 4 * P, advice),
        )
        there = advice not in absent
        want = there, there and (own is None or advice in own), there and advice in others
        assert tuple(answer != errno.EINVAL for answer in answers) == want, advice


def fails(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except OSError as error:
        return error.errno
    return 0


def test_userfaultfd_of_old_kernels():
    for version, old in (("5.10.223", True), ("6.1.192", True), ("6.18.44", False)):
        host = Host(256, kernel=version)
        mm = host.new_mm()
        addr, shared = mm.mmap(4 * P), mm.mmap(2 * P, shared=True)
        mm.write(addr, [1, 2])
        assert fails(mm.uffd_register, addr, 4 * P, wp=True, asynchronous=True) == (errno.EINVAL if old else 0)
        mm.uffd_register(addr, 4 * P, wp=True)
        mm.uffd_protect(addr, 4 * P)
        assert len(mm.absent_entries()) == (0 if old else 2)
        assert fails(mm.uffd_move, addr + 2 * P, addr, P) != 0
        assert fails(mm.uffd_register, shared, 2 * P, wp=True) == (errno.EINVAL if version == "5.10.223" else 0)
        kept = fails(mm.mremap, shared, 2 * P, 2 * P, dontunmap=True)
        assert kept == (errno.EINVAL if version == "5.10.223" else 0)


@pytest.mark.parametrize(("version", "fails"), [("6.16.12", True), ("6.17.13", False), ("6.18.44", False)])
def test_several_areas_move_from_6_17_on(version, fails):
    mm, addr = marked(Host(4096, kernel=version), [1, 1, 1, 2])
    mm.mprotect(addr + 2 * P, 2 * P, "r")
    to = addr + 64 * P
    if fails:
        assert refused(mm.mremap, addr, 4 * P, 4 * P, to) == errno.EFAULT
        assert mm.read_keys(addr, 4).tolist() == [1, 1, 1, 2]
        mm.mremap(addr, 2 * P, 2 * P, to)
        addr = to
        assert mm.read_keys(to, 2).tolist() == [1, 1]
    else:
        mm.mremap(addr, 4 * P, 4 * P, to)
        assert mm.read_keys(to, 4).tolist() == [1, 1, 1, 2]


@pytest.mark.parametrize(("version", "fails"), [("7.0.13", False), ("7.1.13", True), ("7.3.4", True)])
def test_a_debugger_and_memory_without_access(version, fails):
    mm, addr = marked(Host(4096, kernel=version), [1, 1])
    mm.mprotect(addr, P, "none")
    if fails:
        assert refused(mm.poke, addr, 5) == errno.EFAULT
    else:
        mm.poke(addr, 5)
    mm.mprotect(addr, 2 * P, "r")
    assert int(mm.read_keys(addr, 1)[0]) == (1 if fails else 5)
    if fails:
        assert refused(mm.poke, addr + P, 6) == errno.EFAULT  # nor where memory is read-only
    else:
        mm.poke(addr + P, 6)
    assert int(mm.read_keys(addr + P, 1)[0]) == (1 if fails else 6)


# ---------------------------------------------------------------- cost


@pytest.mark.parametrize("version", list(kernels.PROFILES))
def test_how_it_scans_and_unmerges_is_counted(version):
    profile = kernels.PROFILES[version]
    host = Host(4096, kernel=version)
    mm = host.new_mm()
    addr = mm.mmap(1 << 30, noreserve=True)
    mm.write(addr, 1)
    mm.madvise(addr, 1 << 30, "mergeable")
    host.ksm.full_scan()
    each = bool(profile.switches & Switch.SCAN_EACH)
    assert host.ksm.scan.strategy == ("per-address" if each else "range")
    assert (host.ksm.scan.work["lookups"] >= 1 << 18) == each
    host.ksm.scan.reset_work()
    mm.madvise(addr, 1 << 30, "unmergeable")
    ranges = bool(profile.switches & Switch.UNMERGE_RANGE) or version == kernels.DEFAULT
    assert (host.ksm.scan.work["lookups"] < 100) == ranges
    assert (host.world.arrays["cursor"]["strategy"][0] == Strategy.PER_ADDRESS) == each


# ---------------------------------------------------------------- trees that are built late


@pytest.mark.parametrize("version", ["5.10.223", "6.1.192", "6.12.43", "7.3.4"])
@pytest.mark.parametrize("seed", range(4))
def test_trees_built_late_answer_like_trees(version, seed):
    """The same random life on two Hosts, one of which builds every tree at once: all counters and pages agree."""
    from ksmwalk.ksm import _engine

    def life(only):
        rng = np.random.default_rng(seed)
        host = Host(1 << 13, kernel=version)
        ksm, told = host.ksm, []
        _engine.py_trees(host.world, only)
        ksm.max_page_sharing = int(rng.integers(2, 6))
        ksm.stable_node_chains_prune_millisecs = int(rng.choice([0, 50, 4_000_000_000]))
        ksm.use_zero_pages = int(rng.integers(0, 2))
        mms = [marked(host, rng.integers(0, 12, 60).tolist()) for _ in range(3)]
        for _ in range(60):
            mm, addr = mms[rng.integers(len(mms))]
            at, n = int(rng.integers(0, 50)), int(rng.integers(1, 10))
            match int(rng.integers(0, 7)):
                case 0:
                    mm.mprotect(addr, 60 * P, "rw")
                    mm.write(addr + at * P, rng.integers(0, 12, n).tolist())
                case 1:
                    mm.mprotect(addr + at * P, n * P, ["none", "r", "rw"][rng.integers(3)])
                case 2:
                    mm.madvise(addr + at * P, n * P, "dontneed")
                case 3 if len(mms) < 8:
                    mms.append((mm.fork(), addr))
                case 4:
                    ksm.now_ms += 30
                case _:
                    ksm.do_scan(int(rng.integers(1, 200)))
            told.append((ksm._counted(), [sorted(one.ksm_stat().items()) for one, _ in mms]))
        frames = [one.read_pfns(a, 60).tolist() for one, a in mms]
        again = pickle.loads(pickle.dumps(host))  # looks all links through
        again.ksm.full_scan()
        ksm.full_scan()
        assert again.ksm.counters() == ksm.counters()
        return told, frames

    assert life(False) == life(True)
