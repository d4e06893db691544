"""Memory is loaded as the kernel it is of; what no kernel that was seen fits is said; a lying bit is not believed."""

import os

import numpy as np
import pytest
from memories import Area, memory, process

from ksmwalk import kernels
from ksmwalk.estimates.estimate import estimate
from ksmwalk.estimates.why import explain_pages
from ksmwalk.proc import frames
from ksmwalk.sources import loading, reading
from ksmwalk.sources.memory import kernel_of, load_memory


def of(release, version=""):
    what = memory(process(1, Area([5, 5, 6, 0])), process(2, Area([5, 7, 0, 6])))
    what.machine |= {"release": release, "version": version}
    return what


@pytest.mark.parametrize(
    ("release", "version", "answer", "said"),
    [
        ("6.1.0-56-cloud-amd64", "", "6.1.192", ""),
        ("6.12.43+deb13-amd64", "#1 SMP Debian 6.12.43-1", "6.12.43", ""),
        ("6.6.30-generic", "", "6.1.170", "answered as 6.1.170"),
        ("4.4.0-21-generic", "", kernels.DEFAULT, "none like it was seen"),
        ("", "", kernels.DEFAULT, ""),
    ],
)
def test_a_capture_is_loaded_as_its_kernel(release, version, answer, said):
    what = of(release, version)
    loaded = load_memory(what)
    assert loaded.host.kernel.version == answer == kernel_of(what)[0].version
    assert any(said in note for note in loaded.notes) if said else not any("answered" in note for note in loaded.notes)


@pytest.mark.parametrize("version", list(kernels.PROFILES))
def test_an_estimate_and_why_on_every_kernel(version):
    result = estimate(of(version))
    assert result.expected.counters["pages_sharing"] + result.expected.counters["ksm_zero_pages"] >= 3
    assert explain_pages(of(version)).reasons


def test_a_nearest_kernel_is_said_in_the_estimate_and_in_why():
    assert any("answered as 6.1.170" in note for note in estimate(of("6.6.30")).notes)
    assert any("answered as 6.1.170" in note for note in explain_pages(of("6.6.30")).notes)


def test_the_bit_is_not_believed_where_it_lies(monkeypatch):
    monkeypatch.setattr(reading, "bits_lie", lambda: True)
    here = reading.capture(os.getpid())
    if here.frame_flags is None:
        pytest.skip("only root is shown frames")
    assert not np.any(here.frame_flags & np.uint64(frames.Kpf.KSM))
    assert frames.LYING in here.notes


def test_a_page_of_our_own_tells_whether_the_bit_lies():
    here = frames.bits_lie()
    if here is None:
        pytest.skip("only root is shown frames")
    found = kernels.of_machine()
    if found.exact:
        assert here == bool(found.profile.switches & kernels.Switch.BITS_LIE)


def test_a_live_process_is_loaded_as_this_machines_kernel():
    image = loading.process(os.getpid())
    assert image.host.kernel.version == kernels.here()[0].version
