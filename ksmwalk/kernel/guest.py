"""Other kernels: each in an emulated machine of its own, driven like the one that runs here.

Needs ``qemu-system-x86_64`` and a kernel image with KSM (Debian's cloud kernels are such; no module of theirs is needed).
Nothing of this machine's own KSM is touched, and the emulator's memory is kept out of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import kernels
from ..drawing.words import printable
from ..layout import Switch
from ..scenarios.format import Scenario, ScenarioError
from ..scenarios.ops import MERGE_ANY
from ..scenarios.records import Record
from . import giants, guest_archive
from .fitting import fit, lacks
from .giants import Giant, Measured
from .guest_harness import Line
from .knobs import KernelUnavailable
from .run import Disturbed, check
from .state import to_stderr
from .worker import WorkerDied

QEMU = "qemu-system-x86_64"
#: seconds until a kernel must have started Python, and that one scenario may take
BOOT_SECONDS, SCENARIO_SECONDS = 300.0, 300.0
_MIB, _NODE_MIB = 1024, 640
_TOGETHER = ("-accel", "tcg,thread=multi")
#: time is what the processor has done: an instruction a nanosecond, whatever else this machine does meanwhile
_COUNTED = ("-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off")
_MACHINE = ("-machine", "q35,mem-merge=off,hpet=off", "-cpu", "max,la57=off,avx=off,avx2=off")
_ALONE = ("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot")
_KERNEL = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr numa_balancing=disable"
_LAST_LINES = 5
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def why_not(image: Path) -> str | None:
    """Return why a kernel image can't be started here, or None.

    Parameters
    ----------
    image : Path
    """
    if not image.is_file():
        return f"{image} is no file: the kernel image (vmlinuz) of a guest is wanted"
    if not os.access(image, os.R_OK):
        return f"{image} can't be read"
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not there: install it (Debian: apt install qemu-system-x86)"
    return guest_archive.why_not()


def _command(image: Path, archive: Path, line: Path, console: Path, nodes: int, counted: bool) -> list[str]:
    python = guest_archive.program()
    variables = {
        "PYTHONHOME": guest_archive.home(), "PYTHONPATH": ":".join(guest_archive.search_path()), "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1", "OPENBLAS_NUM_THREADS": "1",
    }  # fmt: skip
    words = [_KERNEL, f"rdinit={python}", *(f"{name}={value}" for name, value in variables.items())]
    words += ["--", "-S", "-P", "-m", guest_archive.HARNESS]
    out = [QEMU, *(_COUNTED if counted else _TOGETHER)]
    out += [*_MACHINE, *_ALONE, "-kernel", str(image), "-initrd", str(archive), "-append", " ".join(words)]
    each, count = (_MIB, 1) if nodes == 1 else (_NODE_MIB, nodes)
    out += ["-m", f"{each * count}M", "-smp", str(count)]
    for node in range(count):
        out += ["-object", f"memory-backend-ram,id=m{node},size={each}M,merge=off"]
        out += ["-numa", f"node,nodeid={node},memdev=m{node},cpus={node}"] if nodes > 1 else ["-machine", "memory-backend=m0"]
    out += ["-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"]
    return [*out, "-chardev", f"socket,id=line,path={line},server=on,wait=on", "-serial", "chardev:line"]


@dataclass
class Guest:
    """A kernel in an emulated machine, its KSM taken. Use :func:`guest`.

    Attributes
    ----------
    release : str
        What it calls itself.
    version : str
        Its full version.
    left_out : list of str
        What it does not show, in words.
    ignore : set of str
        The same as field names for :func:`ksmwalk.scenarios.compare.first_difference`.
    missing, lacking : set of str
        Knobs, and what operations need, that it does not have.
    profile : kernels.Found
        What the model answers for it as.
    """

    release: str
    version: str
    left_out: list[str]
    ignore: set[str]
    missing: set[str]
    lacking: set[str]
    profile: kernels.Found
    _ask: Callable[..., dict[str, Any]]
    _of_env: dict[str, str | None] = field(default_factory=dict)

    @property
    def kernel(self) -> str:
        """Release and version, for people."""
        return self.release if self.release.startswith(self.version) else f"{self.release} ({self.version})"

    def lacks(self, scenario: Scenario) -> str | None:
        """Return what a scenario needs and this kernel has not, in words, or None."""
        if (what := lacks(scenario, self.lacking)) is not None:
            return what
        if cpu := max((op[2] for op in scenario.ops if op[0] == "cpu"), default=0):
            return f"no CPU {cpu} to run on: a node of a guest has one, and all run on the first"
        key = json.dumps(scenario.env, sort_keys=True)
        if scenario.env and key not in self._of_env:
            self._of_env[key] = self._ask({"env": scenario.env}).get("lacks")
        return self._of_env.get(key)

    def fit(self, scenario: Scenario) -> Scenario | None:
        """Return a scenario as this kernel can run it; None where it is about something that there is not."""
        return None if self.lacks(scenario) else fit(scenario, self.missing)

    def record(self, scenario: Scenario) -> list[Record]:
        """Run a scenario and return its records.

        Raises
        ------
        ScenarioError, WorkerDied, Disturbed
            As in a session on this machine.
        KernelUnavailable
            The guest has ended, or does not answer.
        """
        check(scenario)
        answer = self._ask({"scenario": scenario.to_json()})
        if "refused" in answer:
            raise ScenarioError(scenario.name, "the guest refuses it", answer["refused"])
        if "died" in answer:
            raise WorkerDied(answer["died"])
        if "broken" in answer:
            raise Disturbed(answer["broken"])
        records: list[Record] = answer["records"]
        return records

    def scanned(self, giant: Giant, patience: float) -> Measured:
        """Let its ksmd scan a process with few pages in very much address space, every page in every scan.

        Parameters
        ----------
        giant : Giant
        patience : float
            Seconds to wait at most for the end of a scan.

        Returns
        -------
        Measured
            ksmd's CPU time, by the clock of the emulated machine.

        Raises
        ------
        KernelUnavailable
            It can't be had, or a scan did not end in that time.
        """
        asked = {"giant": [giant.span, giant.pages], "patience": patience}
        answer = self._ask(asked, SCENARIO_SECONDS + giants.SCANS * patience)
        if "broken" in answer:
            raise KernelUnavailable(f"the guest: {answer['broken']}")
        return Measured(*answer["scanned"])

    def look(self) -> dict[str, Any]:
        """Let it look at a page of its own and time a scan: what `ksmwalk.kernel.probe.look` says there.

        Raises
        ------
        KernelUnavailable
            It could not, has ended or does not answer.
        """
        answer = self._ask({"look": 1})
        if "broken" in answer:
            raise KernelUnavailable(f"the guest: {answer['broken']}")
        return answer


def _end_with_us() -> None:
    """Whatever ends this process ends the emulator too."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _last_words(console: Path) -> str:
    """What the guest said last on its console."""
    with contextlib.suppress(OSError):
        lines = [line for line in console.read_text(errors="replace").splitlines() if line.strip()]
        return printable(" / ".join(line.strip()[:200] for line in lines[-_LAST_LINES:]))
    return ""


