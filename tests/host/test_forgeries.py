"""Forged Hosts and page tables, a part of what `tests/tools/forge.py` does at length."""

import forge
import pytest


@pytest.mark.parametrize("source", list(forge.SOURCES))
def test_a_forgery_is_refused_by_name_or_survived(source):
    hosts = source not in ("tables", "image")
    counts, failures = forge.forge(source, directed=130 if hosts else 100, random=70, seed=7)
    assert not failures, "\n".join(failures)
    assert counts["refused"] > 20
