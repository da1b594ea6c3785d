import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_cases import NUM_UNITS
from small_lm import shared_lm, small_lm

from speechlm.config import SamplingConfig
from speechlm.errors import InputError
from speechlm.generation.engine import Engine
from speechlm.generation.request import Request
from speechlm.layouts.grid import Prompt
from speechlm.layouts.live import OtherSpeaker, OwnSpeech, two_speakers
from speechlm.layouts.registry import build_layout
from speechlm.model.unit_lm import UnitLM

CASES = ["duplex-pairs", "duplex-codec", "duplex-moshi"]
SAMPLINGS = [
    SamplingConfig(max_units=60),
    SamplingConfig(max_units=60, temperature=1.0),
    SamplingConfig(max_units=60, temperature=0.8, top_k=4, repetition_penalty=1.3),
]


def heard_units(lm: UnitLM, frames: int, seed: int) -> torch.Tensor:
    rows = two_speakers(lm.layout).num_codebooks
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(NUM_UNITS, (rows, frames), generator=generator)


def beginning(lm: UnitLM, other: torch.Tensor) -> Prompt:
    """A prompt that knows all that the other will say."""
    known = {"self": other[:, :0], "other": other}
    return lm.layout.prompt(lm.vocabulary, known)


def known_ahead(
    lm: UnitLM, other: torch.Tensor, sampling: SamplingConfig, *, endless: bool = True
) -> list[list[int]]:
    engine = Engine(lm, num_positions=256)
    own = lm.layout.num_rows - len(other)
    request = Request(prompt=beginning(lm, other), sampling=sampling, seeds=(5,), endless=endless)
    return [list(column[:own]) for column in engine.run(request)][: other.shape[1]]


