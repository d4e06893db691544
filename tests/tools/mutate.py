"""Break the engine one line at a time and see that the recordings of the real ksmd, or the tests of a room, notice.

    python tests/tools/mutate.py [--ci] [--recordings] [--only NAME] [--count N] [--seed N] [--jobs N]
    python tests/tools/mutate.py --list | --facts
    python tests/tools/mutate.py --aimed [NAME ...] [--scenarios N]

Mutations are made by hand (`mutations.py`), each for facts about the kernel (`mutation_facts.py`), and drawn by operators
(`mutation_sites.py`). Each is built into a copy of
the package without optimisation, which then replays the recordings until one differs; where none does, it runs the
tests of the rooms. A crash and a run without end count as noticed. Code that is there for speed alone (prefetches,
warming the cache, `kw_check`) is not broken; counts of work done are, like any other line: the tests hold them exactly.

What nothing notices survives, unless `EQUIVALENT` argues in a sentence that nothing can; `--aimed` puts that to the
proof with random programs that reach the line. Exit code 1 if one survived.
"""

from __future__ import annotations

import argparse
import atexit
import concurrent.futures
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import mutation_facts
from mutant_runs import STYLES
from mutation_sites import PACKAGE, ROOT, Site, drawn, engine_files, memory_side
from mutations import CI, EQUIVALENT, FIRST, MUTATIONS, UNRECORDED

SPEC = importlib.util.find_spec("ksmwalk")
INSTALLED = Path(SPEC.origin).parent if SPEC else PACKAGE
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
RUNS = Path(__file__).with_name("mutant_runs.py")
#: rooms of the engine whose tests need neither root nor the kernel of this machine, those that notice most first
ROOMS = ("ksm", "host", "memory", "tables", "layout", "sources", "estimates")
#: tests that replay the recordings once more, or see to threads, other processes and time
LEFT_OUT = "not (real or golden or contract or after_every_operation or saved_in_mid or two_processes or threads or million)"
RECORDING, TESTS, EQUAL, SURVIVED, VOID = "recording", "tests", "equivalent", "SURVIVED", "does not compile"
LEFT = "left to tests"
PROBE = '''
cdef extern from *:
    """
    extern long kw_probe_count;
    static int kw_probe(void) { kw_probe_count++; return 0; }
    """
    int kw_probe() noexcept nogil

'''


@dataclass(frozen=True)
class Mutation:
    """One broken line: the file it stands in (within the package), where, and the whole file as broken."""

    name: str
    file: str
    line: int
    text: str
    by_hand: bool


@dataclass(frozen=True)
class Outcome:
    """What became of a mutation: how it was noticed, by what, in how many seconds."""

    mutation: Mutation
    how: str
    what: str
    seconds: float

    @property
    def noticed(self) -> str:
        """The name of the recording, or the test."""
        return self.what if self.how == TESTS else re.split(r" record |: ", self.what)[0]


def by_hand() -> list[Mutation]:
    # Rules stand in Python as well: those of clocks, of loading, of whole operations.
    paths = [*engine_files(), *sorted(PACKAGE.rglob("*.py"))]
    texts = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in paths}
    out = []
    for name, (good, bad, *_) in MUTATIONS.items():
        files = [file for file, text in texts.items() for _ in range(text.count(good))]
        if len(files) != 1:
            raise SystemExit(f"mutation {name!r}: its text occurs {len(files)} times in the engine, not once: {files}")
        text = texts[files[0]]
        at = text.index(good) + len(good) - len(good.lstrip("\n"))
        out.append(Mutation(name, files[0], text.count("\n", 0, at), text.replace(good, bad), True))
    return out


def by_operators(seed: int, count: int) -> list[Mutation]:
    def mutation(site: Site) -> Mutation:
        return Mutation(site.name, site.file, site.line, site.apply((PACKAGE / site.file).read_text()), False)

    return [mutation(site) for site in drawn(seed, count)]


# ---------------------------------------------------------------- building


