"""`ksmwalk reproduce`: C programs that compile without a warning, show what the model expects, and put all back."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import machine
import pytest

from ksmwalk.commands.cli import main
from ksmwalk.kernel import knobs, reproduce
from ksmwalk.scenarios.format import Recording, ScenarioError, load, scenario_from_json
from ksmwalk.scenarios.ops import OPS

GOLDEN = Path(__file__).parents[1] / "golden"
GCC = shutil.which("gcc")
FLAGS = ["-Wall", "-Wextra", "-Werror", "-O1", "-std=gnu11"]
#: of all kinds: each operation that is said in C is in one of them
GOLDENS = [
    "advice_locked", "clone_vm", "cow_ksm_counted", "dma_exit_child", "dontunmap", "exit_all", "file_prctl", "fork_ksm", "heavy_0",
    "khuge_ksm_child", "mlock_batch", "mlock2_onfault", "mlockall_fork", "move_ksm_zero", "mthp_uffd", "pin_ksm_exit", "prctl_any",
    "process_madvise", "pwrite_refused", "run2_protected", "sharing_limit_8", "sparse_32t", "stack_watch", "store_bytes",
    "swap_swapoff", "thp_pair", "uffd_copy_zero", "vfork_exec", "zero_pages",
]  # fmt: skip
ODD = {
    "name": 'odd "name" ?? \\ é',
    "note": "a note */ with\nlines ??/",
    "tunables": {"pages_to_scan": 100},
    "env": {"swap_mib": 16},
    "ops": [
        ["spawn", "int"], ["spawn", "1"], ["mmap", "int", 65536, 4, {"prot": "none"}], ["mmap", "1", 0x1FFFF, 2, {"locked": 1}],
        ["fill", "int", 65536, [(1 << 64) - 1, None]], ["write", "1", [[0x1FFFF, 1 << 63]]], ["fill", "1", 0x1FFFF, []],
        ["memset", "1", 0x1FFFF, 255, 8192], ["set", "max_page_sharing", "*/ ??/ \"x\" \\"], ["sleep", 0.01], ["drain"],
        ["thpdisable", "1", 1], ["mlockall", "1", 1], ["munlock", "1", 0x1FFFF, 1], ["munlockall", "1"],
        ["syscall", "1", 152], ["watch", "1", 70000, 3], ["swapoff"], ["swapon"],
        ["pin", "1", 0x1FFFF], ["unpin", "1", 0x1FFFF], ["dmapin", "1", 0x1FFFF, 1], ["dmaunpin", "1", 0x1FFFF],
        ["uffd_wp", "1", 0x1FFFF, 1], ["uffd", "1", 0x1FFFF, 1, {"wp": 1}], ["uffd_unregister", "1", 0x1FFFF, 1],
        ["prctl_get", "1"], ["run", -5], ["step", 2],
    ],
}  # fmt: skip


def compiled(text, place, name="program"):
    """The program, or a skipped test where there is no compiler."""
    if GCC is None:
        pytest.skip("no gcc")
    source, target = place / f"{name}.c", place / name
    source.write_text(text)
    done = subprocess.run([GCC, *FLAGS, "-o", target, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def test_every_operation_is_said_or_refused():
    said = {op[0] for name in GOLDENS for op in load(GOLDEN / f"{name}.json").scenario.ops}
    said |= {op[0] for op in ODD["ops"]}
    assert not set(OPS) - said - set(reproduce.REFUSED)


@pytest.mark.parametrize("name", ["heavy_0", "vfork_exec", "swap_swapoff", "mthp_uffd", "khuge_ksm_child", "pin_ksm_exit"])
def test_it_compiles_and_is_in_the_scenarios_order(name, tmp_path):
    recording = load(GOLDEN / f"{name}.json")
    text = reproduce.program(recording)
    compiled(text, tmp_path)
    comments = [line.strip()[3:] for line in text.splitlines() if line.startswith("\t// [")]
    assert [json.loads(line) for line in comments] == recording.scenario.ops
    assert text.count("\tcompare(") == recording.scenario.nr_records


@pytest.mark.parametrize("ops", [[], [["run", 0]], [["step", 3]]], ids=str)
def test_without_processes(ops, tmp_path):
    compiled(reproduce.program(Recording(scenario_from_json({"ops": ops}))), tmp_path)


def test_odd_names_and_values(tmp_path):
    text = reproduce.program(Recording(scenario_from_json(ODD)))
    compiled(text, tmp_path)
    assert "P_int" in text and "P_1" in text


@pytest.mark.parametrize(
    ("ops", "word"),
    [
        ([["spawn", "A"], ["mmap", "A", 65536, 1], ["place", "A", 65536, 1, 1]], "NUMA"),
        ([["spawn", "A"], ["move", "A", [5], 1]], "NUMA"),
        ([["spawn", "A"], ["syscall", "A", 1]], "raw system call"),
        ([["spawn", "A"], ["syscall", "A", 39]], "model has no such"),
        ([["spawn", "A"], ["reclaim"]], "memcg"),
        ([["swapoff"]], "swap_mib"),
        ([["spawn", "A"], ["mmap", "A", 0x7FF000000, 1]], "worker's own"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(ops, word):
    with pytest.raises(ScenarioError, match=word):
        reproduce.program(Recording(scenario_from_json({"ops": ops}, "mine.json")))


def test_the_command(tmp_path, capsys):
    out = tmp_path / "pair.c"
    assert main(["reproduce", str(GOLDEN / "pair_order.json"), "-o", str(out)]) == 0
    assert "records" in capsys.readouterr().out
    assert main(["reproduce", str(GOLDEN / "pair_order.json")]) == 0
    assert capsys.readouterr().out == out.read_text()
    assert main(["reproduce", "--json", str(GOLDEN / "pair_order.json"), "--kernel", "6.1.192"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["kernel"] == "6.1.192" and "#include" in made["program"] and made["output"] is None
    numa = sorted((GOLDEN / "guests" / "numa").glob("*_0.json"))[0]
    for args in (["nosuch.json"], [str(numa)], [str(GOLDEN / "pair_order.json"), "-o", "/nowhere/x.c"],
                 [str(GOLDEN / "pair_order.json"), "-o", str(tmp_path / "x.txt")],
                 [str(GOLDEN / "pair_order.json"), "--kernel", "2.4"]):  # fmt: skip
        assert main(["reproduce", *args]) == 2
        assert capsys.readouterr().err.startswith("ksmwalk reproduce: ")


# ---------------------------------------------------------------- for real

REASON = "needs root" if os.geteuid() else knobs.why_not() if not knobs.KSM.is_dir() else None
real = [pytest.mark.root, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


def run(program, **more):
    return subprocess.run([program], capture_output=True, text=True, timeout=100, **more)


@pytest.fixture
def taken():
    try:
        with knobs.taken(lambda text: None, wait=60):
            before = machine.around()
            yield
            assert machine.around() == before
    except knobs.KernelUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", [pytest.param(name, marks=real) for name in GOLDENS])
def test_goldens_on_this_kernel(name, tmp_path, taken):
    if not os.uname().release.startswith("6.18."):
        pytest.skip("the golden recordings are of Linux 6.18")
    done = run(compiled(reproduce.program(load(GOLDEN / f"{name}.json")), tmp_path))
    if done.returncode == 2 and ("zram" in done.stderr or "other swap" in done.stderr):
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all equal" in done.stdout and "!=" not in done.stdout


@pytest.mark.parametrize("what", [pytest.param(what, marks=real) for what in ("counters(", "stat_of(A", "pages(A", "returned(")])
def test_a_false_expectation_is_a_difference(what, tmp_path, taken):
    text = reproduce.program(load(GOLDEN / ("fork_ksm_1.json" if what == "counters(" else "pwrite_refused.json")))
    assert f"\t{what}" in text
    line = next(line for line in text.splitlines() if line.startswith(f"\t{what}"))
    false = {
        "counters(": '\tcounters("full_scans=77");', "stat_of(A": "\tstat_of(A, 5, 5, 5, 5, 5, 5);",
        "pages(A": '\tpages(A, "1+1:a");', "returned(": "\treturned(-99);",
    }[what]  # fmt: skip
    done = run(compiled(text.replace(line, false, 1), tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "!=" in done.stdout and " differ" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("number", [pytest.param(number, marks=real) for number in (signal.SIGTERM, signal.SIGINT)])
def test_a_signal_puts_all_back(number, tmp_path, taken):
    ops = [["spawn", "A"], ["mmap", "A", 65536, 4], ["madvise", "A", 65536, 4, "mergeable"], ["cpu", "ksmd", 0], ["run", 1]]
    ops += [["sleep", 60], ["step"]]
    scenario = scenario_from_json({"ops": ops, "tunables": {"pages_to_scan": 7}, "env": {"thp": "always"}})
    program = compiled(reproduce.program(Recording(scenario)), tmp_path)
    with subprocess.Popen([program], stdout=subprocess.PIPE, text=True) as child:
        while "[run,1]" not in child.stdout.readline():
            pass
        time.sleep(0.2)
        assert knobs.read("pages_to_scan") == "7"
        child.send_signal(number)
        assert child.wait(20) == 128 + number


@pytest.mark.parametrize("value", [pytest.param("1", marks=real)])
def test_ksm_in_use_is_left_alone(value, tmp_path, taken):
    program = compiled(reproduce.program(load(GOLDEN / "pair_order.json")), tmp_path)
    knobs.write("run", value)
    try:
        done = run(program)
        assert done.returncode == 2 and "in use" in done.stderr and knobs.read("run") == value
    finally:
        knobs.write("run", 2)
        knobs.write("run", 0)
