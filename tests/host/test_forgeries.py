"""Forged Hosts and page tables, a part of what `tests/tools/forge.py` does at length."""

import os

import busy
import forge
import numpy as np
import pytest

from ksmwalk import Host
from ksmwalk.layout import Frame


@pytest.mark.parametrize("source", list(forge.SOURCES))
def test_a_forgery_is_refused_by_name_or_survived(source):
    hosts = source not in ("tables", "image")
    counts, failures = forge.forge(source, directed=130 if hosts else 100, random=70, seed=7)
    assert not failures, "\n".join(failures)
    assert counts["refused"] > 20


def part_of(flags, zero):
    """A frame in the middle of a folio: of the huge zero page, or of a huge anonymous one."""
    wanted = Frame.USED | Frame.TAIL | (Frame.ZERO if zero else Frame.ANON)
    return int(np.flatnonzero(flags & ~np.uint16(Frame.EXCLUSIVE) == wanted)[1])


@pytest.mark.parametrize("zero", [True, False], ids=["anonymous part of the zero page", "zero part of an anonymous page"])
def test_a_folio_is_of_the_huge_zero_page_as_a_whole(zero):
    """Taken, such a part became exclusive when its folio's leaf was split, and the Host could not be loaded again."""
    state = busy.crowded_host(1).__getstate__()
    flags = state["arrays"]["f_flags"] = state["arrays"]["f_flags"].copy()
    part = part_of(flags, zero)
    flags[part] ^= np.uint16(Frame.ZERO | Frame.ANON)
    with pytest.raises(ValueError, match=f"f_flags: record {part} holds .*: not of a huge zero page like"):
        Host.__new__(Host).__setstate__(state)
    flags[part] |= np.uint16(Frame.ZERO | Frame.ANON)
    with pytest.raises(ValueError, match=f"f_flags: record {part} holds .*: a zero page, and anonymous"):
        Host.__new__(Host).__setstate__(state)


def test_a_child_that_dies_is_a_failure_with_its_last_words(monkeypatch):
    def die(self, number, folder):
        if number == 1:
            os.write(2, b"one line\nSUMMARY: of a report\nanother\n")
            os._exit(3)
        return "refused"

    monkeypatch.setattr(forge.Forger, "run", die)
    died = "crash: it ended: SUMMARY: of a report"
    assert forge.run(forge.Forger("image", 1), [0, 1, 2]) == {0: "refused", 1: died, 2: "refused"}


def test_a_child_that_runs_on_is_a_hang(monkeypatch):
    def run_on(self, number, folder):
        while number == 1:
            pass
        return "survived"

    monkeypatch.setattr(forge.Forger, "run", run_on)
    monkeypatch.setattr(forge, "HANG_SECONDS", 0.2)
    assert forge.run(forge.Forger("image", 1), [0, 1, 2]) == {0: "survived", 1: "hang", 2: "survived"}
