from __future__ import annotations

import torch

from speechlm.dialogue.gate import Gate

SILENCE, VOICE, HISS = torch.zeros(320), torch.full((320,), 0.1), torch.full((320,), 0.001)


def verdicts(gate: Gate, pattern: str) -> list[str]:
    frames = {"-": SILENCE, "x": VOICE, "h": HISS}
    return [gate.hear(frames[one])[0] for one in pattern]


def test_an_answer_lasts_until_there_was_silence_for_long_enough() -> None:
    gate = Gate(frame_s=0.2)
    assert verdicts(gate, "--xx--x-h-xx---x") == list("sso" + "s" * 6 + "cosssco")


def test_an_answer_that_was_hushed_opens_again_after_a_rest_only() -> None:
    gate = Gate(frame_s=0.3)
    assert verdicts(gate, "xx") == ["o", "s"]
    gate.hush()
    assert verdicts(gate, "xx-x--x") == ["s", "s", "s", "s", "s", "s", "o"]


def test_an_answer_that_was_split_opens_again_at_once() -> None:
    gate = Gate(frame_s=0.3)
    assert verdicts(gate, "xx") == ["o", "s"]
    gate.split()
    assert verdicts(gate, "x-") == ["o", "s"]
