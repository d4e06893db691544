"""ChampSim with its own memory and with ours: build both, run ChampSim's tests on ours, compare two-core runs.

    python prove.py CHAMPSIM WORK [--jobs N] [--warmup N] [--instructions N] [--json FILE]

CHAMPSIM is a checkout of commit 2ff2501, which stays as it is; everything is done in copies of it below WORK, and what is there
already is not built again. Needs g++, make, and what ChampSim needs: CLI11, nlohmann-json, fmt, bzip2, lzma, zlib, Catch2 (Debian:
libcli11-dev nlohmann-json3-dev libfmt-dev libbz2-dev liblzma-dev zlib1g-dev catch2); Python with libpython and ksmwalk.

Ends with 1 where something is not as it should be: a test fails; the statistics of a run in which no two pages are alike
differ in one digit; equal pages are not shared, or do not show in the last level cache; a stale translation was used.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import apply
import traces

import ksmwalk

#: ChampSim's tests of virtual memory and page-table walks, and what they are compiled with
TESTS = re.compile(r"(000|092|60[0-3]|80[1-3])-.*\.cc|instr\.(cc|h)|.*\.hpp|(pref|repl)_interface\.h")
CATCH = ["/usr/include/catch2", "/usr/include"]


def run(command: list[str], folder: Path, log: Path | None = None, **env: str) -> str:
    """What a command prints; into a file too. SystemExit with its last lines where it fails."""
    done = subprocess.run(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **env}
    )
    if log:
        log.write_text(done.stdout)
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-30:])
        raise SystemExit(f"{shlex.join(command)} in {folder} ended with {done.returncode}:\n{tail}")
    return done.stdout


def copy(champsim: Path, target: Path, changed: bool) -> None:
    """A copy of ChampSim for two cores, with stand-ins for what its package manager would bring."""
    if target.exists():
        return
    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(champsim, unfinished, ignore=shutil.ignore_patterns(".git", ".csconfig", "bin"))
    if changed:
        apply.apply(unfinished)
        for test in (unfinished / "test" / "cpp" / "src").iterdir():
            if not TESTS.fullmatch(test.name):
                test.unlink()
    installed = unfinished / "vcpkg_installed" / "x64-linux"
    for folder in ("include", "lib"):
        (installed / folder).mkdir(parents=True, exist_ok=True)
    for name in ("CLI11", "Catch2", "Catch2Main"):
        run(["ar", "rcs", f"lib{name}.a"], installed / "lib")
    config = json.loads((unfinished / "champsim_config.json").read_text())
    config["num_cores"] = 2
    (unfinished / "two.json").write_text(json.dumps(config))
    unfinished.rename(target)
    run(["./config.sh", "two.json"], target)


def build(folder: Path, jobs: int, goal: str = "all") -> None:
    where, version = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LDVERSION")
    include = [ksmwalk.get_include(), sysconfig.get_path("include"), *(p for p in CATCH if Path(p, "catch.hpp").exists())]
    flags = " ".join(f"-I{path}" for path in include)
    run(
        ["nice", "make", f"-j{jobs}", goal, f"CPPFLAGS={flags}", f"LDLIBS=-L{where} -Wl,-rpath,{where} -lpython{version}"],
        folder,
        folder / f"make-{goal.replace('/', '-')}.log",
    )


def simulate(folder: Path, where: Path, given: argparse.Namespace, name: str, **env: str) -> dict[str, Any]:
    """One run: its statistics, with what is read out of them."""
    log = folder.parent / f"{name}.txt"
    command = ["bin/champsim", "--hide-heartbeat", "-w", str(given.warmup), "-i", str(given.instructions)]
    command += [str(where / f"core{core}.trace") for core in (0, 1)]
    text = run(command, folder, log, **env)
    region = text[text.index("=== Simulation ===") :].split("\n[KSM]")[0]
    ksm = dict(re.findall(r"(\w[\w ]*): (\d+)", "\n".join(line[6:] for line in text.splitlines() if line.startswith("[KSM] "))))
    llc = {core: re.findall(rf"cpu{core}->LLC TOTAL +ACCESS: +(\d+) HIT: +(\d+) MISS: +(\d+)", region)[-1] for core in "01"}
    return {
        "statistics": region.strip(),
        "ipc": dict(re.findall(r"CPU (\d) cumulative IPC: ([\d.]+)", region)),
        "cycles": dict(re.findall(r"CPU (\d) cumulative IPC: .* cycles: (\d+)", region)),
        "llc_miss": {core: int(counts[2]) for core, counts in llc.items()},
        "llc_access": {core: int(counts[0]) for core, counts in llc.items()},
        "ksm": {key.strip(): int(value) for key, value in ksm.items()},
    }


def row(name: str, result: dict[str, Any]) -> str:
    ksm = result["ksm"]
    cells = [name]
    cells += [" / ".join(result[key][core] for core in "01") for key in ("ipc", "cycles")]
    cells += [f"{sum(result['llc_miss'].values()):,} of {sum(result['llc_access'].values()):,}"]
    counts = ("pages_sharing", "merged", "copied", "TLB entries dropped", "stale")
    cells += [f"{ksm[key]:,}" if key in ksm else "" for key in counts]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("champsim", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=100_000)
    parser.add_argument("--instructions", type=int, default=200_000)
    parser.add_argument("--json", type=Path, help="keep the figures here")
    given = parser.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("KSMWALK_PYTHON", sys.executable)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(ksmwalk.__file__).parents[1]), os.environ.get("PYTHONPATH")]))

    own, ours = work / "own", work / "ksm"
    copy(given.champsim.resolve(), own, changed=False)
    copy(given.champsim.resolve(), ours, changed=True)
    for folder in (own, ours):
        build(folder, given.jobs)
    build(ours, given.jobs, "test/bin/000-test-main")
    tests = run(["test/bin/000-test-main"], ours, work / "tests.txt").strip().splitlines()[-1]
    print(f"ChampSim's tests of virtual memory and walks, on ksmwalk: {tests}", flush=True)

    pages = {}
    for name, alike in (("unlike", False), ("equal", True)):
        pages[name] = work / name
        pages[name].mkdir(exist_ok=True)
        for core in (0, 1):
            traces.write(pages[name], core, given.warmup + given.instructions, alike)
    results = {
        "own memory": simulate(own, pages["unlike"], given, "own"),
        "ksmwalk, no two pages alike": simulate(ours, pages["unlike"], given, "unlike"),
        "ksmwalk, equal pages": simulate(ours, pages["equal"], given, "equal"),
        "the same, TLBs not told": simulate(ours, pages["equal"], given, "deaf", KSM_DEAF="1"),
    }
    print("\n| memory | IPC of cores 0 / 1 | cycles | LLC misses | pages_sharing | merged | copied | TLB entries dropped | stale |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, result in results.items():
        print(row(name, result))
    if given.json:
        given.json.write_text(json.dumps({"tests": tests, **results}, indent=1))

    base, unlike, equal, deaf = results.values()
    lines = len(base["statistics"].splitlines())
    wrong = []
    if unlike["statistics"] != base["statistics"]:
        wrong.append("the statistics with no two pages alike differ from those with ChampSim's own memory")
    else:
        print(f"\nno two pages alike: all {lines} lines of statistics are the same, digit for digit")
    if unlike["ksm"]["pages_sharing"] or unlike["ksm"]["stale"] or unlike["ksm"]["full_scans"] < 2:
        wrong.append("with no two pages alike ksmd merged something, or did not run")
    if equal["ksm"]["pages_sharing"] < traces.COMMON_PAGES // 2 or equal["ksm"]["copied"] == 0:
        wrong.append("equal pages are not shared, or no store copied one")
    if not sum(equal["llc_miss"].values()) < 0.8 * sum(base["llc_miss"].values()):
        wrong.append("shared frames do not show in the misses of the last level cache")
    if equal["ksm"]["stale"]:
        wrong.append("a stale translation was used")
    if not deaf["ksm"]["stale"]:
        wrong.append("TLBs that are not told of a remapping were not noticed")
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
