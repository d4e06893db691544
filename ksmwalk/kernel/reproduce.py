"""A scenario as a C program of its own: libc and nothing else, to be compiled and run on any kernel.

The program's helpers stand in the ``reproduce_*.c`` beside this file, in blocks: a block is in the program where the
scenario needs it. Behind them come one call for each operation and what the model expects after it.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..host import ADVICE
from ..scenarios.compare import without_events
from ..scenarios.environment import FOLIO_KIB
from ..scenarios.format import Recording, Scenario, ScenarioError, record_text
from ..scenarios.kinds import UFFD_BITS
from ..scenarios.ops import HEAPS, MOVING, NODES, row, shows_swap_entries
from ..scenarios.records import COUNTERS, Record
from ..scenarios.replay import kernel_of, modelled, replay
from . import knobs, run

__all__ = ["REFUSED", "program"]

#: operations that are not said in C, and why
REFUSED = dict.fromkeys(MOVING, NODES) | {"brk": f"a heap placed by {HEAPS}"}

_FILES = ("core", "show", "world", "ops", "main")
_BLOCK = re.compile(r"^/\* == (\w+)(?:: ([\w ,]+))? == \*/\n", re.MULTILINE)
_WIDTH = 112
_MAP = {"growsdown": "MAP_GROWSDOWN", "locked": "MAP_LOCKED", "noreserve": "MAP_NORESERVE", "populate": "MAP_POPULATE"}
_PROT = {"r": "PROT_READ", "w": "PROT_WRITE", "x": "PROT_EXEC"}
#: system calls by their number in an operation of that name
_CALLS = {39: "SYS_getpid", 149: "SYS_mlock", 150: "SYS_munlock", 151: "SYS_mlockall", 152: "SYS_munlockall", 325: "SYS_mlock2"}
#: in older headers not
_NAMES = {
    "PR_SET_MEMORY_MERGE": 67, "PR_GET_MEMORY_MERGE": 68, "SYS_pidfd_open": 434, "SYS_process_madvise": 440,
    "SYS_close_range": 436, "MREMAP_DONTUNMAP": 4, "SYS_memfd_create": 319, "SYS_io_uring_setup": 425,
    "SYS_io_uring_register": 427, **{f"MADV_{name.upper()}": number for name, number in ADVICE.items()},
}  # fmt: skip
_LARGE_SPAN = 1 << 14
_MOST_LABEL = 100


def program(recording: Recording, kernel: str | None = None) -> str:
    """Return a C program that runs a scenario and holds the kernel it runs on against the model.

    Parameters
    ----------
    recording : Recording
        The scenario; what its `nondet` names is not compared.
    kernel : str, optional
        The version that the model is; default: the recording's, else 6.18.44.

    Returns
    -------
    str
        For ``gcc -std=gnu11``, x86-64. It ends with 0 where all is equal, 1 where something differs, 2 where it can't be run.

    Raises
    ------
    ScenarioError
        Something in the scenario can't be said in C, or the model has it not; it is named.
    """
    scenario = recording.scenario
    _check(scenario)
    version = kernel or kernel_of(recording)[0].version
    records = without_events(replay(scenario, kernel=version))
    writer = _Writer(scenario, records)
    body = writer.body()
    includes, *helpers = _blocks(writer.needs)
    text = "".join([_head(scenario, version), includes, _tables(recording, writer, version), *helpers, body])
    return text.replace("\n\n\n", "\n\n")


def _check(scenario: Scenario) -> None:
    run.check(scenario)
    for index, op in enumerate(scenario.ops):
        if op[0] in REFUSED:
            raise ScenarioError(f"{scenario.name}: op {index} {op[0]}", f"it is not said in C, as it needs {REFUSED[op[0]]}", op)
        if op[0] in ("swapoff", "swapon") and "swap_mib" not in scenario.env:
            raise ScenarioError(f"{scenario.name}: op {index} {op[0]}", "it needs swap_mib in env, which is", scenario.env)
        if op[0] == "reclaim" and not scenario.env.get("memcg"):
            raise ScenarioError(f"{scenario.name}: op {index} {op[0]}", "it needs memcg in env, which is", scenario.env)
    if (unknown := modelled(scenario)) is not None:
        raise ScenarioError(scenario.name, "the model has no such operation, so there is nothing to expect", unknown)


# ---------------------------------------------------------------- text


def _text(value: str) -> str:
    """A string of C."""
    plain = {'"': '\\"', "\\": "\\\\", "?": "\\?"}
    said = (plain.get(one, one) if " " <= one <= "~" else "".join(f"\\{byte:03o}" for byte in one.encode()) for one in value)
    return '"' + "".join(said) + '"'


def _comment(value: str) -> str:
    """A text that ends no comment, and begins no other one."""
    shown = "".join(one if " " <= one <= "~" or one == "\n" else "?" for one in value)
    return shown.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?")


def _wrapped(line: str) -> str:
    """A line of the program, broken where it is too long."""
    if len(line) <= _WIDTH or '"' in line:
        return f"\t{line}\n"
    parts = textwrap.wrap(line, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\t" + "\n\t\t".join(parts) + "\n"


def _prot(text: str) -> str:
    return "PROT_NONE" if text == "none" else " | ".join(_PROT[letter] for letter in "rwx" if letter in text)


# ---------------------------------------------------------------- helpers


def _blocks(needs: Iterable[str]) -> list[str]:
    """The text of all blocks that are needed, in the order of the files: what calls stands behind what is called."""
    found: dict[str, tuple[list[str], str]] = {}
    for name in _FILES:
        parts = _BLOCK.split(Path(__file__).with_name(f"reproduce_{name}.c").read_text(encoding="utf-8"))
        for block, wants, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
            found[block] = (wants or "").replace(",", " ").split(), text
    wanted: set[str] = set()
    todo = ["includes", "core", "show", "shared", "compare", "main", *needs]
    while todo:
        if (name := todo.pop()) not in wanted:
            wanted.add(name)
            todo += found[name][0]
    return [text.rstrip("\n") + "\n\n" for name, (_, text) in found.items() if name in wanted]


def _head(scenario: Scenario, version: str) -> str:
    """What a reader sees first."""
    note = f" * {_comment(scenario.note)}\n *\n" if scenario.note else ""
    note = "\n".join(part for line in note.split("\n") for part in textwrap.wrap(line, _WIDTH, subsequent_indent=" * ") or [line])
    return (
        f"/* {_comment(scenario.name)}: what KSM does, beside what a model of Linux {version} expects.\n *\n{note}"
        " *\tgcc -std=gnu11 -Wall -Wextra -O1 -o reproduce THIS.c && sudo ./reproduce\n *\n"
        " * It ends with 0 where all is equal, 1 where something differs, 2 where it can't be run. KSM must not be in use:\n"
        " * its settings are changed, and put back at the end. The scenario is at the end of this file; what stands before\n"
        " * it starts the processes and lets ksmd scan batch by batch. Made by ksmwalk.\n */\n\n"
    )


def _tables(recording: Recording, writer: _Writer, version: str) -> str:
    """What the helpers have to know of this scenario."""
    scenario = recording.scenario
    around = {"enabled": scenario.env.get("thp", "madvise")}
    for kib in FOLIO_KIB:
        around[f"hugepages-{kib}kB/enabled"] = scenario.env.get(f"mthp_{kib}", "never")
    around |= {key: str(value) for key, value in scenario.env.items() if key.startswith("khugepaged/")}
    tunables = [(key, str(value), str(run.WITHOUT.get(key, ""))) for key, value in scenario.tunables.items()]
    mib, cgroup = scenario.env.get("swap_mib"), bool(scenario.env.get("memcg"))
    switches = {
        "SETTLE": int(scenario.settle),
        "SHOW_SWAPPED": int(shows_swap_entries(scenario)),
        "NR_COUNTERS_ROOM": len(COUNTERS),
        "MOST_SPANS": 2 + sum(op[0] in ("mmap", "mremap", "watch") for op in scenario.ops),
        "TITLE": _text(scenario.name),
        "MODEL": _text(version),
        "LEFT_ALONE": f"{writer.left_alone:#x}UL",
        "MAKE_SWAP()": f"make_swap({mib})" if mib else "((void)0)",
        "MAKE_CGROUP()": "make_cgroup()" if cgroup else "((void)0)",
        "JOIN_CGROUP(pid)": "join_cgroup(pid)" if cgroup else "((void)(pid))",
        "LET_GO(p)": "drop_held(p)" if "held" in writer.needs else "((void)(p))",
        "READ_PAGES": "read_span" if "giant" in writer.needs else "read_part",
        "SHOW_VMSTAT()": "show_vmstat(0)" if scenario.vmstat else "((void)0)",
        "SHOW_VMSTAT_FIRST()": "show_vmstat(1)" if scenario.vmstat else "((void)0)",
    }
    names = ", ".join([*writer.enum.values(), "NR_PROCESSES"])
    shown = ", ".join([*map(_text, writer.enum), "NULL"])
    lines = [
        *(f"#define {key} {value}" for key, value in switches.items()),
        f"enum {{ {names} }};",
        f"static const char *const name[] = {{{shown}}};",
        f"static const char *const counter[] = {{{', '.join(map(_text, COUNTERS))}}};",
        f"static const char *const unsteady[] = {{{', '.join([*map(_text, recording.nondet), 'NULL'])}}};",
        _rows("knob", [(key, value) for key, value in knobs.DEFAULTS.items()], 2),
        _rows("around", list(around.items()), 2),
        _rows("tunable", [*tunables, ("", "", "")], 3),
    ]
    if scenario.vmstat:
        lines.append(f"static const char *const watched[] = {{{', '.join(map(_text, scenario.vmstat))}}};")
    return "\n".join(lines) + "\n\n"


def _rows(name: str, rows: list[tuple[str, ...]], width: int) -> str:
    inside = "".join(f"\t{{{', '.join(map(_text, one))}}},\n" for one in rows)
    return f"static const char *const {name}[][{width}] = {{\n{inside}}};"


# ---------------------------------------------------------------- the scenario


class _Writer:
    """Writes the scenario, and notes which helpers that needs."""

    def __init__(self, scenario: Scenario, records: list[Record]):
        self.scenario, self.records = scenario, records
        self.needs: set[str] = set()
        self.names: set[str] = set()
        made = {name for op in scenario.ops if (name := row(op).made(op)) is not None}
        plain = all(re.fullmatch("[A-Z][0-9]{0,3}", name) for name in made)
        #: in the order in which records have them
        self.enum = {name: name if plain else f"P_{name}" for name in sorted(made)}
        ids = {number for op in scenario.ops for number in row(op).contents(op)}
        self.left_alone = next(number for number in range((1 << 64) - 1, 0, -1) if number not in ids)
        self._went_out = False
        if scenario.vmstat:
            self.needs.add("vmstat")
        if scenario.env.get("swap_mib"):
            self.needs.add("swap")
        if scenario.env.get("memcg"):
            self.needs.add("cgroup")
        if any(n > _LARGE_SPAN for op in scenario.ops if row(op).maps or op[0] == "watch" for _, n in row(op).spans(op)):
            self.needs.add("giant")

    def body(self) -> str:
        """The function `scenario`, and what its names are where headers lack them."""
        out, index, last = [], 0, -1
        for number, op in self.scenario.steps():
            if number != last:
                out.append(f"\n\t// {record_text(self.scenario.ops[number])}\n")
            last = number
            out += map(_wrapped, self._said(op))
            out += map(_wrapped, self._expected(self.records[index], op))
            index += 1
        names = "".join(f"#ifndef {name}\n#define {name} {_NAMES[name]}\n#endif\n" for name in sorted(self.names))
        return f"{names}\nstatic void scenario(void)\n{{{''.join(out)}}}\n"

    def _expected(self, record: Record, op: list[Any]) -> Iterable[str]:
        if isinstance(record.get("ret", 0), int) and record.get("ret"):
            yield f"returned({record['ret']});"
        if record.get("c"):
            yield f"counters({_text(' '.join(f'{key}={value}' for key, value in record['c'].items()))});"
        for name, line in record.get("s", {}).items():
            yield f"stat_of({self.enum[name]}, {', '.join('UNSHOWN' if one is None else str(one) for one in line)});"
        for name, runs in record.get("p", {}).items():
            yield f"pages({self.enum[name]}, {_text(' '.join(f'{vpn}+{n}:{code}' for vpn, n, code in runs))});"
        if record.get("v"):
            yield f"vmstat({_text(' '.join(f'{key}={value}' for key, value in record['v'].items()))});"
        label = record_text(op).replace('"', "")
        yield f"compare({_text(label if len(label) <= _MOST_LABEL else label[: _MOST_LABEL - 4] + ' ...')});"

    # ------------------------------------------------------------ operations

    def _said(self, op: list[Any]) -> list[str]:
        """An operation as calls."""
        name, *args = op
        known = _SYSCALLS.get(name)
        if known is not None:
            return [self._call(args[0], known(*args[1:]))]
        if name == "syscall":
            number = _CALLS.get(args[1], str(args[1]))
            return [self._call(args[0], ", ".join([number, *(f"{one & (1 << 64) - 1:#x}UL" for one in args[2:])]))]
        said: list[str] = getattr(self, f"_say_{name}", self._plain)(*op)
        return said

    def _call(self, name: str, words: str) -> str:
        self.names |= {word for word in re.findall(r"\w+", words) if word in _NAMES}
        return f"in({self.enum[name]}, {words});"

    def _op(self, block: str, *args: object, call: str = "") -> list[str]:
        """A call of the function that a block has."""
        self.needs.add(block)
        text = ", ".join(self.enum.get(one, one) if isinstance(one, str) else str(one) for one in args)
        self.names |= {word for word in re.findall(r"\w+", text) if word in _NAMES}
        return [f"op_{call or block}({text});"]

    def _plain(self, name: str, *args: Any) -> list[str]:
        """What is said in C as in the scenario."""
        return self._op(name, *args)

    def _say_spawn(self, name: str, who: str) -> list[str]:
        return self._op(name, who)

    def _say_vforked(self, name: str, who: str) -> list[str]:
        return self._op("vfork", who, call=name)

    def _say_mmap(self, name: str, who: str, vpn: int, n: int, options: dict[str, Any] | None = None) -> list[str]:
        options = options or {}
        flags = ["MAP_SHARED" if options.get("shared") else "MAP_PRIVATE", *(_MAP[key] for key in _MAP if options.get(key))]
        block = "mmap_file" if options.get("file") else name
        return self._op(block, who, vpn, n, _prot(options.get("prot", "rw")), " | ".join(flags))

    def _say_mremap(
        self, name: str, who: str, vpn: int, n: int, new_n: int, new_vpn: int | None, options: dict[str, int] | None = None
    ) -> list[str]:
        flags = [] if new_vpn is None else ["MREMAP_MAYMOVE", "MREMAP_FIXED"]
        if (options or {}).get("dontunmap"):
            flags = ["MREMAP_DONTUNMAP", *(flags or ["MREMAP_MAYMOVE"])]
        return self._op(name, who, vpn, n, new_n, " | ".join(flags) or "0", new_vpn or 0)

    def _say_madvise(self, name: str, who: str, vpn: int, n: int, advice: str) -> list[str]:
        self._went_out |= advice == "pageout"
        return [self._call(who, f"SYS_madvise, AT({vpn}), PAGES({n}), MADV_{advice.upper()}")]

    def _say_advise(self, name: str, who: str, other: str, vpn: int, n: int, advice: str) -> list[str]:
        self._went_out |= advice == "pageout"
        self.names |= {"SYS_pidfd_open", "SYS_process_madvise"}
        return self._op(name, who, other, vpn, n, f"MADV_{advice.upper()}")

    def _say_fill(self, name: str, who: str, vpn: int, contents: list[int | None]) -> list[str]:
        ids = ", ".join("LEFT_ALONE" if one is None else _number(one) for one in contents)
        return self._op(name, who, vpn, f"IDS({ids})") if contents else []

    def _say_write(self, name: str, who: str, pairs: list[list[int]]) -> list[str]:
        inside = ", ".join(f"{{{vpn}, {_number(content)}}}" for vpn, content in pairs)
        return self._op(name, who, f"(const u64[][2]){{{inside}}}", len(pairs)) if pairs else []

    _say_pwrite = _say_write

    def _say_touch(self, name: str, who: str, vpns: list[int]) -> list[str]:
        return self._op(name, who, f"IDS({', '.join(map(str, vpns))})") if vpns else []

    def _say_store(self, name: str, who: str, vpn: int, offset: int, stored: list[int]) -> list[str]:
        return self._op(name, who, vpn, offset, f"BYTES({', '.join(map(str, stored))})")

    def _say_uffd(self, name: str, who: str, vpn: int, n: int, modes: dict[str, int]) -> list[str]:
        return self._op(name, who, vpn, n, sum(bit for key, bit in UFFD_BITS.items() if modes.get(key)))

    def _say_uffd_copy(
        self, name: str, who: str, vpn: int, contents: list[int], options: dict[str, int] | None = None
    ) -> list[str]:
        mode = 2 if (options or {}).get("wp") else 0
        return self._op(name, who, vpn, mode, f"IDS({', '.join(map(_number, contents))})") if contents else []

    def _say_set(self, name: str, knob: str, value: int | str) -> list[str]:
        return self._op(name, _text(knob), _text(str(value)))

    def _say_run(self, name: str, value: int) -> list[str]:
        return self._op(name, _text(str(value)))

    def _say_cpu(self, name: str, who: str, cpu: int) -> list[str]:
        return self._op("cpu_ksmd", cpu) if who == "ksmd" else self._op(name, who, cpu)

    def _say_reclaim(self, name: str) -> list[str]:
        wait, self._went_out = int(self._went_out), True
        return self._op(name, wait)


def _number(one: int) -> str:
    return str(one) if one < 1 << 31 else f"{one:#x}UL"


#: operations that are one system call of the process
_SYSCALLS: dict[str, Callable[..., str]] = {
    "munmap": lambda vpn, n: f"SYS_munmap, AT({vpn}), PAGES({n})",
    "mprotect": lambda vpn, n, prot: f"SYS_mprotect, AT({vpn}), PAGES({n}), {_prot(prot)}",
    "mlock": lambda vpn, n: f"SYS_mlock, AT({vpn}), PAGES({n})",
    "mlock2": lambda vpn, n, flags: f"SYS_mlock2, AT({vpn}), PAGES({n}), {flags}",
    "munlock": lambda vpn, n: f"SYS_munlock, AT({vpn}), PAGES({n})",
    "mlockall": lambda flags: f"SYS_mlockall, {flags}",
    "munlockall": lambda: "SYS_munlockall",
    "prctl": lambda value: f"SYS_prctl, PR_SET_MEMORY_MERGE, {value}",
    "prctl_get": lambda: "SYS_prctl, PR_GET_MEMORY_MERGE",
    "thpdisable": lambda value: f"SYS_prctl, PR_SET_THP_DISABLE, {value}",
}
