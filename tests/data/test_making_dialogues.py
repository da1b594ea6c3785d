"""Dialogues of two channels: the ground truth is where the sound is."""

from collections import Counter
from pathlib import Path

import pytest
import soundfile
import torch

from speechlm.config import RunConfig, load_config
from speechlm.data import making
from speechlm.data.corpus import open_corpus
from speechlm.data.dialogue_rendering import GRID_S, Rendered, render_dialogue
from speechlm.data.dialogues import GAP_LIMITS_S, STOP_S, Dialogue, Turn, plan_dialogues
from speechlm.data.espeak import Voice, restart
from speechlm.data.events import EVENTS_NAME, read_events
from speechlm.data.making import SITUATIONS_NAME, make_corpus
from speechlm.data.questions import questions
from speechlm.data.situations import find_situations
from speechlm.evaluation.tasks.full_duplex import read_samples

pytest.importorskip("espeakng_loader")

RATE = 16_000
COUNT = ("one", "two", "three", "four")


def dialogue(*turns: Turn, room_seed: str | None = None) -> Dialogue:
    return Dialogue(
        id="d", voice=Voice(), split="test", turns=turns, noise_seed="quiet", room_seed=room_seed
    )


def ask(text: str = "What comes after one?", answer: tuple[str, ...] = ("two",), **more) -> Turn:
    return Turn(text=text, answer=answer, rest_s=0.5, gap_s=0.2, **more)


def loud(rendered: Rendered, channel: int, start_s: float, end_s: float) -> bool:
    piece = rendered.wave[channel, round(start_s * RATE) : round(end_s * RATE)]
    return bool(piece.abs().max() > 0.02)


def one(rendered: Rendered, kind: str, speaker: str = "user"):
    (found,) = (e for e in rendered.events if (e.kind, e.speaker) == (kind, speaker))
    return found


def test_an_answer_follows_its_question_after_the_gap_that_was_planned() -> None:
    rendered = render_dialogue(dialogue(ask()))
    asked, answered = one(rendered, "turn"), one(rendered, "turn", "model")
    gap = one(rendered, "gap", "model")
    assert (gap.start_s, gap.end_s) == (asked.end_s, answered.start_s)
    assert 0.2 <= gap.end_s - gap.start_s < 0.2 + GRID_S
    assert round(answered.start_s * RATE) % round(GRID_S * RATE) == 0
    assert (asked.text, answered.text) == ("What comes after one?", "two")
    assert loud(rendered, 0, asked.start_s, asked.end_s)
    assert not loud(rendered, 0, asked.end_s + 0.05, rendered.wave.shape[1] / RATE)
    assert loud(rendered, 1, answered.start_s, answered.end_s)
    assert not loud(rendered, 1, 0.0, answered.start_s)
    assert rendered.words[1] == [("two", answered.start_s, answered.end_s)]


def test_a_pause_lies_within_the_turn_between_two_words() -> None:
    rendered = render_dialogue(dialogue(ask(pause_s=0.6, pause_at=0.5)))
    turn, pause = one(rendered, "turn"), one(rendered, "pause")
    assert turn.start_s < pause.start_s < pause.end_s < turn.end_s
    assert pause.end_s - pause.start_s == pytest.approx(0.6)
    assert not loud(rendered, 0, pause.start_s, pause.end_s)
    ends = [end for _, _, end in rendered.words[0]]
    starts = [start for _, start, _ in rendered.words[0]]
    assert any(end == pytest.approx(pause.start_s, abs=2e-3) for end in ends)
    assert any(start == pytest.approx(pause.end_s, abs=2e-3) for start in starts)


def test_the_model_goes_on_through_a_backchannel() -> None:
    rendered = render_dialogue(dialogue(ask(answer=COUNT, acknowledgement="Okay.")))
    heard, answered = one(rendered, "backchannel"), one(rendered, "turn", "model")
    assert answered.start_s < heard.start_s < answered.end_s
    assert answered.text == "one two three four"
    assert loud(rendered, 0, heard.start_s, heard.end_s)
    overlap = one(rendered, "overlap")
    assert (overlap.start_s, overlap.end_s) == (
        heard.start_s,
        min(heard.end_s, answered.end_s),
    )


def test_the_model_falls_silent_soon_after_the_user_cuts_in() -> None:
    turns = ask(answer=COUNT, stop_s=0.2, disturbed_at=0.4), ask("What comes after two?")
    rendered = render_dialogue(dialogue(*turns))
    cut = one(rendered, "interruption")
    first, second = (e for e in rendered.events if (e.kind, e.speaker) == ("turn", "user"))
    answers = [e for e in rendered.events if (e.kind, e.speaker) == ("turn", "model")]
    assert second.start_s == cut.start_s
    assert answers[0].end_s == cut.end_s == pytest.approx(cut.start_s + 0.2)
    assert len(answers[0].text.split()) < len(COUNT)
    assert answers[1].start_s > second.end_s > first.end_s
    assert loud(rendered, 1, cut.start_s - 0.5, cut.start_s)
    assert not loud(rendered, 1, cut.end_s, answers[1].start_s)


def test_a_remark_is_not_answered() -> None:
    remark = Turn(text="It is raining outside.", rest_s=0.4)
    rendered = render_dialogue(dialogue(remark, ask()))
    model = [event for event in rendered.events if event.speaker == "model"]
    assert [event.kind for event in model] == ["gap", "turn"]
    users = [e for e in rendered.events if (e.kind, e.speaker) == ("turn", "user")]
    assert users[1].start_s - users[0].end_s > 1.0


