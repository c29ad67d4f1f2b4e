"""Some dozen clients of all kinds; `python -m tests.support.chaos_server` sends thousands."""

from tests.support.chaos_server import run


def test_whoever_stays_gets_his_own_text_whatever_the_others_do(served_model):
    chaos = run(served_model, count=80, seed=1)
    assert not chaos.wrong
    assert len(chaos.outcomes) == 6, chaos.outcomes
