"""How processes come to be marked: told from their cgroups and command lines, whoever wrote these."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from fakekernel import row

from ksmwalk.kernel import marking
from ksmwalk.proc import processes

ID = "0123456789abcdef" * 4


def told(**changed):
    return marking.started_by(row(**changed))


@pytest.mark.parametrize(
    ("cgroup", "container", "expected"),
    [
        ("/system.slice/redis-server.service", "", ("service", "redis-server.service")),
        ("/system.slice/system-foo.slice/foo@1.service", "", ("service", "foo@1.service")),
        (r"/system.slice/a\x2db.service", "", ("service", r"a\x2db.service")),
        ("/redis.service/deeper", "", ("service", "redis.service")),
        # a service with a tree of its own names what is below as it likes
        ("/system.slice/foo.service/bar.service", "", ("service", "foo.service")),
        (f"/system.slice/web.service/libpod-payload-{ID}", ID, ("service", "web.service")),
        ("/user.slice/user-7.slice/user@7.service/app.slice/web.service", "", ("user service", "7/web.service")),
        ("/user.slice/user-7.slice/user@7.service/init.scope", "", ("program", "python")),
        ("/user.slice/user-7.slice/session-3.scope", "", ("program", "python")),
        (f"/system.slice/docker-{ID}.scope", ID, ("container", ID)),
        (f"/docker/{ID}", ID, ("container", ID)),
        (f"/system.slice/containerd.service/{ID}", ID, ("container", ID)),
        (f"/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope", ID, ("container", ID)),
        ("/system.slice/$(reboot).service", "", ("program", "python")),
        ("/system.slice/a b.service", "", ("program", "python")),
        ("/system.slice/-x.service", "", ("program", "python")),
        ("/system.slice/" + "a" * 300 + ".service", "", ("program", "python")),
        ("/", "", ("program", "python")),
        ("", "", ("program", "python")),
    ],
)
def test_what_started_a_process_is_the_first_of_its_cgroups_that_is_no_slice(cgroup, container, expected):
    assert told(cgroup=cgroup, container=container) == expected


MACHINE = r"/machine.slice/machine-qemu\x2d1\x2dweb.scope/libvirt/emulator"


@pytest.mark.parametrize(
    ("command", "cgroup", "expected"),
    [
        (["/usr/bin/qemu-system-x86_64", "-name", "guest=web,debug-threads=on"], MACHINE, ("libvirt", "web")),
        (["qemu-kvm", "-name", "web"], "/", ("qemu", "web")),
        (["qemu-kvm", "-name", "guest=$(reboot)"], MACHINE, ("qemu", "python")),
        (["qemu-kvm", "-name", "guest=--all"], MACHINE, ("qemu", "python")),
        (["qemu-kvm", "-name"], MACHINE, ("qemu", "python")),
        (["qemu-kvm; reboot"], "/", ("program", "python")),
        ([], "/", ("program", "python")),
    ],
)
def test_virtual_machines_are_known_by_their_command_line(command, cgroup, expected):
    assert told(command=command, cgroup=cgroup) == expected


def test_a_service_gets_a_drop_in_and_all_its_processes_one():
    rows = [row(pid=10 + at, cgroup="/system.slice/foo@1.service", freed_bytes=100_000) for at in range(3)]
    (one,) = marking.markings(rows, None, False)
    assert one.file == "/etc/systemd/system/foo@1.service.d/ksm.conf" and one.content == "[Service]\nMemoryKSM=yes\n"
    assert one.commands == ["systemctl daemon-reload", "systemctl restart foo@1.service"]
    assert one.pids == [10, 11, 12] and one.freed_bytes == 300_000 and one.rmap_items_bytes == 3 * 300 * 64


def test_only_processes_that_free_more_than_their_rmap_items_take_are_marked():
    rows = [
        row(pid=1, freed_bytes=300 * 64), row(pid=2, freed_bytes=300 * 64 + 1), row(pid=3, freed_bytes=-5),
        row(pid=4, freed_bytes=1 << 30),
    ]  # fmt: skip
    assert [one.pids for one in marking.markings(rows, None, False)] == [[2, 4]]
    assert [one.pids for one in marking.markings(rows, {2}, False)] == [[2]]
    assert marking.markings(rows, set(), False) == []


def test_those_that_give_the_most_come_first():
    rows = [row(name="a", freed_bytes=1 << 20), row(name="b", freed_bytes=1 << 30), row(name="a", freed_bytes=1 << 20)]
    assert [one.what for one in marking.markings(rows, None, False)] == ["b", "a"]


def test_programs_are_named_by_the_words_that_start_them():
    rows = [row(command=["python", "a b.py"]), row(command=["python", "c.py"]), row(command=["python", "a b.py"])]
    found = marking.markings(rows, None, False)
    assert sorted(one.commands[0] for one in found) == [
        "ksmwalk apply --exec python 'a b.py'", "ksmwalk apply --exec python c.py",
    ]  # fmt: skip


@pytest.mark.parametrize("command", [["a\x1b[2J"], ["a", "b\nreboot"], ["\udcff"], ["x"] * 200, []])
def test_words_that_could_not_be_copied_are_not_offered(command):
    (one,) = marking.markings([row(command=command)], None, False)
    assert one.commands == ["ksmwalk apply --exec PROGRAM ..."]


def test_a_container_has_no_switch_and_its_runtimes_service_is_named():
    (one,) = marking.markings([row(cgroup=f"/system.slice/docker-{ID}.scope", container=ID)], None, False)
    assert one.how == "container" and not one.file and not one.commands
    assert any("containerd.service" in note for note in one.notes)
    (one,) = marking.markings([row(cgroup=f"/machine.slice/libpod-{ID}.scope", container=ID)], None, False)
    assert not any(".service" in note for note in one.notes)


@pytest.mark.parametrize(
    ("release", "systemd", "part"),
    [
        ("6.18.44", 256, None), ("6.18.44", None, None), ("6.6.1", 256, "forgets"), ("6.1.9", 256, "no PR_SET_MEMORY_MERGE"),
        ("6.18.44", 255, "may keep services from starting"), ("6.18.44", 252, "has no MemoryKSM="), ("odd", 256, None),
    ],
)  # fmt: skip
def test_what_a_machine_is_too_old_for_is_said(release, systemd, part):
    found = marking.markings([row(cgroup="/system.slice/a.service")], None, False)
    said = marking.limits(found, release, systemd)
    assert (said == []) if part is None else (len(said) == 1 and part in said[0])


def test_machines_of_qemu_need_nothing_of_it():
    found = marking.markings([row(command=["qemu-kvm"])], None, False)
    assert marking.limits(found, "5.10.0", 200) == []


def merges_any() -> bool:
    code = "import ctypes; raise SystemExit(ctypes.CDLL(None).prctl(67, 1, 0, 0, 0) != 0)"
    return subprocess.run([sys.executable, "-S", "-c", code], check=False).returncode == 0


needs_prctl = pytest.mark.skipif(not merges_any(), reason="this kernel has no PR_SET_MEMORY_MERGE")


def apply_exec(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "ksmwalk", "apply", "--exec", *words], capture_output=True, text=True, check=False, **options
    )


@needs_prctl
def test_what_is_started_with_exec_is_marked_and_what_it_starts_too():
    done = apply_exec("sh", "-c", "grep merge_any /proc/self/ksm_stat; cat /proc/$$/ksm_stat | grep merge_any")
    assert done.stdout.splitlines() == ["ksm_merge_any: yes"] * 2 and done.returncode == 0


@needs_prctl
def test_exec_hands_on_options_exit_code_and_signals_as_they_are_by_default():
    done = apply_exec("sh", "-c", 'grep SigIgn /proc/self/status; echo "$@"; exit 7', "x", "--json", "--yes")
    assert done.returncode == 7
    ignored, words = done.stdout.splitlines()
    assert int(ignored.split()[1], 16) & (1 << 12 | 1 << 24) == 0 and words == "--json --yes"


@needs_prctl
def test_exec_of_what_is_not_there_is_one_line():
    done = apply_exec("no-such-program-here")
    assert done.returncode == 2 and done.stderr == "ksmwalk apply: --exec no-such-program-here: there is no such program\n"


@needs_prctl
def test_who_is_marked_already_is_seen(monkeypatch):
    code = "import ctypes, sys; ctypes.CDLL(None).prctl(67, int(sys.argv[1]), 0, 0, 0); print(flush=True); sys.stdin.read()"
    for yes in (0, 1):
        with subprocess.Popen(
            [sys.executable, "-S", "-c", code, str(yes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            name = processes.comm(process.pid)
            (one,) = marking.markings([row(pid=process.pid, name=name)], None, True)
            assert one.marked == yes
            # whoever has got the number since is somebody else
            assert marking.markings([row(pid=process.pid, name="other")], None, True)[0].marked == 0
            process.stdin.close()
    assert os.path.exists("/proc/self/ksm_stat")


def test_programs_for_which_the_same_is_to_be_done_are_one():
    rows = [row(pid=pid, name="tool", command=["tool", "-c", f"{pid}" + "x" * 300]) for pid in range(10, 14)]
    (one,) = marking.markings(rows, None, False)
    assert one.pids == [10, 11, 12, 13] and one.commands == ["ksmwalk apply --exec PROGRAM ..."]
    assert one.freed_bytes == sum(each["freed_bytes"] for each in rows)
    rows = [row(pid=pid, name="tool", command=["tool", str(pid)]) for pid in (10, 11, 11)]
    assert [one.pids for one in marking.markings(rows, None, False)] == [[11, 11], [10]]
