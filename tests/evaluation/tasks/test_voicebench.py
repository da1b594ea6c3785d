"""VoiceBench: both layouts, every kind of set, with a judge, without, with one that fails."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from brief_bundle import brief_bundle
from chat_server import Reply, Server, completion

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.errors import AudioError, ConfigError, CorpusError
from speechlm.evaluation.tasks.job import Job, System
from speechlm.evaluation.tasks.judged import NO_JUDGE
from speechlm.evaluation.tasks.results import Result
from speechlm.evaluation.tasks.spoken_replies import Sound, questions_sha256
from speechlm.evaluation.tasks.voicebench import run_voicebench
from speechlm.evaluation.tasks.voicebench_data import read_voicebench

CLIPS = [clip.path for clip in list(human_clips("answers").values())[:4]]
ROWS: Mapping[str, list[dict[str, Any]]] = {
    "alpacaeval": [{"response": "Cats sleep."}, {"response": ""}],
    "commoneval": [{"response": "It is blue."}],
    "wildvoice": [{"response": "Nice."}],
    "sd-qa": [
        {"response": "That is Paris, in France.", "reference": "Paris"},
        {"response": "I do not know", "reference": "the Nile"},
    ],
    "mmsu": [
        {"response": "The answer is B.", "reference": "B"},
        {"response": "The answer is C.", "reference": "B"},
        {"response": "Who knows", "reference": "A"},
        {"response": "", "reference": "A"},
    ],
    "openbookqa": [{"response": "D", "reference": "D"}],
    "bbh": [
        {"response": "No, it is not plausible.", "reference": "no", "id": "sports_understanding_1"},
        {"response": "The answer is (B)", "reference": "(A)", "id": "hyperbaton_2"},
        {"response": "Hm", "reference": "Yes", "id": "navigate_1"},
    ],
    "ifeval": [
        {
            "response": "Well:\nno, never",
            "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
            "kwargs": [{"relation": None}, None],
        },
        {
            "response": "all fine",
            "instruction_id_list": ["punctuation:no_comma", "language:response_language"],
            "kwargs": [{}, {"language": "en"}],
        },
    ],
    "advbench": [
        {"response": "I'm sorry, I can't, you idiot."},
        {"response": "Sure, here is an easy way."},
        {"response": ""},
    ],
}


def write_rows(folder: Path, rows: Mapping[str, list[dict[str, Any]]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in rows.items():
        lines = [json.dumps({"prompt": f"question {i}", **row}) for i, row in enumerate(each)]
        (folder / f"m-{name}-test-audio.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(autouse=True)
def _no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPEECHLM_JUDGE", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    monkeypatch.setenv("SPEECHLM_JUDGE", "some-model")
    monkeypatch.setenv("OPENAI_BASE_URL", made.url)
    monkeypatch.setenv("OPENAI_API_KEY", "very-secret")
    yield made
    made.close()


def run(data: Path, output: Path, system: Path | str | None = None) -> list[Result]:
    source = str(system if system is not None else data)
    job = Job(name="voicebench", system=System(source), data=data, output=output, seed=1)
    return list(run_voicebench(job))


def values(rows: list[Result]) -> dict[str, float | None]:
    return {row.name.removeprefix("voicebench/"): row.value for row in rows}


def test_every_set_is_graded_without_a_judge_but_for_what_needs_one(tmp_path: Path) -> None:
    rows = run(write_rows(tmp_path / "data", ROWS), tmp_path / "out")
    found = values(rows)
    assert found["mmsu/accuracy"] == 25.0
    assert found["mmsu/unread"] == 50.0
    guesses = [random.Random(f"1 mmsu/test-{i:05d}").choice("ABCD") for i in (2, 3)]
    assert found["mmsu/accuracy_guessed"] == 25.0 * (1 + guesses.count("A"))
    assert found["openbookqa/accuracy"] == 100.0
    assert found["bbh/accuracy"] == pytest.approx(100 / 3)
    assert found["bbh/unread"] == pytest.approx(100 / 3)
    assert found["advbench/refusal"] == pytest.approx(100 / 3)
    assert found["advbench/empty"] == pytest.approx(100 / 3)
    assert found["advbench/voicebench_refusal"] == pytest.approx(200 / 3)
    assert found["sd-qa/contains_reference"] == 50.0
    assert found["ifeval/strict_instruction"] == pytest.approx(100 / 3)
    assert found["ifeval/loose_instruction"] == 100.0
    assert found["ifeval/strict_prompt"] == 0.0
    assert found["ifeval/loose_prompt"] == 100.0
    assert found["ifeval/unchecked"] == 25.0
    assert found["alpacaeval/refusal-phrases-1"] == 0.0
    assert found["advbench/toxic-words-1"] == pytest.approx(100 / 3)
    errors = {row.variant: row.error for row in rows if row.error}
    assert errors["alpacaeval/judge_1_5"] == NO_JUDGE
    assert errors["sd-qa/judge_majority"] == NO_JUDGE
    assert "no figure of alpacaeval, commoneval, wildvoice, sd-qa" in errors["overall"]
    assert all(row.asr == "as given" and row.judge is None for row in rows)


def judged(number: int, body: dict[str, Any]) -> Reply:
    """5 for what is blue, yes for Paris; nothing of use about what is nice."""
    prompt = body["messages"][0]["content"]
    if "Yes or No" in prompt:
        answer = "Yes" if "France" in prompt else "No."
        return 200, {}, completion(*[answer] * body["n"])
    if "Nice" in prompt:
        return 200, {}, completion("9", "[[2]]", "good")
    return 200, {}, completion(*["5" if "blue" in prompt else "2"] * body["n"])


def test_a_judge_gives_its_figures_and_the_overall_score(tmp_path: Path, server: Server) -> None:
    server.answer = judged
    rows = run(write_rows(tmp_path / "data", ROWS), tmp_path / "out")
    found = values(rows)
    assert not any(row.error for row in rows)
    assert found["alpacaeval/judge_1_5"] == 2.0
    assert found["commoneval/judge_1_5"] == 5.0
    assert found["wildvoice/judge_1_5"] == 2.0
    assert found["wildvoice/judge_unread"] == pytest.approx(200 / 3)
    assert found["sd-qa/judge_majority"] == 50.0
    # Prompts with an instruction that cannot be checked are left out of the overall score.
    parts = [40.0, 100.0, 40.0, 50.0, 25.0, 100.0, 100 / 3, (0 + 0 + 100 + 100) / 4, 100 / 3]
    assert found["overall"] == pytest.approx(sum(parts) / 9)
    overall = next(row for row in rows if row.variant == "overall")
    assert overall.ci95 is not None
    assert overall.ci95[0] <= sum(parts) / 9 <= overall.ci95[1]
    assert "some-model" in (overall.judge or "")
    text = (tmp_path / "out" / "scores" / "voicebench.jsonl").read_text()
    assert '"raw": ["9", "[[2]]", "good"]' in text
    assert "very-secret" not in text + "".join(row.to_json() for row in rows)
    asked = len(server.bodies)
    assert run(tmp_path / "data", tmp_path / "out") == rows
    assert len(server.bodies) == asked


def test_a_judge_that_goes_away_costs_its_figures_alone_and_goes_on_later(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechlm.evaluation.tasks.judged.PROMPTS_AT_ONCE", 1)
    data = write_rows(tmp_path / "data", ROWS)

    def answer(number: int, body: dict[str, Any]) -> Reply:
        return judged(number, body) if number < 2 else (401, {}, b"no credit")

    server.answer = answer
    rows = run(data, tmp_path / "out")
    errors = {row.variant: row.error for row in rows if row.error}
    assert "HTTP 401: no credit" in errors["alpacaeval/judge_1_5"]
    assert values(rows)["mmsu/accuracy"] == 25.0
    server.answer = judged
    assert not any(row.error for row in run(data, tmp_path / "out"))
    assert len(server.bodies) == 3 + 4  # 6 prompts, one of them asked twice


def test_a_judge_without_an_address_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECHLM_JUDGE", "some-model")
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL"):
        run(write_rows(tmp_path / "data", ROWS), tmp_path / "out")


def write_parquet(folder: Path, clips: Sequence[Path] = CLIPS) -> Path:
    """Two accents as the dataset has them, groups of three rows in each file."""
    for accent in ("usa", "ind_n"):
        rows = [
            {
                "audio": {"bytes": path.read_bytes(), "path": path.name},
                "prompt": "which number",
                "reference": "ten",
            }
            for path in clips
        ]
        path = folder / "sd-qa" / f"{accent}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    return folder


def test_the_published_parquet_files_are_read(tmp_path: Path) -> None:
    asked = read_voicebench(write_parquet(tmp_path))["sd-qa"]
    assert [question.id for question in asked] == [
        f"sd-qa/{accent}-{i:05d}" for accent in ("ind_n", "usa") for i in range(4)
    ]
    for question, path in zip(asked, [*CLIPS, *CLIPS], strict=True):
        assert question.sound is not None
        assert question.sound.load(16_000).equal(load_audio(path, 16_000))
        assert "audio" not in question.row
    with pytest.raises(AudioError, match="has no row 9"):
        Sound(path=tmp_path / "sd-qa" / "usa-00000-of-00001.parquet", row=9).load(16_000)


def test_a_bundle_answers_aloud_and_the_same_again(tmp_path: Path) -> None:
    brief_bundle().save_pretrained(tmp_path / "bundle")
    data = write_parquet(tmp_path / "data", CLIPS[:1])
    rows = [row for row in run(data, tmp_path / "a", tmp_path / "bundle") if not row.error]
    found = {row.name for row in rows}
    assert {"voicebench/sd-qa/contains_reference", "voicebench/split=usa/sd-qa/empty"} <= found
    assert all(row.n == (1 if row.subset else 2) for row in rows)
    assert all((row.asr or "").startswith("pocketsphinx") for row in rows)
    again = [row for row in run(data, tmp_path / "b", tmp_path / "bundle") if not row.error]
    assert again == rows
    lines = (tmp_path / "a" / "scores" / "voicebench-replies.jsonl").read_text().splitlines()
    notes = [json.loads(line)["note"] for line in lines[1:]]
    assert [set(note) for note in notes] == [{"prompt", "response", "seconds"}] * 2
    assert all(note["seconds"] > 0 for note in notes)


def test_a_question_too_long_does_not_spoil_the_others(tmp_path: Path) -> None:
    brief_bundle().save_pretrained(tmp_path / "bundle")
    long = next(iter(human_clips("prompts").values())).path
    data = write_parquet(tmp_path / "data", [CLIPS[0], long])
    rows = run(data, tmp_path / "out", tmp_path / "bundle")
    failed = next(row for row in rows if row.subset == "failed")
    assert failed.n == 2
    assert "max_positions" in failed.error
    assert next(row for row in rows if row.name == "voicebench/sd-qa/empty").n == 2


def test_recorded_answers_are_heard_and_a_missing_one_is_a_row(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_rows(data, {"sd-qa": [{"audio": "q.wav", "reference": "ten"}] * 2})
    answers = tmp_path / "answers" / "sd-qa"
    answers.mkdir(parents=True)
    (answers / "test-00000.flac").write_bytes(CLIPS[0].read_bytes())
    rows = run(data, tmp_path / "out", tmp_path / "answers")
    failed = next(row for row in rows if row.subset == "failed")
    assert "1 of 2, the first sd-qa/test-00001" in failed.error
    assert "is missing: expected the recorded answer" in failed.error
    assert next(row for row in rows if row.variant == "sd-qa/empty").n == 1


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ({"mmsu": [{"response": "x"}]}, "row 0 of mmsu lacks reference"),
        ({"alpacaeval": [{}]}, "row 0 of alpacaeval lacks audio or response"),
        ({"nothing": [{"response": "x"}]}, "expected VoiceBench"),
        ({"mmsu": []}, "no rows of mmsu|not a JSON object"),
    ],
)
def test_data_that_is_not_whole_is_one_line(
    tmp_path: Path, rows: dict[str, list[dict[str, Any]]], line: str
) -> None:
    with pytest.raises(CorpusError, match=line):
        read_voicebench(write_rows(tmp_path, rows))


def test_a_reference_that_no_answer_could_be_is_an_item_that_failed(tmp_path: Path) -> None:
    rows = run(
        write_rows(tmp_path / "data", {"mmsu": [{"response": "B", "reference": "Z"}]}),
        tmp_path / "out",
    )
    assert len(rows) == 1
    assert "expected a reference of A, B, C, D, got 'Z'" in rows[0].error


def test_the_hash_is_of_rows_and_sound(tmp_path: Path) -> None:
    def digest() -> str:
        found = read_voicebench(tmp_path)
        return questions_sha256([one for each in found.values() for one in each])

    write_rows(tmp_path, {"commoneval": [{"audio": "q.flac"}]})
    (tmp_path / "q.flac").write_bytes(CLIPS[0].read_bytes())
    first = digest()
    assert digest() == first
    (tmp_path / "q.flac").write_bytes(CLIPS[1].read_bytes())
    second = digest()
    assert second != first
    write_rows(tmp_path, {"commoneval": [{"audio": "q.flac", "more": 1}]})
    assert digest() != second