class _Wire:
    """The other end of a guest's second serial line."""

    def __init__(self, machine: subprocess.Popen[bytes], path: Path, console: Path):
        self._machine, self._console = machine, console
        self._socket = socket.socket(socket.AF_UNIX)
        end = time.monotonic() + BOOT_SECONDS
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                if machine.poll() is not None or time.monotonic() > end:
                    raise self._gone("it did not start") from None
                time.sleep(0.05)
        self._line = Line(self._socket.fileno())

    def _gone(self, what: str) -> KernelUnavailable:
        errors = b""
        if self._machine.poll() is not None and self._machine.stderr is not None:
            errors = self._machine.stderr.read()
        said = printable(errors.decode(errors="replace").strip()) or _last_words(self._console)
        return KernelUnavailable(f"the guest: {what}" + (f"; it said: {said}" if said else ""))

    def take(self, seconds: float) -> dict[str, Any]:
        """Wait for a message."""
        self._socket.settimeout(None)
        deadline = _Deadline(self._machine, seconds)
        with deadline:
            try:
                got = self._line.take()
            except (OSError, ValueError):
                got = {}
        if deadline.passed:
            raise self._gone(f"no answer in {seconds:.0f} s")
        if not got:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._machine.wait(5)
            raise self._gone("it has ended")
        return got

    def ask(self, what: dict[str, Any], seconds: float = SCENARIO_SECONDS) -> dict[str, Any]:
        """Send a message and wait for the answer."""
        try:
            self._line.send(what)
        except OSError:
            raise self._gone("it has ended") from None
        return self.take(seconds)

    def close(self) -> None:
        """Tell the guest to end, and hang up."""
        with contextlib.suppress(OSError):
            self._line.send({"end": 1})
        self._socket.close()


class _Deadline:
    """Ends the machine where something takes too long: a read that waits for it comes back then."""

    def __init__(self, machine: subprocess.Popen[bytes], seconds: float):
        self.passed = False
        self._machine = machine
        self._timer = threading.Timer(seconds, self._pass)
        self._timer.daemon = True

    def _pass(self) -> None:
        self.passed = True
        self._machine.kill()

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


@contextlib.contextmanager
def guest(
    image: Path, nodes: int = 1, say: Callable[[str], None] | None = None, *, counted: bool = False
) -> Iterator[Guest]:
    """Start a kernel in an emulated machine for any number of scenarios; it is switched off on any way out.

    Parameters
    ----------
    image : Path
        Its vmlinuz.
    nodes : int
        NUMA nodes it is to have.
    say : callable of str, optional
        Told what takes time; default: print to stderr.
    counted : bool
        Its clock counts the instructions of its one processor, one a nanosecond: what is timed by it is the same each
        time, and scans take longer.

    Yields
    ------
    Guest

    Raises
    ------
    KernelUnavailable
        It can't be started here, or does not come so far as to run scenarios; the text says why.
    """
    if reason := why_not(image):
        raise KernelUnavailable(reason)
    with tempfile.TemporaryDirectory(prefix="ksmwalk-guest-") as name:
        place = Path(name)
        archive, line, console = place / "initramfs", place / "line", place / "console"
        (say or to_stderr)(f"starting {image.name} in an emulated machine")
        archive.write_bytes(guest_archive.build())
        machine = subprocess.Popen(
            _command(image, archive, line, console, nodes, counted), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, start_new_session=True, preexec_fn=_end_with_us,
        )  # fmt: skip
        wire = None
        try:
            wire = _Wire(machine, line, console)
            about = wire.take(BOOT_SECONDS)
            if "broken" in about:
                raise KernelUnavailable(f"the guest: {about['broken']}")
            release, version = about["release"], about["version"]
            ignore, missing, lacking = (set(about[key]) for key in ("ignore", "missing", "lacking"))
            try:
                profile = kernels.find(release, version)
            except ValueError as error:
                raise KernelUnavailable(str(error)) from None
            if profile.profile.switches & Switch.NO_MERGE_ANY:
                lacking.discard(MERGE_ANY)  # it says so itself, and the model with it
            full = kernels.full_version(release, version)
            yield Guest(release, full, about["left_out"], ignore, missing, lacking, profile, wire.ask)
        finally:
            if wire is not None:
                wire.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    machine.wait(10)
            machine.kill()
            machine.wait()
            if machine.stderr is not None:
                machine.stderr.close()
