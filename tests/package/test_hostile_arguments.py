"""Nonsense in every argument of every public call: an error of ours or an answer that can be explained, nothing broken.

KSMWALK_HOSTILE=all pytest tests/package/test_hostile_arguments.py    # all of them, two minutes
"""

import inspect
import os
import random

import hostile
import pytest

import ksmwalk
from ksmwalk import entries
from ksmwalk.host import TableArena

ALL = hostile.trials()
CLASSES = {name: getattr(ksmwalk, name) for name in ("Host", "Mm", "Vma", "PageTables", "Frames", "Ksm", "KsmScan")}
#: files and what is in them: tests/host/test_host_keep.py and its neighbours
FILES = {"Host.save", "Host.load", "PageTables.save", "PageTables.load"}
SMALL = 500


def test_every_public_call_with_arguments_is_among_them():
    tried = {target.split(" ")[0]: set() for target, _, _ in ALL}
    for target, parameter, _ in ALL:
        tried[target.split(" ")[0]].add(parameter)
    missing = []
    functions = inspect.getmembers(entries, lambda f: inspect.isfunction(f) and f.__module__ == entries.__name__)
    public = {f"entries.{n}": f for n, f in functions if not n.startswith("_")}
    public |= {name: getattr(ksmwalk, name) for name in ksmwalk.__all__ if name.startswith("walk_")}
    for name, cls in CLASSES.items():
        public |= {f"{name}.{n}": f for n, f in inspect.getmembers(cls, callable) if not n.startswith("_")}
        for n, p in inspect.getmembers(cls, lambda p: isinstance(p, property)):
            if p.fset and f"{name}.{n}" not in tried:
                missing.append(f"{name}.{n} = ...")
    for name, function in public.items():
        parameters = [p for p in inspect.signature(function).parameters if p != "self"]
        if name in FILES or not parameters:
            continue
        if set(parameters) - tried.get(name, set()) - {"life"}:
            missing.append(f"{name}({', '.join(parameters)})")
    assert not missing, missing
    assert len(ALL) >= 5000


def test_hostile_arguments():
    todo = ALL if os.environ.get("KSMWALK_HOSTILE") == "all" else random.Random(6).sample(ALL, SMALL)
    bad = hostile.run(todo)
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("target", ["Mm.mremap", "Mm.populate", "Mm.mmap", "Mm.write"])
def test_addresses_and_lengths_of_64_bits(target):
    big = [i for i, v in enumerate(hostile.VALUES) if type(v) is int and abs(v) >= 1 << 47]
    bad = hostile.run([trial for trial in ALL if trial[0] == target and trial[2] in big])
    assert not bad, "\n".join(bad)


def test_a_child_that_dies_or_hangs_is_named(monkeypatch):
    def targets(scene):
        return {
            "crash": (lambda x: os.kill(os.getpid(), 11) if x == 1 else None, {"x": 0}, {"x": hostile.anything}),
            "raise": (lambda x: {}[x].y, {"x": 0}, {"x": hostile.nothing}),
            "hang": (lambda x: __import__("time").sleep(9 if x == 2 else 0), {"x": 0}, {"x": hostile.anything}),
            "silent": (lambda x: None, {"x": 0}, {"x": hostile.integer(2, 2)}),
        }

    monkeypatch.setattr(hostile, "targets", targets)
    monkeypatch.setattr(hostile, "SECONDS", 1)
    one, two = hostile.VALUES.index(1, 2), hostile.VALUES.index(2)
    todo = [(t, "x", v) for t in ("crash", "hang", "silent", "raise") for v in (one, two)]
    bad = hostile.run(todo)
    assert [line.split(":")[0] for line in bad] == ["crash(x = 1)", "hang(x = 2)", "silent(x = 1)"]
    assert "signal 11" in bad[0] and "signal 14" in bad[1] and "without a word" in bad[2]


def test_a_table_arena_is_made_by_its_host():
    for nothing in (None, 1, ksmwalk.PageTables()):
        with pytest.raises(TypeError, match="must be a Host"):
            TableArena(nothing)
