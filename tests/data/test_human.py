import json

import soundfile

from speechlm.data.corpus import open_corpus
from speechlm.data.human import human_clips, recordings_folder, write_prompts


def test_every_clip_is_there_at_16_khz_in_one_channel() -> None:
    for clip in human_clips().values():
        info = soundfile.info(clip.path)
        assert (info.samplerate, info.channels, info.format) == (16_000, 1, "FLAC")
        assert 0.4 < info.duration < (1.5 if clip.group == "answers" else 10)


def test_the_index_names_exactly_the_files() -> None:
    names = {path.stem for path in recordings_folder().glob("*.flac")}
    index = json.loads((recordings_folder() / "index.json").read_text(encoding="utf-8"))
    assert names == set(human_clips()) == {*index["answers"], *index["prompts"]}
    assert human_clips() == human_clips("answers") | human_clips("prompts")


def test_answers_differ_in_what_is_said() -> None:
    texts = [clip.text for clip in human_clips("answers").values()]
    assert len(set(texts)) == len(texts) >= 60


def test_the_recordings_stay_small_and_credited() -> None:
    folder = recordings_folder()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000
    licence = (folder / "LICENSE.md").read_text(encoding="utf-8")
    for credit in ("Allison Smith", "Digium", "CC-BY-SA-3.0", "Changes made"):
        assert credit in licence


def test_prompts_become_a_corpus(tmp_path) -> None:
    write_prompts(tmp_path / "prompts")
    corpus = open_corpus(tmp_path / "prompts")
    assert {r.id: r.text for r in corpus} == {
        name: clip.text for name, clip in human_clips("prompts").items()
    }
    assert len(corpus) >= 12
    assert all(r.load(16_000).shape[0] > 3 * 16_000 for r in list(corpus)[:3])
    assert (tmp_path / "prompts" / "LICENSE.md").is_file()
