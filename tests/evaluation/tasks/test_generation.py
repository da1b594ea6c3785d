"""Continuations are made, heard and measured; what cannot be is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("pocketsphinx")

from small_bundle import small_bundle
from small_hub import write_llama, write_whisper
from small_speech import write_corpus

from speechlm import SpeechLM
from speechlm.config import SamplingConfig
from speechlm.data.corpus import open_corpus
from speechlm.errors import CorpusError
from speechlm.evaluation.hub_models import HubTextModel, WhisperRecognizer
from speechlm.evaluation.recognizer import Recognizer, TrigramModel
from speechlm.evaluation.tasks.generation import (
    continuation_rows,
    curve_rows,
    score_continuations,
)
from speechlm.evaluation.tasks.job import Job, System
from speechlm.evaluation.tasks.prompts import Protocol, bounded, choose_prompts
from speechlm.evaluation.tasks.results import Result

SHORT = Protocol(
    prompt_s=0.8,
    least_s=1.2,
    continuation_s=0.4,
    sampling=SamplingConfig(temperature=1.0),
)
Hub = tuple[WhisperRecognizer, HubTextModel]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """A recognizer and a text LM that are fast: random ones in the hub's form."""
    folder = tmp_path_factory.mktemp("hub")
    write_whisper(folder / "whisper")
    write_llama(folder / "llama")
    return WhisperRecognizer(folder / "whisper"), HubTextModel(folder / "llama")


@pytest.fixture
def job(bundle_folder: Path, tmp_path: Path) -> Job:
    return Job(
        name="continuation",
        system=System(str(bundle_folder)),
        data=write_corpus(tmp_path / "corpus"),
        output=tmp_path / "out",
        seed=1,
    )


def told(rows: Sequence[Result]) -> list[str]:
    return [row.to_json() for row in rows]


def journal(job: Job) -> Path:
    return job.output / "scores" / f"{job.name}.jsonl"


def test_continuations_have_all_figures_and_a_seed_decides_them(job: Job, hub: Hub) -> None:
    rows = list(continuation_rows(job, *hub, SHORT))
    found = {row.variant: row for row in rows}
    for text in ("alone", "with-prompt", "recorded"):
        for name in ("perplexity-slamkit", "perplexity-pooled", "perplexity-gslm-mean"):
            assert (found[f"{text}/{name}"].value or 0) > 1
        for name in ("auto-bleu-gslm", "auto-bleu-slamkit", "self-bleu2", "vert", "empty"):
            assert 0 <= (found[f"{text}/{name}"].value or 0) <= 100
    assert found["seconds"].value == pytest.approx(0.4, abs=0.1)
    assert {"continuation-bleu2-text", "continuation-bleu2-heard"} <= set(found)
    assert all(row.asr == hub[0].name and row.judge == hub[1].name for row in rows)
    assert all(row.ci95 is not None and row.ci95[0] <= row.ci95[1] for row in rows)
    notes = [json.loads(line)["note"] for line in journal(job).read_text().splitlines()[1:]]
    assert len({note["seed"] for note in notes}) == len(notes) == 4
    assert notes[0]["sampling"]["temperature"] == 1.0
    again = replace(job, output=job.output / "again")
    assert told(list(continuation_rows(again, *hub, SHORT))) == told(rows)
    other = replace(job, output=job.output / "other", seed=2)
    assert told(list(continuation_rows(other, *hub, SHORT))) != told(rows)


def test_a_killed_run_goes_on(job: Job, hub: Hub) -> None:
    whole = told(list(continuation_rows(job, *hub, SHORT)))
    kept = journal(job).read_bytes()
    lines = kept.split(b"\n")
    journal(job).write_bytes(b"\n".join([*lines[:2], lines[2][:50]]))
    assert told(list(continuation_rows(job, *hub, SHORT))) == whole
    assert journal(job).read_bytes() == kept


def test_a_recording_that_cannot_be_used_is_counted(job: Job, hub: Hub) -> None:
    assert job.data is not None
    (job.data / "r1.flac").write_bytes(b"no sound")
    with (job.data / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"audio": "gone.wav", "id": "gone"}) + "\n")
    rows = list(continuation_rows(job, *hub, SHORT))
    (failed,) = [row for row in rows if row.subset == "failed"]
    assert failed.n == 2
    assert failed.error.startswith("2 of 5, the first gone: ")
    assert {row.n for row in rows if row.variant == "empty-output"} == {3}


