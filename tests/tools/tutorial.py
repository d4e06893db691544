"""The tutorial notebook, run from top to bottom: do its cells still show what it is kept with?

    python tests/tools/tutorial.py             # says which cells show something else; 1 if any does
    python tests/tools/tutorial.py --write     # and keeps what they show now

Needs the extras `notebook`, `frames` and `plot`. Pictures are only asked to be there: another matplotlib draws other ones.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "tutorial.ipynb"
#: how HTML of ours begins; that of data frames is another in each of their versions
OURS = '<div style="max-width:70em'


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def executed(notebook: Any) -> Any:
    """The same notebook with the outputs of now, and nothing in it of this machine or moment."""
    with tempfile.TemporaryDirectory() as folder:
        # costs that somebody measured on this machine are no part of it
        names = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR")
        home = dict.fromkeys(names, folder)
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}}, record_timing=False).execute(
            env={**os.environ, **home}
        )
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata = {name: notebook.metadata[name] for name in ("kernelspec",)} | {"language_info": {"name": "python"}}
    return notebook


def shown(cell: Any) -> dict[str, list[str]]:
    """What a cell shows, by kind: texts and our HTML as lines, of the rest how much there is."""
    found: dict[str, list[str]] = {}
    for output in cell.get("outputs", ()):
        kinds = {"text/plain": output["text"]} if output["output_type"] == "stream" else output.get("data", {})
        for kind, value in kinds.items():
            if kind == "text/plain" and "image/svg+xml" in kinds:
                continue
            compared = kind == "text/plain" or value.startswith(OURS)
            found.setdefault(kind, []).extend(value.splitlines() if compared else ["there"])
    return found


def differences(kept: Any, now: Any) -> list[str]:
    """Which cells show something else, and what."""
    found = []
    for number, (before, after) in enumerate(zip(kept.cells, now.cells, strict=True)):
        one, other = shown(before), shown(after)
        for kind in sorted(one.keys() | other.keys()):
            lines = difflib.unified_diff(one.get(kind, []), other.get(kind, []), "kept", "now", lineterm="", n=0)
            if text := "\n".join(line[:200] for line in lines):
                first = before.source.splitlines()[0]
                found.append(f"cell {number} ({first}), {kind}:\n{text}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keep what the cells show now")
    args = parser.parse_args()
    kept = read()
    now = executed(read())
    found = differences(kept, now)
    print(*found or ["all cells show what they are kept with"], sep="\n")
    if args.write:
        nbformat.write(now, NOTEBOOK)
        return 0
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
