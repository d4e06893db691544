"""The model's clock against the real ksmd, in small: that both sides are run, looked at and put back."""

import json
import os

import pytest

from ksmwalk.commands import cli
from ksmwalk.kernel import knobs, timed
from ksmwalk.ksm.costs import Costs

root = [
    pytest.mark.root,
    pytest.mark.skipif(bool(os.geteuid()) or not knobs.KSM.is_dir(), reason="needs root and a kernel with KSM"),
]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--time", "nonesuch"], "no timed workload 'nonesuch'; there are pairs, mixed"),
        (["--time", "--seconds", "1"], "--seconds 1: must be from 2 to 3600"),
        (["--time", "--costs", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_is_asked_for_is_checked_before_anything_is_run(capsys, monkeypatch, words, said):
    monkeypatch.setattr(timed, "run_all", lambda *args: pytest.fail("run"))
    assert cli.main(["verify", *words]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


class TestReal:
    """With the real ksmd."""

    pytestmark = [*root, pytest.mark.usefixtures("free")]

    def test_a_story_is_run_by_both_and_the_machine_put_back(self, capsys, monkeypatch, tmp_path):
        with knobs.lock(wait=300):
            # while nobody else has it changed
            before = knobs.saved()
        both = timed.run_all
        monkeypatch.setattr(timed, "run_all", lambda stories, seconds, costs: both(stories, seconds, costs, [True]))
        costs = tmp_path / "costs.json"
        Costs().save(costs)
        code = cli.main(["verify", "--time", "few-contents", "--seconds", "5", "--costs", str(costs), "--json"])
        with knobs.lock(wait=300):
            assert knobs.saved() == before
        [one] = json.loads(capsys.readouterr().out)["runs"]
        # how near they are is for a quiet machine to say
        assert one["status"] in ("agrees", "differs") and code in (0, 1), one
        for side in ("kernel", "model"):
            assert one[side]["pages_sharing"][-1] > 1000 and one[side]["cpu"][-1] > 0, side
