import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm.data import espeak
from speechlm.data.espeak import Voice, list_voices, speak, spell
from speechlm.errors import CorpusError, PluginError

pytest.importorskip("espeakng_loader")

QUESTION = "What comes after seven?"


def test_the_words_are_timed_in_order() -> None:
    speech = speak(QUESTION, Voice())
    assert [word for word, _, _ in speech.words] == ["What", "comes", "after", "seven"]
    heard = [phone for phone, _, _ in speech.phones]
    assert heard[:4] == ["w", "V", "t", "k"]
    assert heard[-3:] == ["v", "@", "n"]
    phone_times = [t for _, start_s, end_s in speech.phones for t in (start_s, end_s)]
    assert phone_times == sorted(phone_times)
    times = [t for _, start_s, end_s in speech.words for t in (start_s, end_s)]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(len(speech.samples) / speech.sample_rate)
    assert speech.samples.dtype == np.float32
    assert 0.05 < np.abs(speech.samples).max() <= 1


@pytest.mark.parametrize("text", ["seven", "what comes after Monday"])
def test_what_is_spelled_is_said_again(text: str) -> None:
    phones = spell(text, Voice())
    assert all(phones)

    def sounds(said: str) -> list[str]:
        return [phone for phone, _, _ in speak(said, Voice()).phones]

    again = sounds(f"[[{' '.join(phones)}]]")
    # Where words meet, a phone may be said in another way.
    assert again[:2] == sounds(text)[:2]
    assert abs(len(again) - len(sounds(text))) <= 2
    changed = [*phones[:-1], "u:"]
    assert sounds(f"[[{' '.join(changed)}]]")[-1] != again[-1]


def test_pitch_speed_variant_and_accent_are_heard() -> None:
    plain = speak(QUESTION, Voice()).samples
    for other in (
        Voice(pitch=80),
        Voice(pitch_range=90),
        Voice(speed=220),
        Voice(variant="f2"),
        Voice(name="en-gb-scotland"),
    ):
        samples = speak(QUESTION, other).samples
        assert len(samples) != len(plain) or np.abs(samples - plain).max() > 0.05


def test_a_faster_voice_is_shorter() -> None:
    slow, fast = (len(speak(QUESTION, Voice(speed=speed)).samples) for speed in (120, 240))
    assert fast < 0.7 * slow


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(list_voices(1)[:76]), max_size=3))
def test_what_was_said_before_leaves_no_trace_after_a_restart(before: list[Voice]) -> None:
    voice = Voice(name="en-029", variant="f2")  # breathy: it draws random numbers
    espeak.restart()
    once = speak(QUESTION, voice).samples
    for other in before:
        speak("Something else.", other)
    espeak.restart()
    assert np.array_equal(speak(QUESTION, voice).samples, once)


def test_there_are_enough_voices_and_their_order_is_seeded() -> None:
    voices = list_voices(1)
    assert len({voice.speaker for voice in voices}) == len(voices) > 78
    assert list_voices(1) == voices
    assert list_voices(2) != voices
    assert sorted(v.speaker for v in list_voices(2)) == sorted(v.speaker for v in voices)


def test_the_first_voices_differ_in_more_than_accent() -> None:
    first = [voice.variant for voice in list_voices(3)[:70]]
    assert len(set(first)) == 70


def test_every_listed_variant_speaks() -> None:
    for variant in {voice.variant for voice in list_voices(1) if voice.engine == "espeak"}:
        assert len(speak("seven", Voice(variant=variant)).samples) > 5000


def test_effects_are_not_voices() -> None:
    variants = {voice.variant for voice in list_voices(1) if voice.engine == "espeak"}
    assert len(variants) >= 70
    assert not variants & espeak.NOT_UNDERSTOOD
    assert not variants & {"whisper", "whisperf", "croak", "robosoft", "UniRobot", "Demonic"}


def test_an_unknown_voice_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"no voice 'en-mars'; expected one of list_voices"):
        speak(QUESTION, Voice(name="en-mars"))


@pytest.mark.parametrize("wrong", [{"pitch": 100}, {"pitch_range": -1}, {"speed": 79}], ids=str)
def test_knobs_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(CorpusError, match=r"expected .* got"):
        replace(Voice(), **wrong)


def test_text_that_sounds_like_nothing_is_refused() -> None:
    with pytest.raises(CorpusError, match="says nothing"):
        speak("", Voice())


def test_without_the_wheel_one_line_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(PluginError, match=r"pip install 'speechlm\[corpus\]'"):
        list_voices(1)


def test_flite_joins_where_it_is_installed(monkeypatch, tmp_path) -> None:
    program = tmp_path / "flite"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not [voice for voice in list_voices(1) if voice.engine == "flite"]

    # Writes one second of a tone to the file after -o, as flite would write speech.
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys, numpy, soundfile\n"
        "path = sys.argv[sys.argv.index('-o') + 1]\n"
        "soundfile.write(path, 0.5 * numpy.sin(numpy.arange(16000) / 20), 16000)\n"
    )
    program.chmod(0o755)
    voices = [voice for voice in list_voices(1) if voice.engine == "flite"]
    assert {voice.name for voice in voices} == {"slt", "rms", "awb", "kal16"}
    speech = speak(QUESTION, voices[0])
    assert (len(speech.samples), speech.sample_rate, speech.words) == (16_000, 16_000, ())
