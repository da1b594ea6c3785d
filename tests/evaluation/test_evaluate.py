"""The whole evaluation on a tiny bundle, whose LM is untrained but whose figures are real."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from speechlm.bundle import SpeechLM
from speechlm.config import CorpusConfig, EvaluateConfig, RunConfig, SamplingConfig, load_config
from speechlm.data.corpus import open_corpus
from speechlm.data.human import human_clips
from speechlm.errors import CorpusError
from speechlm.evaluation.asked import draw_questions, family, find_questions
from speechlm.evaluation.evaluate import _sequences, evaluate
from speechlm.evaluation.measures import codebook_usage, confusions, proportion, unit_perplexity
from speechlm.evaluation.report import differences
from speechlm.layouts.grid import LMSequence
from speechlm.layouts.registry import build_layout
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.model.architecture import DecoderConfig
from speechlm.model.decoder import Decoder
from speechlm.model.unit_lm import UnitLM
from speechlm.units import Units
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans
from speechlm_vocoders.centroid_mel import CentroidMel

pytest.importorskip("pocketsphinx")
pytest.importorskip("matplotlib")

CLIPS = human_clips("answers")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def write_corpus(folder: Path, split: str = "test") -> Path:
    """Days as their own questions: "tuesday" answers "monday"."""
    folder.mkdir()
    rows: list[dict[str, Any]] = []
    for name in DAYS:
        audio = str(CLIPS[name].path)
        rows.append({"id": f"answer.{name}", "audio": audio, "text": name})
    for this, following in zip(DAYS, (*DAYS[1:], DAYS[0]), strict=True):
        for voice, of in (("ann", split), ("bob", "train")):
            row = {"id": f"{voice}.after-{this}.0", "audio": str(CLIPS[this].path), "text": this}
            rows.append({**row, "speaker": voice, "split": of, "reply": f"answer.{following}"})
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    output = tmp_path_factory.mktemp("run")
    corpus = write_corpus(output / "corpus")
    config = RunConfig(
        output=output,
        corpus=CorpusConfig(path=corpus),
        generate=SamplingConfig(max_units=6),
        evaluate=EvaluateConfig(num_questions=5, num_examples=3, suites=("mini-ssc",)),
    )
    waves = [recording.load(16_000) for recording in open_corpus(corpus)][: len(DAYS)]
    tokenizer = LogMelKMeans.fit(waves, {"num_units": 48, "iterations": 4}, seed=1)
    SpeechLM(tokenizer, tiny_lm(tokenizer), CentroidMel.for_tokenizer(tokenizer)).save_pretrained(
        config.bundle_path
    )
    config.train_path.mkdir()
    metrics = [
        {"split": split, "step": step, "nll": nll}
        for step in (1, 2, 3)
        for split, nll in (("train", 5.0 / step), ("valid", 6.0))
    ]
    lines = [*map(json.dumps, metrics), '{"split": "tr']  # cut short by a kill
    (config.train_path / "metrics.jsonl").write_text("\n".join(lines))
    (output / "seconds.json").write_text('{"corpus": 3.5, "train": 60.25, "evaluate": 1.0}')
    return config


def tiny_lm(tokenizer: LogMelKMeans) -> UnitLM:
    torch.manual_seed(0)
    vocabulary = Vocabulary(
        tokenizer_fingerprint=tokenizer.fingerprint, stream_sizes=(tokenizer.vocab_size,)
    )
    shape = DecoderConfig(
        num_layers=1,
        model_dim=16,
        num_heads=2,
        num_kv_heads=1,
        ffn_dim=24,
        max_positions=512,
        vocab_size=vocabulary.size,
    )
    return UnitLM(Decoder(shape), vocabulary, build_layout("flat", {}, 1))


@pytest.fixture(scope="module")
def report(config: RunConfig) -> dict[str, Any]:
    return evaluate(config)


def test_the_judge_hears_all_four_kinds_over_the_same_questions(report: dict[str, Any]) -> None:
    for name in ("recorded", "resynthesized", "unseen", "seen"):
        row = report["judge"][name]
        assert row["n"] == 5
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
    assert report["judge"]["recorded"]["accuracy"] == 1.0
    assert report["judge"]["left_out"] == []
    # 48 units do not keep days apart perfectly, but an untrained LM says no day on purpose.
    assert report["judge"]["resynthesized"]["accuracy"] > report["judge"]["unseen"]["accuracy"]
    assert set(report["judge"]["families"]) == {"day after"}
    assert set(report["judge"]["unseen_voices"]) == {"ann"}


def test_an_untrained_lm_is_about_as_unsure_as_its_vocabulary_is_large(
    report: dict[str, Any],
) -> None:
    for name in ("answer", "all"):
        row = report["unit_perplexity"][name]
        assert row["low"] <= row["perplexity"] <= row["high"]
        assert 30 < row["perplexity"] < 90
    positions = {name: row["positions"] for name, row in report["unit_perplexity"].items()}
    assert positions["all"] > positions["answer"]


def test_times_are_given_by_stage(report: dict[str, Any]) -> None:
    assert {"corpus": 3.5, "train": 60.25}.items() <= report["seconds"].items()
    assert report["seconds"]["evaluate"] > report["seconds"]["evaluate.judge"] > 0


def test_benchmarks_are_part_of_it(report: dict[str, Any], page: Page) -> None:
    rows = {row["variant"]: row for row in report["benchmarks"]}
    assert {"sum", "answer_sum"} <= set(rows)
    assert all(row["metric"] == "mini-ssc" and not row["error"] for row in rows.values())
    assert "not comparable with papers" in page.text
    assert "answer_per_second" in page.text
    for stage in ("tokenize", "generate", "vocode", "judge"):
        assert report["real_time_factor"][stage] > 0
    latency = report["first_audio_latency"]
    assert latency["n"] == 4
    assert 0 < latency["median_s"] <= latency["p95_s"]
    assert report["vocoder_stream"]["streaming"] == "exact"
    assert report["vocoder_stream"]["signal_to_difference_db"] is None
    assert report["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_what_is_returned_is_what_is_written(config: RunConfig, report: dict[str, Any]) -> None:
    assert json.loads((config.output / "report.json").read_text()) == report


class Page(HTMLParser):
    """Checks nesting and remembers what a test asks about."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(config: RunConfig, report: dict[str, Any]) -> Page:
    parsed = Page()
    parsed.feed((config.output / "report.html").read_text(encoding="utf-8"))
    parsed.close()
    assert parsed.open == []
    return parsed