def users(file: str) -> list[str]:
    """The compiled modules that a change of this file concerns, without suffix."""
    if file.endswith(".py"):
        return []
    if file.endswith(".pyx"):
        return [file.removesuffix(".pyx")]
    dotted = "ksmwalk." + file.removesuffix(".pxd").replace("/", ".")
    found, seen, todo = set(), set(), [dotted]
    while todo:
        name = todo.pop()
        for path in engine_files():
            within = path.relative_to(PACKAGE).with_suffix("").as_posix()
            own = "ksmwalk." + within.replace("/", ".") == name
            if own or re.search(rf"^from {re.escape(name)} cimport", path.read_text(), re.M):
                if path.suffix == ".pyx":
                    found.add(within)
                elif path not in seen:
                    seen.add(path)
                    todo.append("ksmwalk." + within.replace("/", "."))
    return sorted(found)


@functools.cache
def snapshot() -> Path:
    """Sources, compiled modules and tests as they are when this is asked first: a run goes on while they change."""
    package = Path(tempfile.mkdtemp(prefix="mutate-")) / "ksmwalk"
    atexit.register(shutil.rmtree, package.parent)
    shutil.copytree(ROOT / "tests", package.parent / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", package.parent)
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "*.c", "*.so"))
    for compiled in INSTALLED.rglob("*.so"):
        shutil.copy(compiled, package / compiled.relative_to(INSTALLED))
    return package


def copy_package(work: Path) -> Path:
    """A copy of the sources, the compiled modules as links to those of the snapshot."""
    package = work / "ksmwalk"
    shutil.copytree(snapshot(), package, ignore=shutil.ignore_patterns("*.so"))
    for compiled in snapshot().rglob("*.so"):
        (package / compiled.relative_to(snapshot())).symlink_to(compiled)
    return package


def build(work: Path, module: str) -> None:
    """Compile one module of a copy, quickly; `subprocess.CalledProcessError` if it is no program any more."""
    directives = ["-X", "cdivision=True", "-X", "boundscheck=False", "-X", "wraparound=False", "-X", "initializedcheck=False"]
    target = work / f"ksmwalk/{module}{SUFFIX}"
    target.unlink(missing_ok=True)
    include = sysconfig.get_path("include")
    for command in (
        [sys.executable, "-m", "cython", "-3", *directives, f"ksmwalk/{module}.pyx", "-o", "mutant.c"],
        ["gcc", "-O0", "-w", "-shared", "-fPIC", "-fwrapv", f"-I{include}", "-Iksmwalk/layout", "mutant.c", "-o", str(target)],
    ):
        subprocess.run(command, cwd=work, capture_output=True, text=True, check=True)


def make(work: Path, mutation: Mutation, text: str) -> bool:
    """Build a mutant into a fresh copy; False if it does not compile."""
    package = copy_package(work)
    (package / mutation.file).write_text(text)
    try:
        for module in users(mutation.file):
            build(work, module)
    except subprocess.CalledProcessError:
        return False
    return True


# ---------------------------------------------------------------- noticing