def test_an_output_of_nothing_is_counted_and_has_no_perplexity(job: Job, hub: Hub) -> None:
    bundle = small_bundle()
    decoder, end = bundle.lm.decoder, bundle.lm.vocabulary.end
    with torch.no_grad():  # the same state at each position, and the end follows it
        for weight in (*decoder.model.layers.parameters(), decoder.lm_head.weight):
            weight.zero_()
        decoder.model.embed_tokens.weight.fill_(1.0)
        decoder.lm_head.weight[end] = 1.0
    recordings = choose_prompts(open_corpus(job.given), SHORT)
    greedy = replace(SHORT, sampling=SamplingConfig())
    ended = list(
        score_continuations(bundle, recordings, recognizer=hub[0], text_lm=hub[1], protocol=greedy)
    )
    assert [item.figures["empty-output"] for item in ended] == [(100.0, 1.0)] * 4
    assert [item.figures["alone/empty"] for item in ended] == [(100.0, 1.0)] * 4
    assert not any("alone/nll-per-utterance" in item.figures for item in ended)
    assert all("recorded/nll-per-utterance" in item.figures for item in ended)
    bleus = [item.figures.get("continuation-bleu2-text", (0.0, 1.0)) for item in ended]
    assert bleus == [(0.0, 1.0)] * 4


def test_a_curve_has_rows_of_each_temperature_and_of_recorded_speech(job: Job, hub: Hub) -> None:
    job, few = replace(job, name="continuation-curve"), replace(SHORT, most=2)
    rows = list(curve_rows(job, *hub, few, (0.5, 1.0)))
    subsets = {row.subset for row in rows}
    assert subsets == {"", "recorded", "temperature=0.5", "temperature=1"}
    whole = [row for row in rows if not row.subset]
    assert [row.variant for row in whole] == [
        "perplexity-at-oracle-vert",
        "vert-at-oracle-perplexity",
        "area",
    ]
    assert all(row.value is not None or row.error for row in whole)
    assert len([row for row in rows if row.variant.endswith("/vert")]) == 3
    kept = journal(job).read_bytes()
    journal(job).write_bytes(b"\n".join(kept.split(b"\n")[:4]) + b"\n")
    assert told(list(curve_rows(job, *hub, few, (0.5, 1.0)))) == told(rows)
    assert journal(job).read_bytes() == kept


def test_pocketsphinx_hears_and_judges_without_a_download(job: Job) -> None:
    recordings = [open_corpus(job.given)["r0"]]
    both = Recognizer(), TrigramModel()
    (item,) = score_continuations(
        SpeechLM.from_pretrained(job.system.source),
        recordings,
        recognizer=both[0],
        text_lm=both[1],
        protocol=replace(SHORT, continuation_s=1.0),
        texts=["recorded"],
    )
    assert set(item.note["transcripts"]) == {"recorded"}
    assert item.figures["recorded/words"][0] > 0
    total, count = item.note["log_prob"]["recorded"]
    assert (total, count) == both[1].log_prob(item.note["transcripts"]["recorded"])


def test_what_is_no_corpus_for_it_is_refused_in_one_line(job: Job, hub: Hub) -> None:
    with pytest.raises(CorpusError, match="expected recordings of 6 s or more"):
        list(continuation_rows(job, *hub))
    assert job.data is not None
    text = (job.data / "corpus.jsonl").read_text().replace("one", "öne")
    (job.data / "corpus.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(CorpusError, match="expected UTF-8 text") as caught:
        list(continuation_rows(job, *hub, SHORT))
    assert "\n" not in str(caught.value)


def test_there_is_room_for_a_continuation_of_any_units(model: SpeechLM) -> None:
    rate = model.tokenizer.frame_rate
    drawn = bounded(model, replace(SHORT, continuation_s=2.0), SamplingConfig(temperature=0.5))
    assert 2 * rate <= drawn.max_units <= 2 * rate + 2
    assert drawn.temperature == 0.5