def test_each_example_has_players_and_spectrograms(page: Page) -> None:
    players = [attrs for tag, attrs in page.tags if tag == "audio"]
    assert len(players) >= 3 * 3
    assert all((attrs["src"] or "").startswith("data:audio/flac;base64,Zkxh") for attrs in players)
    labels = [attrs.get("aria-label") or "" for tag, attrs in page.tags if tag == "svg"]
    assert sum(label.startswith("Spectrogram of ") for label in labels) == len(players)
    assert "Training curve: training ends at 1.667; validation ends at 6.000" in labels
    for start in ("Use of units", "Time of each stage"):
        assert any(label.startswith(start) for label in labels)


def test_the_page_needs_no_other_address(page: Page) -> None:
    for tag, attrs in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attrs.get(name) or "#").startswith(("data:", "#")), (tag, attrs)
    styles = [text for text in page.text.split("}") if "url(" in text]
    assert all("url(#" in text for text in styles)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_page_tells_how_to_make_it_again(config: RunConfig, page: Page, tmp_path: Path) -> None:
    assert "num_questions: 5" in page.text
    assert "speechlm evaluate run.yaml" in page.text
    import yaml

    (tmp_path / "run.yaml").write_text(yaml.safe_dump(differences(config, RunConfig())))
    assert load_config(tmp_path / "run.yaml") == config


def test_a_corpus_without_test_questions_is_refused(config: RunConfig, tmp_path: Path) -> None:
    from dataclasses import replace

    corpus = CorpusConfig(path=write_corpus(tmp_path / "corpus", split="valid"))
    with pytest.raises(CorpusError, match="expected questions whose split is 'test'"):
        evaluate(replace(config, corpus=corpus))