def run(command: list[str], work: Path, seconds: float) -> tuple[str, int | str]:
    """(what it printed, exit code or why it has none)."""
    # With guards around the arenas a mutant that looks beyond one crashes there and then.
    own = {"PYTHONPATH": str(work), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1", "KSMWALK_GUARD": "1"}
    environment = {**os.environ, **own}
    try:
        done = subprocess.run(
            command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=seconds, check=False,
        )
        return done.stdout, done.returncode
    except subprocess.TimeoutExpired as expired:
        return (expired.stdout or b"").decode(errors="replace"), f"no end after {seconds:g} s"


def recordings(work: Path, *words: str, folder: Path | None = None) -> str:
    """The recording that a mutant replays otherwise, of those with such a word first; empty if there is none."""
    folder = folder or snapshot().parent / "tests" / "golden"
    out, code = run([sys.executable, str(RUNS), "golden", str(work), str(folder), *words], work, 1800)
    caught = re.findall(r"^caught (.*)$", out, re.M)
    tried = re.findall(r"^try (.*)$", out, re.M)
    if caught:
        return caught[0]
    if code == 0:
        return ""
    if "ModuleNotFoundError" in out:
        raise SystemExit(f"the copy of the package is not whole:\n{out}")
    last = out.strip().split("\n")[-1]
    return f"{tried[-1] if tried else 'the import'}: {code if last.startswith('try ') or not last else last[:80]}"


def pytest(work: Path, *words: str) -> tuple[list[str], str]:
    """Tests that fail with what is in `work`, ready to be named again, and how it ended if not by a failure."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-m", "not root", "-k", LEFT_OUT]
    out, code = run([*command, f"--basetemp={work / 'tmp'}", *words], work, 300)
    failed = re.findall(r"^(?:FAILED|ERROR) (?:\S*/)?(tests/\S+)", out, re.M)
    return failed, "" if code in (0, 1) else f"{code}: {(out.strip().splitlines() or ['no output'])[-1][:80]}"


def tests(work: Path, file: str, known: str = "") -> str:
    """The test of a room that fails with a mutant, the one named before all others; empty if there is none."""
    room = "sources" if file == "host/_load.pyx" else file.split("/")[0]
    root = snapshot().parent
    folders = [root / "tests" / name for name in dict.fromkeys((room, *ROOMS)) if (root / "tests" / name).is_dir()]
    # of processes of this machine, of files, of executors
    elsewhere = ("sources/test_sources_capture", "sources/test_harmless", "sources/test_captures", "estimates/test_sweep")
    words = [f"--ignore={root / 'tests' / name}.py" for name in elsewhere]
    if "::" in known and (root / "tests" / known.split("::")[0]).exists() and any(pytest(work, str(root / "tests" / known))):
        return known
    while True:
        failed, ended = pytest(work, *words, *map(str, folders))
        if not failed:
            return ended
        # Once more alone: a test that fails now and then proves nothing.
        again, ended = pytest(work, str(root / failed[0]))
        if again or ended:
            return failed[0].removeprefix("tests/")
        words.append(f"--deselect={failed[0]}")


def engine_passes(outcomes: list[Outcome]) -> None:
    """Raise if the engine as it stands fails what told mutants from it."""
    golden = snapshot().parent / "tests" / "golden"
    names = {one.noticed for one in outcomes if one.how == RECORDING}
    failing = sorted({str(golden.parent / one.what) for one in outcomes if one.how == TESTS and "::" in one.what})
    with tempfile.TemporaryDirectory() as folder:
        work, some = Path(folder), Path(folder) / "recordings"
        copy_package(work)
        for path in golden.rglob("*.json"):
            if path.stem in names:
                (some / path.relative_to(golden)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, some / path.relative_to(golden))
        what = recordings(work, folder=some) or (failing and pytest(work, *failing)[0])
    if what:
        raise RuntimeError(f"the engine itself fails {what}")


def mutate(mutation: Mutation, with_tests: bool = True) -> Outcome:
    """Build a mutant and show it to the recordings, then (but for those argued to be equivalent) to the tests."""
    start = time.monotonic()
    known = mutation_facts.caught().get(mutation.name, "")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if not make(work, mutation, mutation.text):
            how, what = VOID, ""
        elif mutation.name not in UNRECORDED and (what := recordings(work, *filter(None, (known, *FIRST.get(mutation.name, ()))))):
            how = RECORDING
        elif what := EQUIVALENT.get(mutation.name, ""):
            how = EQUAL
        elif with_tests and (what := tests(work, mutation.file, known)):
            how = TESTS
        elif what := "" if with_tests else UNRECORDED.get(mutation.name, ""):
            how = LEFT
        else:
            how = SURVIVED
    return Outcome(mutation, how, what, time.monotonic() - start)


# ---------------------------------------------------------------- random programs aimed at a line


def probed(mutation: Mutation) -> str:
    """The text of a mutant that counts how often its statement is reached."""
    lines = mutation.text.split("\n")
    at, open_ = mutation.line, 0
    while True:  # back to where the statement starts
        line = lines[at]
        before = sum(lines[at - 1].count(c) for c in "([{") - sum(lines[at - 1].count(c) for c in ")]}")
        open_ += before
        if open_ <= 0:
            break
        at -= 1
    indent = line[: len(line) - len(line.lstrip())]
    if line.lstrip().startswith("elif "):
        lines[at:at] = [f"{indent}elif kw_probe():", f"{indent}    pass"]
    else:
        lines.insert(at, f"{indent}kw_probe()")
    first = next(i for i, text in enumerate(lines) if re.match(r"cdef (?!extern)", text))
    while lines[first - 1].startswith(("@", "#")):
        first -= 1
    lines[first:first] = PROBE.split("\n")
    return "\n".join(lines)


class Pair:
    """The engine and a mutant of it side by side, on the same random programs."""

    def __init__(self, work: Path, mutation: Mutation):
        self.work = work
        (work / "probe.c").write_text("long kw_probe_count;\n")
        subprocess.run(["gcc", "-shared", "-fPIC", "probe.c", "-o", "probe.so"], cwd=work, check=True)
        if not make(work / "mutant", mutation, probed(mutation)):
            raise SystemExit(f"{mutation.name!r}: does not compile with its probe")
        self.engine = snapshot().parent

    def answers(self, package: Path, style: str, seed: int, first: int, count: int) -> dict[str, tuple[int, str]]:
        command = [sys.executable, str(RUNS), "aimed", str(package), style, str(seed), str(first), str(count),
                   str(self.work / "probe.so")]
        out, code = run(command, self.work, 60 + count * 0.5)
        found = re.findall(r"^(\d+) (\d+) (\S+)$", out, re.M)
        answers = {number: (int(reached), digest) for number, reached, digest in found}
        if code != 0:
            answers[str(first + len(found))] = (1, f"ended with {code}")
        return answers

    def compare(self, style: str, seed: int, first: int, count: int) -> tuple[int, str]:
        """(programs that reached the line, the first that the two answer differently)."""
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            engine = pool.submit(self.answers, self.engine, style, seed, first, count)
            mutant = self.answers(self.work / "mutant", style, seed, first, count)
        wanted = engine.result()
        for number, (_, digest) in mutant.items():
            if wanted.get(number, (0, ""))[1] != digest:
                return 0, f"{style} {seed} {number}"
        return sum(reached > 0 for reached, _ in mutant.values()), ""


def aim(mutation: Mutation, wanted: int, seed: int) -> tuple[int, int, str]:
    """Random programs until `wanted` reached the line: (reached, drawn, what told the two apart)."""
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(Path(folder), mutation)
        rate: dict[str, float] = {}
        for style in (*STYLES, "scenario"):
            start = time.monotonic()
            reached, told = pair.compare(style, seed, 0, 60)
            if told:
                return 0, 60, told
            rate[style] = reached / (time.monotonic() - start)
        # The two styles that reach it most often; all of them where none does.
        best = sorted(rate, key=lambda style: -rate[style])[:2] if any(rate.values()) else list(rate)
        best = [style for style in best if rate[style] or not any(rate.values())]
        total, tried, first = 0, 0, 60
        while total < wanted and tried < 4 * wanted:
            for style in best:
                reached, told = pair.compare(style, seed, first, 500)
                total, tried = total + reached, tried + 500
                if told:
                    return total, tried, told
            first += 500
            if not any(rate.values()) and tried >= wanted and not total:
                break
        return total, tried, ""


# ---------------------------------------------------------------- the report


def table(outcomes: list[Outcome]) -> str:
    kinds = (RECORDING, TESTS, EQUAL, LEFT, SURVIVED)
    rows = [("module", "mutations", "by recordings", "by tests", "equivalent", LEFT, "survived")]
    for file in sorted({outcome.mutation.file for outcome in outcomes}):
        count = Counter(outcome.how for outcome in outcomes if outcome.mutation.file == file)
        rows.append((file, str(sum(count[kind] for kind in kinds)), *(str(count[kind]) for kind in kinds)))
    count = Counter(outcome.how for outcome in outcomes)
    rows.append(("all", str(sum(count[kind] for kind in kinds)), *(str(count[kind]) for kind in kinds)))
    side = [outcome for outcome in outcomes if memory_side(outcome.mutation.file) and outcome.how != VOID]
    lines = [f"{row[0]:20}" + "".join(f"{cell:>15}" for cell in row[1:]) for row in rows]
    return "\n".join([*lines, f"{len(side)} of them in faults, areas, folios and ranges"])


def chosen(args: argparse.Namespace) -> list[Mutation]:
    every = by_hand() + by_operators(args.seed, args.count)
    if args.ci:
        missing = set(CI) - {mutation.name for mutation in every}
        if missing:
            raise SystemExit(f"CI names mutations that there are not: {sorted(missing)}")
        return [mutation for mutation in every if mutation.name in CI]
    if args.aimed == []:
        return [mutation for mutation in every if mutation.name in EQUIVALENT]
    wanted = args.aimed or args.only or [""]
    return [mutation for mutation in every if any(part in mutation.name for part in wanted)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ci", action="store_true", help="a dozen quick ones over all rooms")
    parser.add_argument("--recordings", action="store_true", help="show them to the recordings only")
    parser.add_argument("--list", action="store_true", help="name the mutations and run none")
    parser.add_argument("--facts", action="store_true", help="facts, the mutations that break each, what noticed them; run none")
    parser.add_argument("--save", action="store_true", help="keep what noticed each that was made by hand")
    parser.add_argument("--only", metavar="NAME", nargs="+", help="only mutations whose name contains one of these")
    parser.add_argument("--seed", type=int, default=1, help="of the draw, and of random programs (default: 1)")
    parser.add_argument("--count", type=int, default=90, help="mutations drawn beside those made by hand (default: 90)")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--aimed", metavar="NAME", nargs="*", help="random programs aimed at lines (default: of EQUIVALENT)")
    parser.add_argument("--scenarios", type=int, default=10000, help="how many of them have to reach it (default: 10000)")
    args = parser.parse_args()
    if args.facts:
        print(mutation_facts.table())
        return 0
    mutations = chosen(args)
    if not mutations:
        parser.error("no mutation of such a name, by hand or in this draw")
    snapshot()
    if args.list:
        for mutation in mutations:
            print(f"{mutation.file:20}  {'by hand' if mutation.by_hand else 'drawn  '}  {mutation.name}")
        return 0
    if args.aimed is not None:
        survived = False
        for mutation in mutations:
            reached, tried, told = aim(mutation, args.scenarios, args.seed)
            outcome = f"told apart by {told}" if told else "not told apart"
            print(f"{mutation.name}\n    {reached} of {tried} reached it; {outcome}", flush=True)
            survived |= (not told) != (mutation.name in EQUIVALENT)
        return int(survived)
    outcomes: list[Outcome] = []
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        futures = [pool.submit(mutate, mutation, not args.recordings) for mutation in mutations]
        for done in concurrent.futures.as_completed(futures):
            outcome = done.result()
            outcomes.append(outcome)
            print(f"{outcome.how:16}  {outcome.mutation.name:70}  {outcome.what}  ({outcome.seconds:.0f} s)", flush=True)
            if args.save and outcome.how in (RECORDING, TESTS):
                mutation_facts.save({outcome.mutation.name: outcome.noticed})
    engine_passes(outcomes)
    print(table(outcomes))
    # One made by hand compiled once: that it does not is no proof of anything (there may be no Cython, or no gcc).
    return int(any(one.how == SURVIVED or one.how == VOID and one.mutation.by_hand for one in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
