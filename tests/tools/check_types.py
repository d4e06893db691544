"""Hold the types to what they promise: mypy --strict, stubtest, and how much of the public interface pyright knows.

    python -P tests/tools/check_types.py

Looks at the package that Python finds, built; with -P that is the installed one. Needs the extra `types`. Without node
(or npm, from which pyright comes) the last check is left out, and the reason is printed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import ksmwalk

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "pyproject.toml"
ALLOWED = Path(__file__).with_name("stubtest_allowlist.txt")
#: percent of the public names whose types pyright must know
KNOWN = 99


def run(folder: str, *words: str | Path) -> None:
    """Run a module of this Python, where no source tree is in the way; end with it if it fails."""
    print("$ python -m", *words, flush=True)
    done = subprocess.run([sys.executable, "-P", "-m", *map(str, words)], cwd=folder)
    if done.returncode:
        raise SystemExit(done.returncode)


def readme(folder: str) -> Path:
    """The README's Python, one file."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    if not blocks:
        raise SystemExit("README.md: no Python in it")
    made = Path(folder, "readme_examples.py")
    made.write_text("\n".join(blocks))
    return made


def pyright(folder: str) -> None:
    """Print what pyright doesn't know of the public interface; end if it knows too little."""
    command = [sys.executable, "-P", "-m", "pyright"]
    if (there := subprocess.run([*command, "--version"], cwd=folder, capture_output=True, text=True)).returncode:
        lines = (there.stderr or there.stdout).strip().splitlines() or ["it says nothing"]
        print(f"left out: pyright can't be run here, it needs node and npm: {lines[-1]}")
        return
    command += ["--pythonpath", sys.executable, "--verifytypes", "ksmwalk", "--ignoreexternal", "--outputjson"]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    try:
        found = json.loads(said.stdout)["typeCompleteness"]
    except (ValueError, KeyError):
        raise SystemExit(f"pyright: {said.stdout or said.stderr}") from None
    for symbol in found["symbols"]:
        if symbol["isExported"] and not symbol["isTypeKnown"]:
            print(symbol["name"], *(one["message"] for one in symbol["diagnostics"]), sep="\n    ")
    score = 100 * found["completenessScore"]
    print(f"pyright knows {score:.1f} % of {sum(found['exportedSymbolCounts'].values())} public names")
    if score < KNOWN:
        raise SystemExit(f"pyright --verifytypes: {score:.1f} %, must be at least {KNOWN} %")


def main() -> None:
    """All checks, one after the other."""
    print(Path(ksmwalk.__file__).parent)
    examples = [*sorted((ROOT / "examples").glob("*.py")), ROOT / "tests" / "package" / "typed_use.py"]
    with tempfile.TemporaryDirectory() as folder:
        run(folder, "mypy", "--config-file", CONFIG, "-p", "ksmwalk")
        run(folder, "mypy", "--config-file", CONFIG, *examples, readme(folder))
        run(folder, "mypy.stubtest", "ksmwalk", "--mypy-config-file", CONFIG, "--allowlist", ALLOWED)
        pyright(folder)


if __name__ == "__main__":
    main()