def test_a_corpus_without_replies_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"audio": str(CLIPS["one"].path)}))
    with pytest.raises(CorpusError, match="no question with a recorded reply"):
        find_questions(open_corpus(tmp_path))


def test_the_draw_depends_on_nothing_but_the_seed(tmp_path: Path) -> None:
    questions = find_questions(open_corpus(write_corpus(tmp_path / "corpus")))
    first, again, other = (
        [asked.question.id for asked in draw_questions(questions, "test", 5, seed)]
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(set(first)) == 5
    assert len(draw_questions(questions, "test", 100, 1)) == 7


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("v.after-monday.0", "day after"),
        ("v.before-june.1", "month before"),
        ("v.after-third.0", "place after"),
        ("v.before-nine.0", "number before"),
        ("v.two-plus-three.0", "sums"),
        ("v.ten-more-than-fifty.0", "ten more than"),
        ("v.letter-b.0", "spelling alphabet"),
        ("v.opposite-of-plus.0", "opposites"),
        ("anything.wav", "other questions"),
    ],
)
def test_families_of_questions(question: str, expected: str) -> None:
    assert family(question) == expected


def test_proportions_and_confusions() -> None:
    row = proportion([True, True, False, True])
    assert (row["accuracy"], row["n"]) == (0.75, 4)
    assert proportion([])["accuracy"] is None
    pairs = [("one", "nine"), ("two", "two"), ("one", "nine"), ("two", "")]
    assert confusions(pairs) == [
        {"expected": "one", "heard": "nine", "count": 2},
        {"expected": "two", "heard": "", "count": 1},
    ]


def test_codebook_usage_of_a_known_distribution() -> None:
    codes = torch.tensor([[0, 0, 1, 1, 3, 3]])
    (row,) = codebook_usage([Units(codes=codes, frame_rate=50.0, fingerprint="x")], [8])
    assert (row["used"], row["frames"], row["counts"][:4]) == (3, 6, [2, 2, 2, 0])
    assert row["perplexity"] == pytest.approx(3.0)


def test_unit_perplexity_is_that_of_the_mean_loss(config: RunConfig) -> None:
    model = SpeechLM.from_pretrained(config.bundle_path)
    wave = next(iter(open_corpus(config.corpus_path))).load(16_000)
    sequence = model.lm.layout.encode(
        model.lm.vocabulary, {"speech": model.encode(wave, 16_000).codes}
    )
    half = LMSequence(ids=sequence.ids[:, :5], loss_weights=sequence.loss_weights[:, :5])
    found = unit_perplexity(model.lm, [sequence, half], seed=0)
    total = model.lm.log_likelihood([sequence, half]).sum()
    count = len(sequence) - 1 + 4
    assert found["perplexity"] == pytest.approx(float((-total / count).exp()), rel=1e-5)


def test_conversations_are_as_long_as_the_lm_reads_them(config: RunConfig) -> None:
    """Eight codebooks side by side take no more positions than one."""
    model = SpeechLM.from_pretrained(config.bundle_path)
    layout = build_layout("delay", {}, 8)
    vocabulary = Vocabulary(tokenizer_fingerprint="codec", stream_sizes=(20,) * 8)
    shape = replace(model.lm.decoder.config, vocab_size=vocabulary.size)
    model.lm = UnitLM(Decoder(shape), vocabulary, layout)
    units = Units(
        codes=torch.zeros(8, 200, dtype=torch.int64), frame_rate=50.0, fingerprint="codec"
    )
    (sequence,) = _sequences(model, layout, [(units, units)])
    assert 400 < len(sequence) < 450
    longer = Units(
        codes=torch.zeros(8, 300, dtype=torch.int64), frame_rate=50.0, fingerprint="codec"
    )
    assert len(_sequences(model, layout, [(longer, longer), (units, units)])) == 1
    with pytest.raises(CorpusError, match="none of 1 questions fits with its answer into 512"):
        _sequences(model, layout, [(longer, longer)])
