"""Processes of a scenario, in the real kernel: born, replaced, ended."""

from __future__ import annotations

from ..scenarios.kinds import ScenarioError
from .pages import Process
from .run_side import Side

_PRCTL = 157
_PR_SET_MEMORY_MERGE, PR_GET_MEMORY_MERGE, _PR_SET_THP_DISABLE = 67, 68, 41


class Tasks(Side):
    """Operations that make, replace and end processes, or set what holds for a whole one."""

    def do_spawn(self, name: str) -> int:
        """Start a process that owns nothing."""
        self.live[name] = Process(self.pool.spawn(name))
        if self.around.cgroup is not None:
            self.around.cgroup.take(self.live[name].pid)
        return 0

    def do_exit(self, name: str) -> int:
        """End a process and wait until it is gone."""
        self._let_go(name)
        self.live.pop(name).close()
        self.pool.exit(name)
        self._no_child(name)
        return 0

    def do_exec(self, name: str) -> int:
        """Give a process a memory of its own, with nothing in it."""
        self._let_go(name)
        process = self.live[name]
        ret = self.pool.exec(name)
        if ret == 0:
            process.close()
            self.live[name] = Process(process.pid)
            self._no_child(name)
        return ret

    def _let_go(self, name: str) -> None:
        """Give back the pins that the kernel gives back some time after the end of who holds them."""
        for kind, vpn in [*self.live[name].descriptors]:
            if kind == "dma":
                self.do_dmaunpin(name, vpn)

    def do_dmaunpin(self, name: str, vpn: int) -> int:
        """See `run_pages`."""
        raise NotImplementedError

    def _no_child(self, name: str) -> None:
        """Whoever waits for this one waits no more."""
        for process in self.live.values():
            if process.child == name:
                process.child = ""

    def do_fork(self, parent: str, child: str) -> int:
        """Fork; the child has a memory of its own."""
        pid = self.pool.fork(parent, child)
        if pid < 0:
            return pid
        self.live[child] = Process(pid, self.live[parent].spans)
        return 0

    def do_clone(self, parent: str, child: str) -> int:
        """A task in the parent's memory."""
        return self._in_memory_of(parent, child, self.pool.task(parent, child))

    def do_vfork(self, parent: str, child: str) -> int:
        """A task in the parent's memory, for which the parent waits."""
        ret = self._in_memory_of(parent, child, self.pool.vfork(parent, child))
        if ret == 0:
            self.live[parent].child = child
        return ret

    def _in_memory_of(self, parent: str, child: str, pid: int) -> int:
        if pid < 0:
            return pid
        whose = self.live[parent]
        self.live[child] = Process(pid, whose.spans, whose.shown_under or parent)
        return 0

    def do_vforked(self, name: str) -> int:
        """See the parent back."""
        process = self.live[name]
        if process.child != "":
            what = "no vfork of it is over" if process.child is None else f"its vfork child {process.child} is there still"
            raise ScenarioError(f"{self.scenario.name}: vforked", what, name)
        process.child = None
        return min(self.pool.vforked(name), 0)

    def do_prctl(self, name: str, value: int) -> int:
        """PR_SET_MEMORY_MERGE."""
        return self.pool.syscall(name, _PRCTL, _PR_SET_MEMORY_MERGE, value, 0, 0, 0)

    def do_prctl_get(self, name: str) -> int:
        """PR_GET_MEMORY_MERGE."""
        return self.pool.syscall(name, _PRCTL, PR_GET_MEMORY_MERGE, 0, 0, 0, 0)

    def do_thpdisable(self, name: str, value: int) -> int:
        """PR_SET_THP_DISABLE."""
        return self.pool.syscall(name, _PRCTL, _PR_SET_THP_DISABLE, value, 0, 0, 0)

    def do_syscall(self, name: str, *words: int) -> int:
        """A raw system call."""
        return self.pool.syscall(name, *words)
