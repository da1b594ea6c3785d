import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import lhotse
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse.supervision import AlignmentItem

from speechlm.data.corpus import Recording, Word, open_corpus
from speechlm.errors import AudioError, CorpusError

RATE = 16_000


def write(path: Path, *, seconds: float = 0.5, rate: int = RATE, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).uniform(
        -0.5, 0.5, (int(seconds * rate), channels)
    )
    with path.open("wb") as file:
        soundfile.write(file, noise, rate, format=path.suffix[1:].upper())
    return path


def manifest(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows),
        encoding="utf-8",
    )
    return path


# -- a folder ---------------------------------------------------------------------------------


def test_a_folder_is_searched_to_the_bottom_in_a_stable_order(tmp_path) -> None:
    for name in ("b.wav", "a/z.flac", "a/b/c.WAV", "a.ogg", ".hidden/x.wav", "._b.wav"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no audio")
    corpus = open_corpus(tmp_path)
    assert [r.id for r in corpus] == ["a.ogg", "b.wav", "a/z.flac", "a/b/c.WAV"]
    assert len(corpus) == 4
    assert corpus["b.wav"].load(RATE).shape == (RATE // 2,)
    assert "b.wav" in corpus
    assert "c.wav" not in corpus


def test_an_empty_folder_is_refused(tmp_path) -> None:
    with pytest.raises(CorpusError, match=r"no audio in it; expected files like .*\.flac"):
        open_corpus(tmp_path)


def test_a_path_that_is_not_there_is_refused(tmp_path) -> None:
    with pytest.raises(CorpusError, match="no such corpus; expected a folder of audio, JSON lines"):
        open_corpus(tmp_path / "none")


def test_an_unreadable_directory_is_named_rather_than_skipped(tmp_path, monkeypatch) -> None:
    write(tmp_path / "a.wav")
    locked = tmp_path / "locked"
    locked.mkdir()
    scandir = os.scandir

    def refuse(path):  # tests may run as root, whom no mode stops
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CorpusError, match=r"locked: the folder cannot be read \(Permission denied"):
        open_corpus(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["Zoë 日本語 🎤.wav", "ü" * 125 + "a.wav", " lead and trail .wav", 'quote"\nnewline.wav'],
    ids=["non-ascii", "255-bytes", "spaces", "newline"],
)
def test_any_file_name_works(tmp_path, name: str) -> None:
    write(tmp_path / name)
    recording = open_corpus(tmp_path)[name]
    assert recording.load(RATE).shape == (RATE // 2,)


def test_a_name_that_is_not_utf8_works(tmp_path) -> None:
    os.rename(write(tmp_path / "a.wav"), os.fsencode(tmp_path) + b"/caf\xe9.wav")
    (recording,) = open_corpus(tmp_path)
    assert recording.id == r"caf\xe9.wav"
    assert recording.load(RATE).shape == (RATE // 2,)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (48_000, 2), (44_100, 1)])
def test_rates_and_channels_become_one(tmp_path, rate: int, channels: int) -> None:
    write(tmp_path / "a.wav", rate=rate, channels=channels)
    wave = open_corpus(tmp_path)["a.wav"].load(RATE)
    assert wave.shape == (RATE // 2,)
    assert wave.dtype == torch.float32


def test_one_bad_file_hides_no_other(tmp_path) -> None:
    write(tmp_path / "good.wav")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is text")
    corpus = open_corpus(tmp_path)
    assert len(corpus) == 3
    for bad in ("empty.wav", "text.wav"):
        with pytest.raises(AudioError, match=bad):
            corpus[bad].load(RATE)
    corpus["good.wav"].load(RATE)


def test_a_manifest_in_the_folder_wins(tmp_path) -> None:
    write(tmp_path / "a.wav")
    write(tmp_path / "b.wav")
    manifest(tmp_path / "corpus.jsonl", {"audio": "b.wav", "text": "bee"})
    assert [(r.id, r.text) for r in open_corpus(tmp_path)] == [("b.wav", "bee")]


# -- JSON lines -------------------------------------------------------------------------------


def test_every_field_of_a_row_is_read(tmp_path) -> None:
    write(tmp_path / "a.wav", seconds=2)
    row = {
        "audio": "a.wav",
        "id": "first",
        "text": "hello there",
        "speaker": "zoë",
        "split": "test",
        "reply": "second",
        "words": [["hello", 0, 0.5], ["there", 0.5, 1.25]],
        "phones": [["h", 0, 0.1]],
        "start": 0.5,
        "duration": 1,
    }
    path = manifest(tmp_path / "rows.jsonl", row)
    (recording,) = open_corpus(path)
    assert recording == Recording(
        id="first",
        source=f"{tmp_path / 'a.wav'} ({path}:1)",
        text="hello there",
        speaker="zoë",
        split="test",
        reply="second",
        words=(Word("hello", 0.0, 0.5), Word("there", 0.5, 1.25)),
        phones=(Word("h", 0.0, 0.1),),
        audio=tmp_path / "a.wav",
        start_s=0.5,
        duration_s=1.0,
    )
    whole, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert torch.equal(recording.load(RATE), torch.from_numpy(whole[8000:24_000]))


def test_segments_of_one_file_get_ids_of_their_own(tmp_path) -> None:
    rows = ({"audio": "a.wav"}, {"audio": "a.wav", "start": 1}, {"audio": "a.wav", "duration": 0.5})
    corpus = open_corpus(manifest(tmp_path / "rows.jsonl", *rows))
    assert [r.id for r in corpus] == ["a.wav", "a.wav@1", "a.wav@0+0.5"]


def test_gzipped_rows_with_blank_lines_are_read(tmp_path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"audio": "a.wav"}\n\n  \n{"audio": "/b.wav"}\n'))
    assert [r.audio for r in open_corpus(path)] == [tmp_path / "a.wav", Path("/b.wav")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "expected one JSON object a line"),
        ("[1]", 'expected an object {"audio": …}, got a list'),
        ({}, "'audio': expected the path of a recording, got None"),
        ({"audio": 3}, "'audio': expected the path of a recording, got 3"),
        ({"audio": ""}, "'audio': expected the path"),
        ({"audio": "b.wav", "txt": "x"}, "unknown key 'txt'; did you mean 'text'?"),
        ({"audio": "b.wav", "text": 3}, "'text': expected text, got 3"),
        ({"audio": "b.wav", "start": "1"}, "'start': expected seconds, got '1'"),
        ({"audio": "b.wav", "start": -1}, "'start': expected seconds, got -1"),
        ({"audio": "b.wav", "start": True}, "'start': expected seconds, got True"),
        ({"audio": "b.wav", "duration": 0}, "'duration': expected seconds above 0, got 0"),
        ('{"audio": "b.wav", "duration": NaN}', "'duration': expected seconds above 0, got nan"),
        ({"audio": "b.wav", "phones": "h"}, "'phones': expected [[phone, start, end], …]"),
        ({"audio": "b.wav", "words": "hello"}, r"'words': expected [[word, start, end], …]"),
        ({"audio": "b.wav", "words": [["a", 2, 1]]}, "'words': expected [[word, start, end], …]"),
        ({"audio": "b.wav", "words": [["a", 1]]}, "'words': expected [[word, start, end], …]"),
        ({"audio": "a.wav"}, "id 'a.wav' is taken by"),
        ({"audio": "b.wav", "id": "a.wav"}, "id 'a.wav' is taken by"),
    ],
    ids=str,
)
def test_a_wrong_row_is_refused_with_its_line(tmp_path, row: Any, message: str) -> None:
    path = manifest(tmp_path / "rows.jsonl", {"audio": "a.wav"}, "", row)
    with pytest.raises(CorpusError) as caught:
        open_corpus(path)
    assert f"{path}:3" in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\n"], ids=["empty", "blank"])
def test_a_manifest_without_rows_is_refused(tmp_path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match="holds no recordings"):
        open_corpus(path)


def test_a_manifest_that_is_not_utf8_or_breaks_off_is_refused(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"audio": "a.wav"}\n{"audio": "caf\xe9.wav"}\n')
    with pytest.raises(CorpusError, match=r"rows.jsonl:2: expected UTF-8"):
        open_corpus(path)
    rows = b"".join(json.dumps({"audio": f"{i}.wav"}).encode() + b"\n" for i in range(999))
    path.write_bytes(gzip.compress(rows)[:-50])
    with pytest.raises(CorpusError, match="the gzip data breaks off"):
        open_corpus(path)


def test_a_missing_or_short_file_is_an_error_of_its_recording_only(tmp_path) -> None:
    write(tmp_path / "a.wav")
    rows = ({"audio": "none.wav"}, {"audio": "a.wav", "start": 3}, {"audio": "a.wav"})
    missing, beyond, good = open_corpus(manifest(tmp_path / "rows.jsonl", *rows))
    for bad in (missing, beyond):
        with pytest.raises(AudioError):
            bad.load(RATE)
    good.load(RATE)


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
times = st.floats(0, 1e6)


@settings(max_examples=50)
@given(
    st.dictionaries(
        names,
        st.fixed_dictionaries(
            {},
            optional={
                "text": st.text(),
                "speaker": names,
                "split": st.sampled_from(["train", "valid", "test"]),
                "reply": names,
                "words": st.lists(
                    st.tuples(names, times, times).map(lambda w: [w[0], *sorted(w[1:])])
                ),
            },
        ),
        min_size=1,
    )
)
def test_what_is_written_is_read(tmp_path_factory, rows: dict[str, dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    manifest(path, *({"audio": "a.wav", "id": id, **row} for id, row in rows.items()))
    corpus = open_corpus(path)
    assert [r.id for r in corpus] == list(rows)
    for id, row in rows.items():
        recording = corpus[id]
        for key in ("text", "speaker", "split", "reply"):
            assert getattr(recording, key) == row.get(key)
        words = None if recording.words is None else [list(word) for word in recording.words]
        assert words == row.get("words")
        assert pickle.loads(pickle.dumps(recording)) == recording


def test_many_rows_open_without_touching_the_files(tmp_path, monkeypatch) -> None:
    rows = [{"audio": f"{i}.wav", "text": "some words", "reply": "x"} for i in range(20_000)]
    path = manifest(tmp_path / "rows.jsonl", *rows)
    stats = 0
    stat = os.stat

    def counted(*args, **kwargs):
        nonlocal stats
        stats += 1
        return stat(*args, **kwargs)

    monkeypatch.setattr(os, "stat", counted)
    assert len(open_corpus(path)) == 20_000
    assert stats < 10


# -- lhotse -----------------------------------------------------------------------------------


def make_cuts(folder: Path) -> lhotse.CutSet:
    """Two cuts: a whole file with two supervisions, and a stretch of another."""
    first = lhotse.Recording.from_file(write(folder / "one.wav", seconds=1))
    second = lhotse.Recording.from_file(write(folder / "two.wav", seconds=2, channels=2))
    words = {"word": [AlignmentItem("hello", 0.1, 0.3), AlignmentItem("there", 0.5, 0.25)]}
    supervisions = [
        lhotse.SupervisionSegment("s2", "one", 0.8, 0.1, text="friend", speaker="zoë"),
        lhotse.SupervisionSegment(
            "s1", "one", 0, 0.8, text="hello there", speaker="zoë", alignment=words
        ),
    ]
    return lhotse.CutSet.from_cuts(
        [
            lhotse.MonoCut(
                "one", 0, 1.0, 0, supervisions, recording=first, custom={"split": "test"}
            ),
            lhotse.MultiCut("two", 0.5, 1.0, [0, 1], recording=second, custom={"reply": "one"}),
        ]
    )


def described(corpus) -> list[tuple[Any, ...]]:
    return [(r.id, r.text, r.speaker, r.split, r.reply, r.words) for r in corpus]


EXPECTED = [
    (
        "one",
        "hello there friend",
        "zoë",
        "test",
        None,
        (Word("hello", 0.1, 0.4), Word("there", 0.5, 0.75)),
    ),
    ("two", None, None, None, "one", None),
]


@pytest.mark.parametrize("form", ["cuts.jsonl", "cuts.jsonl.gz", "anything.txt", "shar", "rows"])
def test_all_forms_of_a_corpus_give_the_same_thing(tmp_path, form: str) -> None:
    cuts = make_cuts(tmp_path / "audio")
    path = tmp_path / form
    if form == "shar":
        path.mkdir()
        cuts.to_shar(path, fields={"recording": "wav"}, shard_size=1)
    elif form == "rows":
        rows = [
            {"id": "one", "audio": "audio/one.wav", "text": "hello there friend"},
            {"id": "two", "audio": "audio/two.wav", "start": 0.5, "duration": 1, "reply": "one"},
        ]
        rows[0] |= {"speaker": "zoë", "split": "test"}
        rows[0]["words"] = [["hello", 0.1, 0.4], ["there", 0.5, 0.75]]
        manifest(path, *rows)
    else:
        written = path.with_suffix(".jsonl") if form == "anything.txt" else path
        cuts.to_file(written)
        written.rename(path)
    corpus = open_corpus(path)
    assert described(corpus) == EXPECTED
    plain = {r.id: r for r in open_corpus(tmp_path / "audio")}
    one, two = (pickle.loads(pickle.dumps(recording)).load(RATE) for recording in corpus)
    assert torch.equal(one, plain["one.wav"].load(RATE))
    assert torch.allclose(two, plain["two.wav"].load(RATE)[8000:24_000], atol=1e-6)


def test_a_single_channel_of_a_cut_is_that_channel(tmp_path) -> None:
    stereo = lhotse.Recording.from_file(write(tmp_path / "two.wav", channels=2))
    cut = lhotse.MonoCut("right", 0, 0.5, 1, recording=stereo)
    lhotse.CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl")
    (recording,) = open_corpus(tmp_path / "cuts.jsonl")
    samples, _ = soundfile.read(tmp_path / "two.wav", dtype="float32")
    assert torch.allclose(recording.load(RATE), torch.from_numpy(samples[:, 1]), atol=1e-6)


def test_a_mixed_cut_is_mixed(tmp_path) -> None:
    parts = [lhotse.Recording.from_file(write(tmp_path / f"{n}.wav")).to_cut() for n in "ab"]
    mixed = parts[0].append(parts[1]).with_id("both")
    lhotse.CutSet.from_cuts([mixed]).to_file(tmp_path / "cuts.jsonl")
    (recording,) = open_corpus(tmp_path / "cuts.jsonl")
    assert recording.load(RATE).shape == (RATE,)


def test_relative_paths_of_cuts_may_be_relative_to_the_manifest(tmp_path, monkeypatch) -> None:
    cuts = make_cuts(tmp_path / "audio").to_eager()
    text = "".join(json.dumps(cut.to_dict()) + "\n" for cut in cuts)
    path = tmp_path / "cuts.jsonl"
    path.write_text(text.replace(str(tmp_path) + "/", ""))
    other = tmp_path / "elsewhere"
    other.mkdir()
    for folder in (tmp_path, other):
        monkeypatch.chdir(folder)
        assert [len(r.load(RATE)) for r in open_corpus(path)] == [RATE, RATE]


def test_a_cut_whose_audio_is_gone_is_an_error_of_its_recording(tmp_path) -> None:
    make_cuts(tmp_path / "audio").to_file(tmp_path / "cuts.jsonl")
    (tmp_path / "audio" / "one.wav").unlink()
    one, two = open_corpus(tmp_path / "cuts.jsonl")
    with pytest.raises(AudioError, match=r"one\.wav: no such file"):
        one.load(RATE)
    two.load(RATE)


def test_damaged_audio_in_shar_is_an_error_of_its_recording(tmp_path) -> None:
    make_cuts(tmp_path / "audio").to_shar(tmp_path, fields={"recording": "wav"}, shard_size=1)
    tar = tmp_path / "recording.000000.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[:512] + b"\0" * 4096 + content[512 + 4096 :])
    one, two = open_corpus(tmp_path)
    with pytest.raises(AudioError, match=r"cut 'one' of .*: lhotse cannot read it"):
        one.load(RATE)
    two.load(RATE)


def test_shar_without_its_audio_is_refused(tmp_path) -> None:
    make_cuts(tmp_path / "audio").to_shar(tmp_path, fields={"recording": "wav"}, shard_size=1)
    os.replace(tmp_path / "recording.000001.tar", tmp_path / "recording.000000.tar")
    with pytest.raises(CorpusError, match=r"expected the recording of cut 'one' .* got 'two'"):
        open_corpus(tmp_path)
    (tmp_path / "recording.000000.tar").unlink()
    with pytest.raises(CorpusError, match=r"recording.000000.tar: no such file"):
        open_corpus(tmp_path)


def test_a_wrong_cut_is_refused_with_its_line(tmp_path) -> None:
    path = tmp_path / "cuts.jsonl"
    make_cuts(tmp_path / "audio").to_file(path)
    manifest(
        tmp_path / "more.jsonl", *path.read_text().splitlines(), {"type": "MonoCut", "id": "x"}
    )
    with pytest.raises(CorpusError, match=r"more.jsonl:3: lhotse cannot read this cut"):
        open_corpus(tmp_path / "more.jsonl")


def test_cuts_with_one_id_are_refused(tmp_path) -> None:
    make_cuts(tmp_path / "audio").to_file(tmp_path / "cuts.jsonl")
    line = (tmp_path / "cuts.jsonl").read_text().splitlines()[0]
    with pytest.raises(CorpusError, match="id 'one' is taken by"):
        open_corpus(manifest(tmp_path / "twice.jsonl", line, line))


# -- one channel of a file --------------------------------------------------------------------


def test_a_channel_is_read_alone(tmp_path) -> None:
    path = write(tmp_path / "two.wav", channels=2)
    samples = soundfile.read(path, dtype="float32")[0]
    rows = [{"audio": "two.wav", "channel": channel} for channel in (0, 1)]
    corpus = open_corpus(manifest(tmp_path / "corpus.jsonl", *rows, {"audio": "two.wav"}))
    assert [recording.id for recording in corpus] == ["two.wav#0", "two.wav#1", "two.wav"]
    left, right, both = (recording.load(RATE).numpy() for recording in corpus)
    np.testing.assert_array_equal(left, samples[:, 0])
    np.testing.assert_array_equal(right, samples[:, 1])
    np.testing.assert_allclose(both, samples.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("channel", [-1, 1.0, "left", True])
def test_a_channel_that_is_no_number_is_refused(tmp_path, channel) -> None:
    path = manifest(tmp_path / "corpus.jsonl", {"audio": "a.wav", "channel": channel})
    with pytest.raises(CorpusError, match=r":1: 'channel': expected a channel's number, from 0"):
        open_corpus(path)


def test_a_channel_that_the_file_lacks_is_told(tmp_path) -> None:
    write(tmp_path / "two.wav", channels=2)
    path = manifest(tmp_path / "corpus.jsonl", {"audio": "two.wav", "channel": 2})
    with pytest.raises(AudioError, match="expected a channel from 0 to 1, got 2"):
        open_corpus(path)["two.wav#2"].load(RATE)
