"""merged says units and what goes with them by time, each only when it changes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from speechlm.layouts.merged import Merged
from speechlm.layouts.registry import build_layout
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.units import collapse_repeats

UNITS = torch.tensor([[7, 7, 7, 3, 3, 3, 9]])
PITCH = torch.tensor([[1, 1, 2, 2, 2, 2, 2]])
STYLE = torch.tensor([[0, 0, 0, 0, 0, 1, 1]])
CODES = torch.cat([UNITS, PITCH, STYLE])


def built(**options: object) -> tuple[Merged, Vocabulary]:
    layout = build_layout("merged", options, 3)
    assert isinstance(layout, Merged)
    sizes = layout.stream_sizes((10, 4, 2))
    return layout, Vocabulary(tokenizer_fingerprint="tokenizer-01", stream_sizes=sizes)


def written(vocabulary: Vocabulary, ids: Tensor) -> str:
    """A row of ids as ``s0 p1 u7 …``."""
    words = []
    for id_ in ids[0].tolist():
        for stream, letter in enumerate("ups"):
            if id_ in vocabulary.unit_range(stream):
                words.append(f"{letter}{id_ - vocabulary.unit_range(stream).start}")
        if id_ < vocabulary.first_unit:
            words.append("[]")
    return " ".join(words)


def test_what_changes_comes_before_the_unit_that_it_goes_with() -> None:
    layout, vocabulary = built()
    ids = layout.encode(vocabulary, {"speech": CODES}).ids
    assert written(vocabulary, ids) == "[] s0 p1 u7 p2 u3 s1 u9 []"
    read = layout.decode(vocabulary, ids)["speech"]
    assert read.tolist() == [[7, 3, 9], [1, 2, 2], [0, 0, 1]]
    codes, durations = layout.merged(CODES)
    assert torch.equal(codes, read)
    assert durations.tolist() == [3, 3, 1]


def test_within_a_unit_too_where_it_is_asked_for() -> None:
    layout, vocabulary = built(within=True)
    ids = layout.encode(vocabulary, {"speech": CODES}).ids
    assert written(vocabulary, ids) == "[] s0 p1 u7 p2 u7 u3 s1 u3 u9 []"
    read = layout.decode(vocabulary, ids)["speech"]
    merged, durations = collapse_repeats(CODES)
    assert torch.equal(read, merged)
    assert torch.equal(read.repeat_interleave(durations, dim=1), CODES)


def test_a_continuation_carries_on_what_the_prompt_said() -> None:
    layout, vocabulary = built()
    prompt = layout.prompt(vocabulary, {"speech": CODES[:, :3]})
    assert written(vocabulary, prompt.ids) == "[] s0 p1 u7"
    starts = [vocabulary.unit_range(stream).start for stream in range(3)]
    drawn = torch.tensor([[starts[0] + 4, starts[1] + 3, starts[0] + 5, starts[2] + 1]])
    read = layout.read(vocabulary, prompt, drawn)["speech"]
    assert read.tolist() == [[4, 5], [1, 3], [0, 0]]  # the style had no unit yet


def test_the_answer_says_all_anew() -> None:
    layout, vocabulary = built(question_weight=0.5)
    sequence = layout.encode(vocabulary, {"question": CODES, "answer": CODES[:, :3]})
    assert written(vocabulary, sequence.ids) == "[] s0 p1 u7 p2 u3 s1 u9 [] s0 p1 u7 []"
    assert sequence.loss_weights[0].tolist() == [0.0, *[0.5] * 8, *[1.0] * 4]


def test_streams_have_their_weights() -> None:
    layout, vocabulary = built(stream_weights=[3.0, 2.0, 0.5])
    weights = layout.encode(vocabulary, {"speech": CODES}).loss_weights[0]
    assert weights.tolist() == [0.0, 0.5, 2.0, 3.0, 2.0, 3.0, 0.5, 3.0, 1.0]


def test_the_grammar_begins_with_all_streams_and_ends_after_units_alone() -> None:
    layout, vocabulary = built()
    grammar = layout.grammar(vocabulary)
    masks = grammar.masks_of(0)

    def may(state: object) -> str:
        assert isinstance(state, tuple)
        mask = masks[grammar.mask_of(state)]
        letters = [
            letter
            for stream, letter in enumerate("ups")
            if bool(mask[vocabulary.unit_range(stream).start])
        ]
        return "".join(letters) + "." * bool(mask[vocabulary.end])

    first = [vocabulary.unit_range(stream).start for stream in range(3)]
    state = grammar.start
    seen = [may(state)]
    for stream in (2, 1, 0, 1, 0, 2, 0):
        following = grammar.advance(state, [first[stream]])
        assert following is not None
        state = following
        seen.append(may(state))
    assert seen == ["s.", "p", "u", "ups.", "u", "ups.", "up", "ups."]
    assert grammar.advance(state, [vocabulary.end]) is None


@given(frames=st.integers(0, 40), within=st.booleans(), seed=st.integers(0, 2**31))
def test_a_row_holds_each_change_once(frames: int, within: bool, seed: int) -> None:
    layout, vocabulary = built(within=within)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(size, (frames,), generator=generator) for size in (3, 4, 2)])
    ids = layout.encode(vocabulary, {"speech": codes}).ids
    said, durations = layout.merged(codes)
    assert int(durations.sum()) == frames
    changes = (said[1:, 1:] != said[1:, :-1]).sum() + 2 * bool(frames)
    assert ids.shape[1] == 2 + said.shape[1] + int(changes)
    assert torch.equal(layout.decode(vocabulary, ids)["speech"], said)
    # What is read again is laid out the same again.
    assert torch.equal(layout.encode(vocabulary, {"speech": said}).ids, ids)
