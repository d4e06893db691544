"""Forged Hosts and page tables, a part of what `tests/tools/forge.py` does at length."""

import os

import forge
import pytest


@pytest.mark.parametrize("source", list(forge.SOURCES))
def test_a_forgery_is_refused_by_name_or_survived(source):
    hosts = source not in ("tables", "image")
    counts, failures = forge.forge(source, directed=130 if hosts else 100, random=70, seed=7)
    assert not failures, "\n".join(failures)
    assert counts["refused"] > 20


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
