"""The child that maps memory: what it answers, and that it never outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from living import alive, gone_within

from ksmwalk.proc.child import PROGRAM, Child, ChildError


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def test_it_answers_and_names_what_failed():
    with Child() as child:
        assert child.do("1 + 1") == 2
        assert child.do("x = [3, 'a']") is None and child.do("x") == [3, "a"]
        assert list(child.do("numbers(2).tolist()", (5).to_bytes(8, "little") * 2)) == [5, 5]
        with pytest.raises(ChildError, match="Cannot allocate memory") as error:
            child.do("new(1 << 60)")
        assert error.value.why == "Cannot allocate memory"
        with pytest.raises(ChildError, match="nothing_of_that_name"):
            child.do("nothing_of_that_name")
        assert child.do("2") == 2
        with pytest.raises(ChildError, match="it is gone"):
            child.do("os._exit(3)")
    assert not alive(child.pid)


def test_its_words_lie_where_they_are_put():
    with Child() as child:
        area = child.do("new(16 * P)")
        child.do(f"put({area}, numbers(3), range(7, 10))", b"".join(n.to_bytes(8, "little") for n in (0, 4096, 8 * 4096)))
        assert child.do(f"[ctypes.c_uint64.from_address({area} + i * P).value for i in (0, 1, 2, 8)]") == [7, 8, 0, 9]


@pytest.mark.parametrize("moment", ["at work", "at rest"])
def test_it_dies_with_a_parent_that_is_killed(moment):
    line = "child.tell('while True: pass')" if moment == "at work" else ""
    program = f"""if True:
        import sys, time
        from ksmwalk.proc.child import Child
        child = Child()
        {line}
        print(child.pid, flush=True)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
        assert gone_within(pid, 2)


def test_it_ends_if_the_parent_went_before_it_asked():
    """Its real parent is another than the one it was started for, as when that one has gone."""
    end = subprocess.run([sys.executable, "-S", "-E", "-P", PROGRAM, "1"], input=b"os._exit(7)\n", timeout=20)
    assert end.returncode == 1


def test_the_childs_own_group_keeps_an_interrupt_off_it():
    with Child() as child:
        assert os.getpgid(child.pid) == child.pid


def test_a_killed_demo_leaves_no_process_behind():
    command = [sys.executable, "-m", "ksmwalk", "demo", "--pages", "1000000"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as demo:
        end = time.monotonic() + 20
        while not (pids := children(demo.pid)) and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(0.1)
        demo.send_signal(signal.SIGKILL)
        demo.wait()
        assert pids and gone_within(pids[0], 2)
