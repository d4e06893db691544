"""`ksmwalk probe`: each known kernel is told by what it answers; this machine's by itself."""

import json
import os

import pytest

from ksmwalk import kernels
from ksmwalk.commands.cli import main
from ksmwalk.kernel.probe import Probe, decide
from ksmwalk.kernel.telltales import TELLTALES
from ksmwalk.layout import Switch
from ksmwalk.scenarios.records import COUNTERS, STATS
from ksmwalk.scenarios.replay import replay

#: those that are not told by an answer to a scenario
OTHERWISE = Switch.SCAN_EACH | Switch.UNMERGE_RANGE | Switch.NO_SMART_SCAN | Switch.NO_MERGE_ANY | Switch.BITS_LIE


def test_every_switch_has_a_telltale_or_is_looked_at_otherwise():
    assert Switch(sum(TELLTALES)) | OTHERWISE == Switch(sum(Switch))
    assert not Switch(sum(TELLTALES)) & OTHERWISE
    assert all(len(scenario.ops) < 16 for scenario in TELLTALES.values())


def hidden(profile):
    """What a kernel does not show, as names of fields."""
    out = {name for name in COUNTERS if name in profile.missing} | {name for name in STATS if name not in profile.stats}
    return out if profile.events else out | {"t"}


@pytest.mark.parametrize(
    ("version", "start"), [*((version, "6.18.44") for version in kernels.PROFILES), ("6.1.192", "7.3.4"), ("7.3.4", "5.10.223")]
)
def test_a_kernel_is_told_by_its_answers(version, start):
    profile = kernels.PROFILES[version]
    answers = {switch: replay(scenario, version) for switch, scenario in TELLTALES.items()}
    found = Probe("unknown")
    decide(found, answers, hidden(profile), kernels.PROFILES[start].switches)
    # where smart scan is not known to be there, it is seen in reclaim alone
    old = (profile.switches | kernels.PROFILES[start].switches) & Switch.NO_SMART_SCAN
    unseen = Switch.LAZY_EACH if old else Switch(0)
    unseen |= Switch.FORK_INHERITS if version == "5.10.223" else Switch(0)  # which shows no counts of processes
    assert Switch(sum(found.on)) == profile.switches & ~OTHERWISE & ~unseen
    assert Switch(sum(found.unknown)) == unseen
    for switch in OTHERWISE:
        found.told(switch, bool(profile.switches & switch))
    assert found.profile.switches & ~unseen == profile.switches & ~unseen
    found.named = version
    assert found.profile is profile and not found.differing(profile)


def test_a_name_that_does_not_fit_gives_way_to_the_answers():
    found = Probe("6.12.43-mine", "6.12.43")
    for switch in Switch:
        found.told(switch, bool(kernels.PROFILES["7.3.4"].switches & switch))
    assert found.profile.version == "7.3.4"
    assert Switch.SCAN_EACH in found.differing(kernels.PROFILES["6.12.43"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may")
def test_only_root_may_probe(capsys):
    assert main(["probe"]) == 2
    assert "root" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/sys/kernel/mm/ksm"), reason="root and KSM wanted")
def test_this_machine_is_what_it_says(capsys):
    code = main(["probe", "--json"])
    out, err = capsys.readouterr()
    if code == 2:
        pytest.skip(err)
    told = json.loads(out)
    named = kernels.of_machine()
    assert told["release"] == os.uname().release
    if named.exact:
        assert (told["nearest"], told["exactly"], told["unknown"]) == (named.profile.version, True, {})
        assert set(told["on"]) == {switch.name for switch in named.profile.switches}
