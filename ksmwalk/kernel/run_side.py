"""What the operations of all subjects stand on: the session, the processes, how they are told what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..scenarios.format import Op, Scenario, ScenarioError
from . import worker
from .pages import Process
from .surround import Surroundings

if TYPE_CHECKING:
    from .session import Session

#: what a system call returns from here up to -1 is an error, what is below is an address
_MAX_ERRNO = 4095


class Side:
    """The real kernel's side of a scenario.

    Attributes
    ----------
    session : Session
    scenario : Scenario
    pool : worker.Pool
        The processes' ends.
    live : dict of str to Process
    around : Surroundings
    """

    session: Session
    scenario: Scenario
    pool: worker.Pool
    live: dict[str, Process]
    around: Surroundings

    def not_waiting(self, where: str, name: str, op: Op) -> None:
        """Refuse to have anything done by a process that waits for its vfork child."""
        if op[0] != "vforked" and (child := self.live[name].child) is not None:
            raise ScenarioError(where, f"{name} waits for its vfork child {child} and does nothing", op)

    def own_fd(self, name: str, number: int, args: list[int | bytes]) -> int:
        """Let a process make a system call that gives a descriptor; it, or -errno."""
        return self.pool.call_with(name, number, args)

    def close_fds(self, name: str, fds: tuple[int, ...]) -> None:
        """Let a process close descriptors."""
        for fd in fds:
            self.pool.syscall(name, 3, fd)


def errno_of(ret: int) -> int:
    """What a call that gives an address says: 0, or -errno."""
    return ret if -_MAX_ERRNO <= ret < 0 else 0