def test_a_room_is_heard_in_the_users_channel_alone() -> None:
    restart()
    plain = render_dialogue(dialogue(ask()))
    restart()
    roomy = render_dialogue(dialogue(ask(), room_seed="room"))
    assert torch.equal(plain.wave[1], roomy.wave[1])
    assert plain.events == roomy.events
    assert not torch.allclose(plain.wave[0], roomy.wave[0], atol=0.01)


def test_a_users_dialogues_ask_every_question_and_hold_every_situation() -> None:
    world = questions()
    planned = list(plan_dialogues(Voice(), "train", world, 2, seed=1))
    turns = [turn for each in planned for turn in each.turns]
    wordings = {wording: question.name for question in world for wording in question.wordings}
    asked = [wordings[turn.text] for turn in turns if turn.text in wordings]
    assert sorted(asked) == sorted([question.name for question in world] * 2)
    assert planned == list(plan_dialogues(Voice(), "train", world, 2, seed=1))
    assert planned != list(plan_dialogues(Voice(), "train", world, 2, seed=2))
    for situation in (
        [turn for turn in turns if turn.pause_s],
        [turn for turn in turns if turn.acknowledgement],
        [turn for turn in turns if not turn.answer],
        [turn for turn in turns if len(turn.answer) > 1 and turn.stop_s is None],
    ):
        assert len(situation) > 5
    for each in planned:
        for turn, following in zip(each.turns, [*each.turns[1:], None], strict=True):
            if turn.stop_s is not None:
                assert STOP_S[0] <= turn.stop_s <= STOP_S[1]
                assert following is not None, "somebody has to cut in"
            if turn.answer:
                assert GAP_LIMITS_S[0] <= turn.gap_s <= GAP_LIMITS_S[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> RunConfig:
    voices = [f"corpus.num_{split}_voices=1" for split in ("train", "valid", "test")]
    config = load_config(
        overrides=[
            f"output={tmp_path_factory.mktemp('made')}",
            "corpus.kind=dialogue",
            "corpus.renditions=1",
            "corpus.num_workers=1",
            *voices,
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "questions", lambda: questions()[::9])
        make_corpus(config)
    return config


def test_a_corpus_of_dialogues_holds_both_channels_and_what_happens(made) -> None:
    corpus = open_corpus(made.corpus_path)
    events = read_events(made.corpus_path / EVENTS_NAME)
    users = [recording for recording in corpus if recording.id.endswith(".user")]
    assert {user.split for user in users} == {"train", "valid", "test"}
    assert len(users) == len(events) == len(corpus) / 2 == 12
    for user in users:
        assert user.reply is not None
        model = corpus[user.reply]
        assert (model.speaker, model.split, model.audio) == ("allison", user.split, user.audio)
        waves = user.load(RATE), model.load(RATE)
        assert waves[0].shape == waves[1].shape
        for event in events[user.id.removesuffix(".user")]:
            if event.kind == "turn":
                wave = waves[event.speaker == "model"]
                span = slice(round(event.start_s * RATE), round(event.end_s * RATE))
                assert wave[span].abs().max() > 0.02


def test_dialogues_are_made_once(made, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.corpus_path.rglob("*.flac")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "questions", lambda: questions()[::9])
        make_corpus(made)
    assert {path: path.stat().st_mtime_ns for path in Path(made.corpus_path).rglob("*.flac")} == (
        before
    )


def test_what_happens_is_cut_out_as_full_duplex_bench_has_it(made) -> None:
    samples = read_samples(made.corpus_path / SITUATIONS_NAME)
    tested = {each.id[:-5] for each in open_corpus(made.corpus_path) if each.split == "test"}
    happened = read_events(made.corpus_path / EVENTS_NAME)
    events = [event for name in happened if name in tested for event in happened[name]]
    answers = [e for e in events if (e.kind, e.speaker) == ("gap", "model")]
    kinds = Counter(sample.kind for sample in samples)
    assert kinds["pause"] + kinds["turn"] + kinds["interruption"] == len(answers)
    assert kinds["overlap"] == sum(event.kind == "backchannel" for event in events)
    for sample in samples:
        wave, rate = soundfile.read(sample.input)
        start, end = (round(time_s * rate) for time_s in sample.event)
        if sample.kind == "turn":
            assert abs(wave[start - rate // 4 : start]).max() > 0.02
            assert abs(wave[start + rate // 20 : start + rate // 2]).max() < 0.02
        elif sample.kind == "pause":
            assert abs(wave[start + 80 : end - 80]).max() < 0.02
            assert abs(wave[end : end + rate // 2]).max() > 0.02
        else:
            assert abs(wave[start:end]).max() > 0.02


def test_a_situation_has_its_times_from_its_own_begin() -> None:
    turns = ask(answer=COUNT, stop_s=0.2, disturbed_at=0.4), ask("What comes after two?")
    rendered = render_dialogue(dialogue(*turns))
    duration_s = rendered.wave.shape[1] / RATE
    first, second = find_situations(rendered.events, duration_s)
    assert (first.kind, second.kind) == ("smooth_turn_taking", "user_interruption")
    cut = one(rendered, "interruption")
    assert first.end_s == cut.start_s
    (told,) = second.annotation
    assert (told["context"], told["interrupt"]) == (turns[0].text, turns[1].text)
    assert second.start_s + told["timestamp"][0] == pytest.approx(cut.start_s, abs=1e-3)
    assert second.end_s <= duration_s
