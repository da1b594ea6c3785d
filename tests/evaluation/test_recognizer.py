"""The recognizer hears studio speech, each recording alone; the word model prefers sense."""

from __future__ import annotations

import jiwer
import pytest
import torch

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.evaluation.recognizer import Recognizer, TrigramModel, perplexity
from speechlm.evaluation.word_error import spoken_words

pytest.importorskip("pocketsphinx")
CLIPS = list(human_clips("prompts").values())[:3]


def test_studio_speech_is_mostly_understood_and_each_recording_alone() -> None:
    waves = [load_audio(clip.path, 16_000) for clip in CLIPS]
    recognizer = Recognizer()
    heard = recognizer.transcribe_many(waves, 16_000, num_workers=1)
    said = [" ".join(spoken_words(clip.text)) for clip in CLIPS]
    assert jiwer.wer(said, heard) < 0.35
    assert recognizer.transcribe_many(waves[::-1], 16_000, num_workers=1) == heard[::-1]
    assert recognizer.transcribe_many(waves, 16_000, num_workers=2) == heard


def test_words_have_their_times() -> None:
    wave = load_audio(CLIPS[0].path, 16_000)
    (words,) = Recognizer().words_many([wave], 16_000)
    assert [word.word for word in words][-2:] == ["pound", "key"]
    times = [time for word in words for time in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert times[-1] <= len(wave) / 16_000 + 0.1


def test_phones_are_heard_without_words() -> None:
    (phones,) = Recognizer().phones_many([load_audio(CLIPS[1].path, 16_000)], 16_000)
    assert {"S", "P", "IY"} <= set(phones.split())
    assert "SIL" not in phones


def test_noise_says_nothing() -> None:
    noise = 1e-3 * torch.randn(16_000, generator=torch.Generator().manual_seed(1))
    assert len(Recognizer().transcribe_many([noise], 16_000)[0].split()) <= 2


def test_sense_is_more_probable_and_repetition_too() -> None:
    model = TrigramModel()
    said, mixed, again = (
        perplexity(*model.log_prob(text))
        for text in (
            "please enter your password",
            "password your enter please",
            "the the the the the the",
        )
    )
    assert said == pytest.approx(101.3, abs=0.1)
    assert mixed > 10 * said
    assert again < said
    total, count = model.log_prob("zzyx")
    assert count == 2
    assert -40 < total < -15
