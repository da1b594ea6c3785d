"""STSP: predictions of others, and a bundle that goes on from the published recordings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from brief_bundle import brief_bundle

from speechlm.data.human import human_clips
from speechlm.errors import CheckpointError, CorpusError
from speechlm.evaluation.tasks.job import Job, System
from speechlm.evaluation.tasks.results import Result
from speechlm.evaluation.tasks.stsp import SENTIMENTS, MoodClassifier, run_stsp

CLIPS = [clip.path for clip in list(human_clips("answers").values())[:3]]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(data: Path, output: Path, system: Path | str = "mfcc") -> list[Result]:
    job = Job(name="stsp", system=System(str(system)), data=data, output=output, seed=1)
    return list(run_stsp(job))


def test_predictions_are_matched_by_id_and_mood(tmp_path: Path) -> None:
    data = tmp_path / "data"
    references = [
        {"id": 1, "emotion": "happy"},
        {"id": -2, "sentiment": "negative", "emotion": "angry"},
        {"id": 3, "emotion": "default"},
        {"id": 4, "sentiment": "neutral"},
    ]
    write_lines(data / "ref.jsonl", references)
    write_lines(
        data / "pred_s_t.jsonl",
        [
            {"id": "3", "pred": "neutral"},
            {"id": 1, "pred": "Amused"},
            {"id": "-2", "pred": "positive"},
        ],
    )
    write_lines(data / "pred_t_t.jsonl", [{"id": each["id"], "pred": "sad"} for each in references])
    rows = run(data, tmp_path / "out")
    found = {row.name: row.value for row in rows if not row.error}
    assert found["stsp/s_t"] == pytest.approx(200 / 3)
    assert found["stsp/t_t"] == 25.0
    assert found["stsp/sentiment=positive/s_t"] == 100.0
    assert found["stsp/sentiment=negative/s_t"] == 0.0
    failed = next(row for row in rows if row.error)
    assert failed.error == "1 of 8, the first 4: no prediction of s_t"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published layout, with a classifier of random weights in the hub's format."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForSequenceClassification,
    )

    folder = tmp_path_factory.mktemp("stsp")
    labels = ["angry", "default", "happy", "laughing", "sad"]
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_kernel=(10, 8),
        conv_stride=(8, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=8,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    model = Wav2Vec2ForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.bias[3] = 9.0  # laughing is no mood of the benchmark
        model.classifier.bias[2] = 5.0
    model.save_pretrained(folder / "model" / "speech_classifier")
    Wav2Vec2FeatureExtractor().save_pretrained(folder / "model" / "speech_classifier")
    rows = []
    for index, (path, mood) in enumerate(zip(CLIPS, ("happy", "angry", "happy"), strict=True)):
        name = f"emov/{path.name}"
        (folder / "data" / "emov").mkdir(parents=True, exist_ok=True)
        if index < 2:
            (folder / "data" / name).write_bytes(path.read_bytes())
        rows.append({"id": index, "emotion": mood, "wav_path": name})
    write_lines(folder / "manifest" / "emov" / "emov.test.jsonl", rows)
    write_lines(folder / "manifest" / "emov" / "emov.train.jsonl", [{"id": 1}])
    return folder


def test_a_bundle_goes_on_and_is_classified(published: Path, tmp_path: Path) -> None:
    brief_bundle().save_pretrained(tmp_path / "bundle")
    rows = run(published, tmp_path / "out", tmp_path / "bundle")
    found = {row.name: row.value for row in rows if not row.error}
    assert found["stsp/speech_speech"] == 50.0
    assert found["stsp/sentiment=positive/speech_speech"] == 100.0
    assert rows[0].judge == str(published / "model" / "speech_classifier")
    failed = next(row for row in rows if row.error)
    assert "1 of 3, the first emov/2" in failed.error
    assert "no such file" in failed.error
    again = run(published, tmp_path / "again", tmp_path / "bundle")
    assert again == rows


def test_a_classifier_without_moods_is_refused(published: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected an audio classifier"):
        MoodClassifier(str(tmp_path))
    source = published / "model" / "speech_classifier"
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {key: f"x{value}" for key, value in config["id2label"].items()}
    config["label2id"] = {value: int(key) for key, value in config["id2label"].items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="no label is a mood of positive"):
        MoodClassifier(str(tmp_path))


def test_wrong_data_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"expected ref.jsonl and pred\*.jsonl"):
        run(tmp_path, tmp_path / "out")
    write_lines(tmp_path / "ref.jsonl", [{"id": 1, "sentiment": "positive"}])
    with pytest.raises(CorpusError, match=r"expected pred\*.jsonl beside ref.jsonl"):
        run(tmp_path, tmp_path / "out")
    write_lines(tmp_path / "pred.jsonl", [{"id": 5, "pred": "happy"}])
    with pytest.raises(CorpusError, match=r"5 is not in ref.jsonl"):
        run(tmp_path, tmp_path / "out")
    write_lines(tmp_path / "pred.jsonl", [{"id": 1}, {"id": 1}])
    with pytest.raises(CorpusError, match=r"pred.jsonl:2: the id 1 comes twice"):
        run(tmp_path, tmp_path / "out")
    write_lines(tmp_path / "pred.jsonl", [{"id": 1, "pred": "bored"}])
    rows = run(tmp_path, tmp_path / "out")
    assert f"expected a mood of {', '.join(SENTIMENTS)}, got 'bored'" in rows[0].error
