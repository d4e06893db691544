"""What one version saved, all later ones load; the records change only with the version."""

import hashlib
import shutil
from pathlib import Path

import hostcheck
import ksmcheck

from ksmwalk import Host, layout
from ksmwalk.host import saved

DATA = Path(__file__).parents[1] / "data"
#: version of saved Hosts -> digest of the records and arrays it holds
DIGESTS = {1: "3cf46f9c0a5dea2f", 2: "e2992f7cbada1b60", 3: "fc3d5bb9667bc4c8"}


def digest() -> str:
    said = [(name, array.dtype.descr, array.shape) for name, array in layout.ARRAYS.items()]
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def test_the_records_change_with_the_version_of_saved_hosts():
    assert DIGESTS[saved.VERSION] == digest(), (
        "records or arrays of layout/_layout.h changed: raise VERSION in host/saved.py, teach it to read the version"
        " before, keep a Host saved by that one in tests/data, and add the new digest here"
    )


def test_a_host_that_version_1_saved_goes_on(tmp_path):
    shutil.unpack_archive(DATA / "host-version-1.zip", tmp_path)
    host = Host.load(tmp_path)
    counters = host.ksm.counters()
    assert (counters["full_scans"], counters["pages_shared"], counters["pages_sharing"]) == (3, 49, 61)
    hostcheck.check(host)
    ksmcheck.check_ksm(host)
    a, b, child = host.mm_list
    assert a.read_keys(1 << 30, 40).tolist() == b.read_keys(1 << 30, 40).tolist() == [i // 3 for i in range(40)]
    child.exit()
    b.write(1 << 30, 77)
    host.ksm.run_until()
    hostcheck.check(host)
    ksmcheck.check_ksm(host)
