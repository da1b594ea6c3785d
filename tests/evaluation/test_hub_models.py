"""Checkpoints of the hub as recognizers and text LMs, against transformers itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from small_hub import write_gpt2, write_llama, write_whisper
from transformers import AutoTokenizer, WhisperForConditionalGeneration, WhisperProcessor

from speechlm.errors import CheckpointError, InputError
from speechlm.evaluation.hub_models import HubTextModel, WhisperRecognizer

TEXT = "we shall see"


@pytest.mark.parametrize("write", [write_gpt2, write_llama], ids=["gpt2", "llama"])
def test_a_text_is_as_probable_as_transformers_own_loss_says(write, tmp_path: Path) -> None:
    peer = write(tmp_path / "lm")
    model = HubTextModel(tmp_path / "lm")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "lm")
    ids = tokenizer(TEXT)["input_ids"]
    if ids[0] != tokenizer.bos_token_id:
        ids = [tokenizer.bos_token_id, *ids]
    given = torch.tensor([ids])
    with torch.inference_mode():
        loss = float(peer(input_ids=given, labels=given).loss)
    total, count = model.log_prob(TEXT)
    assert count == len(TEXT)
    assert total == pytest.approx(-loss * count, rel=1e-5)
    assert model.log_prob("") == (0.0, 0)


def test_a_model_is_named_by_its_weights(tmp_path: Path) -> None:
    write_gpt2(tmp_path / "lm")
    first = HubTextModel(tmp_path / "lm").name
    assert first.startswith("lm-")
    peer = write_gpt2(tmp_path / "lm")
    with torch.no_grad():
        peer.transformer.wte.weight[0, 0] += 1
    peer.save_pretrained(tmp_path / "lm")
    assert HubTextModel(tmp_path / "lm").name != first


def test_a_text_beyond_the_context_is_refused(tmp_path: Path) -> None:
    write_gpt2(tmp_path / "lm")
    with pytest.raises(InputError, match="at most 64 tokens, got 101"):
        HubTextModel(tmp_path / "lm").log_prob("a" * 100)


def test_whisper_writes_what_transformers_generates(tmp_path: Path) -> None:
    write_whisper(tmp_path / "whisper")
    peer = WhisperForConditionalGeneration.from_pretrained(tmp_path / "whisper").eval()
    processor = WhisperProcessor.from_pretrained(tmp_path / "whisper")
    recognizer = WhisperRecognizer(tmp_path / "whisper")
    waves = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (8000, 16_000)]
    expected = []
    for wave in waves:
        features = processor(
            wave.numpy(), sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
        )
        ids = peer.generate(**features, do_sample=False)
        expected.append(processor.batch_decode(ids, skip_special_tokens=True)[0])
    heard = recognizer.transcribe_many(waves, 16_000)
    assert heard == expected
    assert heard[0] != heard[1]
    assert all(heard)


def test_whisper_hears_what_is_longer_than_its_window(tmp_path: Path) -> None:
    write_whisper(tmp_path / "whisper")
    recognizer = WhisperRecognizer(tmp_path / "whisper")
    wave = torch.randn(24_000, generator=torch.Generator().manual_seed(0))
    parts = recognizer.transcribe_many([wave[:16_000], wave[16_000:]], 16_000)
    assert recognizer.transcribe_many([wave], 16_000) == [" ".join(parts)]


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for kind in (HubTextModel, WhisperRecognizer):
        with pytest.raises(CheckpointError, match="not a checkpoint that transformers") as caught:
            kind(tmp_path)
        assert "\n" not in str(caught.value)