def live(
    lm: UnitLM,
    other: torch.Tensor,
    sampling: SamplingConfig,
    cuts: list[int],
    *,
    company: int = 0,
    endless: bool = True,
) -> list[list[int]]:
    """Hear in pieces of ``cuts`` frames, beside other running requests."""
    engine = Engine(lm, num_positions=512)
    for seed in range(company):
        few = heard_units(lm, 7 * seed + 3, seed)
        engine.add(Request(prompt=beginning(lm, few), sampling=SAMPLINGS[1], seeds=(seed,)))
    start = beginning(lm, other[:, :0])
    (ticket,) = engine.add(
        Request(
            prompt=start,
            sampling=sampling,
            seeds=(5,),
            num_live_rows=len(other),
            endless=endless,
        )
    )
    speaker = OtherSpeaker(lm.layout, lm.vocabulary)
    own = lm.layout.num_rows - len(other)
    drawn: list[list[int]] = []
    at = 0

    def run(steps: int) -> None:
        for _ in range(steps):
            for one in engine.step():
                if one.ticket == ticket:
                    assert set(one.column[own:]) == {-1}
                    drawn.append(list(one.column[:own]))

    for count in cuts:
        engine.give(ticket, speaker.push(other[:, at : at + count]))
        at += count
        run(count // 2)  # what is left to do is done later
    engine.give(ticket, speaker.push(other[:, at:]))
    while engine.busy:
        run(1)
    return drawn[: other.shape[1]]


@pytest.mark.parametrize("depth", [False, True], ids=["side-by-side", "depth"])
@pytest.mark.parametrize("case", CASES)
@settings(deadline=None, max_examples=4)
@given(data=st.data())
def test_hearing_piece_by_piece_is_hearing_it_known_ahead(
    case: str, depth: bool, data: st.DataObject
) -> None:
    lm = shared_lm(case, depth)
    other = heard_units(lm, data.draw(st.integers(1, 20)), data.draw(st.integers(0, 3)))
    cuts = data.draw(st.lists(st.integers(0, 6), max_size=5))
    sampling = data.draw(st.sampled_from(SAMPLINGS))
    endless = data.draw(st.booleans())
    expected = known_ahead(lm, other, sampling, endless=endless)
    company = data.draw(st.integers(0, 3))
    assert live(lm, other, sampling, cuts, company=company, endless=endless) == expected


def test_a_model_may_hear_a_frame_before_it_speaks_in_it() -> None:
    """Its own rows later than the other's: known ahead, its first column needs no drawing."""
    pairs = shared_lm("duplex-pairs")
    late = build_layout("duplex", {"delays": [1, 0]}, 1)
    lm = UnitLM(pairs.decoder, pairs.vocabulary, late)
    other = heard_units(lm, 12, 0)
    columns = live(lm, other, SAMPLINGS[0], [3, 4])
    assert columns[0] == [lm.vocabulary.pad]
    assert columns[1:] == known_ahead(lm, other, SAMPLINGS[0])[:11]
    own = OwnSpeech(late, lm.vocabulary)
    frames = torch.cat([own.push((*column, -1)) for column in columns], dim=1)
    assert frames.shape == (1, 11)
    assert 0 <= int(frames.min()) <= int(frames.max()) < NUM_UNITS


@pytest.mark.parametrize("depth", [False, True], ids=["side-by-side", "depth"])
def test_a_live_sample_outlasts_its_window(depth: bool) -> None:
    lm = shared_lm("duplex-codec", depth)
    other = heard_units(lm, 150, 0)
    for window in (32, 50):
        sampling = SamplingConfig(max_units=150, temperature=1.0, window=window)
        expected = known_ahead(lm, other, sampling)
        assert len(expected) == 150
        assert live(lm, other, sampling, [40, 3, 40], company=2) == expected


def test_steps_of_fixed_shapes_hear_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the reader that graphs are made of, run as it is."""
    lm = shared_lm("duplex-codec", True)
    other = heard_units(lm, 40, 3)
    sampling = SamplingConfig(max_units=40, temperature=1.0, window=32)
    expected = known_ahead(lm, other, sampling)
    monkeypatch.setattr("speechlm.generation.engine.recorder_for", lambda device: lambda work: work)
    assert live(lm, other, sampling, [5, 9, 3], company=2) == expected


def test_near_ties_of_a_live_sample_fall_as_if_it_were_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also long after its window began to move, when its past is kept nowhere."""
    lm = small_lm("duplex-codec")
    other = heard_units(lm, 150, 1)
    sampling = SamplingConfig(max_units=150, temperature=1.0, window=50)
    expected = known_ahead(lm, other, sampling)
    monkeypatch.setattr("speechlm.generation.engine.TOLERANCE", 0.5)  # very many are near
    assert live(lm, other, sampling, [13] * 9, company=2) == expected


def test_an_endless_sample_keeps_no_past() -> None:
    lm = shared_lm("duplex-pairs")
    other = heard_units(lm, 300, 2)
    engine = Engine(lm, num_positions=64)
    sampling = SamplingConfig(max_units=10**9, temperature=1.0, window=32)
    start = beginning(lm, other[:, :0])
    (ticket,) = engine.add(Request(prompt=start, sampling=sampling, num_live_rows=1, endless=True))
    engine.give(ticket, OtherSpeaker(lm.layout, lm.vocabulary).push(other))
    while engine.busy:
        engine.step()
    (sample,) = engine._running
    assert sample.num_drawn == 301
    assert len(sample.columns) <= 32
    engine.cancel(ticket)
    assert not engine._live


def test_who_waits_holds_nobody_up() -> None:
    lm = shared_lm("duplex-pairs")
    other = heard_units(lm, 12, 0)
    engine = Engine(lm, num_positions=128, max_batch=2)
    sampling = SamplingConfig(max_units=12)
    start = beginning(lm, other[:, :0])
    tickets = [
        engine.add(Request(prompt=start, sampling=sampling, num_live_rows=1, endless=True))[0]
        for _ in range(3)
    ]
    first = engine.step()
    assert [drawn.ticket for drawn in first] == tickets[:1]
    while engine.busy:
        engine.step()
    assert not engine.step()  # two wait for cells, one for a place
    speaker = OtherSpeaker(lm.layout, lm.vocabulary)
    engine.give(tickets[1], speaker.push(other))
    columns = 0
    while engine.busy:
        columns += sum(drawn.ticket == tickets[1] for drawn in engine.step())
    assert columns == 11  # besides the first; then it was over, and the third had its place
    engine.cancel(tickets[0])
    engine.give(tickets[0], speaker.push(other))  # who has ended is let pass
    assert not engine.busy


def test_wrong_cells_and_rows_are_refused() -> None:
    lm = shared_lm("duplex-codec")
    engine = Engine(lm, num_positions=64)
    start = beginning(lm, heard_units(lm, 0, 0))
    (ticket,) = engine.add(Request(prompt=start, num_live_rows=2))
    with pytest.raises(InputError, match=r"live cells int64 \[2, n\], got torch.int64 \[3, 1\]"):
        engine.give(ticket, torch.zeros(3, 1, dtype=torch.int64))
    own = torch.full((2, 1), lm.vocabulary.first_unit)
    with pytest.raises(InputError, match="expected live cells of their row's ids"):
        engine.give(ticket, own)
    with pytest.raises(InputError, match="fewer live rows than the 4 of the layout 'duplex'"):
        engine.add(Request(prompt=start, num_live_rows=4))
    guided = Request(
        prompt=start,
        num_live_rows=2,
        sampling=SamplingConfig(guidance=2.0),
        unconditioned=start,
    )
    with pytest.raises(InputError, match=r"guidance 1 beside live rows, got 2\.0"):
        engine.add(guided)
    with pytest.raises(InputError, match="no runs to stop at beside live rows"):
        engine.add(Request(prompt=start, num_live_rows=2, stop=((9,),)))
    with pytest.raises(InputError, match="expected a layout of two speakers, 'duplex', got 'flat'"):
        two_speakers(shared_lm().layout)
    with pytest.raises(InputError, match=r"units int64 \[2, m\], got torch.int64 \[1, 1\]"):
        OtherSpeaker(lm.layout, lm.vocabulary).push(torch.zeros(1, 1, dtype=torch.int64))


@pytest.mark.parametrize("case", CASES)
def test_own_units_come_back_frame_by_frame(case: str) -> None:
    lm = shared_lm(case, True)
    other = heard_units(lm, 30, 4)
    prompt = beginning(lm, other)
    engine = Engine(lm, num_positions=256)
    request = Request(prompt=prompt, sampling=SAMPLINGS[1], endless=True)
    columns = list(engine.run(request))[:30]
    read = lm.layout.read(lm.vocabulary, prompt, torch.tensor(columns).T)
    own = OwnSpeech(lm.layout, lm.vocabulary)
    frames = torch.cat([own.push(column) for column in columns], dim=1)
    assert torch.equal(frames, read["self"])
    assert frames.shape[1] == 30 - own.delay
    if "text" in read:
        tokens = [own.text_token(column) for column in columns[: 30 - own.delay]]
        assert [token for token in tokens if token is not None] == read["text"].tolist()
