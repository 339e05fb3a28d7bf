"""What commands offer without torch is what there is."""

from videoscaling.data import choices
from videoscaling.data.video import decode, shots


def test_backends_and_shot_rules_are_those_that_there_are() -> None:
    assert set(choices.BACKENDS) == set(decode.BACKENDS)
    assert set(choices.SHOT_RULES) == set(shots.RULES)
