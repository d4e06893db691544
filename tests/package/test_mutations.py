"""The list of mutations fits the engine as it stands (`tests/tools/mutate.py` runs them)."""

import os
import subprocess
import sys
from pathlib import Path

import mutate
import mutation_facts
from mutation_sites import drawn, memory_side, sites
from mutations import CI, EQUIVALENT, LISTS, MUTATIONS, UNRECORDED


def test_each_mutation_by_hand_breaks_a_text_that_occurs_once():
    assert len(mutate.by_hand()) == len(MUTATIONS)


def test_no_two_mutations_by_hand_have_one_name():
    assert sum(len(one.MUTATIONS) for one in LISTS) == len(MUTATIONS)


def test_the_facts_that_mutations_break_are_facts():
    named = {fact for _, _, *facts in MUTATIONS.values() for fact in facts}
    assert named <= set(mutation_facts.FACTS), named - set(mutation_facts.FACTS)


def test_every_fact_is_broken_by_a_mutation():
    assert [fact for fact in mutation_facts.FACTS if not mutation_facts.broken_by(fact)] == []


def test_what_a_test_notices_and_no_recording_says_why():
    known = mutation_facts.caught()
    assert {name for name, (_, _, *facts) in MUTATIONS.items() if facts and "::" in known.get(name, "")} <= set(UNRECORDED)


def test_what_noticed_a_mutation_is_there():
    known = mutation_facts.caught()
    assert set(known) | set(UNRECORDED) <= set(MUTATIONS)
    recordings = {path.stem for path in (mutate.ROOT / "tests" / "golden").rglob("*.json")} | {"the import"}
    for name, what in known.items():
        file, _, test = what.partition("::")
        assert what in recordings if not test else (mutate.ROOT / "tests" / file).exists(), (name, what)


def test_names_of_sites_are_unique_and_a_draw_repeats():
    names = [site.name for site in sites()]
    assert len(names) == len(set(names))
    assert drawn(1, 90) == drawn(1, 90) != drawn(2, 90)


def test_every_module_of_the_engine_is_drawn_from():
    everything = {site.file for site in sites()}
    assert {site.file for site in drawn(1, 90)} == everything


def test_there_are_eighty_at_least_and_thirty_in_faults_areas_folios_and_ranges():
    every = [*mutate.by_hand(), *mutate.by_operators(1, 90)]
    assert len(every) >= 80 and sum(memory_side(mutation.file) for mutation in every) >= 30


def test_a_dozen_by_hand_are_for_every_pull_request():
    assert len(CI) == len(set(CI)) == 12 and set(CI) <= set(MUTATIONS)


def test_what_is_argued_to_be_equivalent_is_a_mutation_that_there_is():
    assert set(EQUIVALENT) <= {site.name for site in sites()} | set(MUTATIONS)


def test_mutations_that_can_not_be_compiled_are_no_proof(tmp_path):
    """Without a compiler none is noticed by anything, and that must not look like success."""
    name = CI[0]
    (tmp_path / "gcc").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "gcc").chmod(0o755)
    tools = Path(mutate.__file__).parent
    # PYTHONSAFEPATH, which the suite sets, keeps a program from finding what stands beside it.
    paths = filter(None, (str(tools), os.environ.get("PYTHONPATH")))
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(tools / "mutate.py"), "--recordings", "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 1 and "does not compile" in done.stdout, done.stdout + done.stderr
