from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from speechlm.errors import CheckpointError, InputError
from speechlm.files import read_json, write_json
from speechlm.layouts.grid import LMSequence
from speechlm.layouts.registry import build_layout
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.model import scoring
from speechlm.model.architecture import DecoderConfig
from speechlm.model.decoder import Decoder
from speechlm.model.unit_lm import UnitLM

VOCABULARY = Vocabulary(tokenizer_fingerprint="tokenizer-01", stream_sizes=(20,))
LAYOUT = build_layout("flat", {}, 1)


def small_lm(tie: bool = True, seed: int = 0) -> UnitLM:
    torch.manual_seed(seed)
    config = DecoderConfig(
        num_layers=2,
        model_dim=16,
        num_heads=2,
        num_kv_heads=1,
        ffn_dim=24,
        max_positions=64,
        tie_embeddings=tie,
        vocab_size=VOCABULARY.size,
    )
    decoder = Decoder(config)
    with torch.no_grad():
        decoder.model.embed_tokens.weight.mul_(20)
    return UnitLM(decoder, VOCABULARY, LAYOUT)


def random_sequences(lengths: list[int]) -> list[LMSequence]:
    generator = torch.Generator().manual_seed(3)
    return [
        LMSequence(
            ids=torch.randint(5, VOCABULARY.size, (1, length), generator=generator),
            loss_weights=torch.rand(1, length, generator=generator),
        )
        for length in lengths
    ]


@pytest.mark.parametrize("tie", [True, False])
def test_a_saved_lm_is_the_same_lm(tmp_path: Path, tie: bool) -> None:
    lm = small_lm(tie)
    lm.save(tmp_path / "lm")
    loaded = UnitLM.load(tmp_path / "lm")
    ids = torch.arange(12)[None]
    assert torch.equal(loaded.decoder(ids), lm.decoder(ids))
    assert loaded.vocabulary == lm.vocabulary
    assert loaded.fingerprint == lm.fingerprint
    assert loaded.fingerprint != small_lm(tie, seed=1).fingerprint


def test_weights_that_do_not_fit_their_config_are_refused(tmp_path: Path) -> None:
    small_lm().save(tmp_path / "lm")
    (tmp_path / "lm" / "model.safetensors").write_bytes(b"partial")
    with pytest.raises(CheckpointError, match="save or download it again"):
        UnitLM.load(tmp_path / "lm")
    small_lm().save(tmp_path / "lm")
    config = read_json(tmp_path / "lm" / "config.json")
    config["config"]["decoder"]["num_layers"] = 3
    write_json(tmp_path / "lm" / "config.json", config)
    with pytest.raises(CheckpointError):
        UnitLM.load(tmp_path / "lm")


def test_a_decoder_of_another_size_is_refused() -> None:
    other = Vocabulary(tokenizer_fingerprint="tokenizer-01", stream_sizes=(21,))
    with pytest.raises(InputError, match="of 28 ids, as the vocabulary has, got one of 27"):
        UnitLM(small_lm().decoder, other, LAYOUT)


def test_likelihood_is_the_weighted_sum_of_log_probabilities() -> None:
    lm = small_lm()
    (sequence,) = random_sequences([9])
    logits = lm.decoder(sequence.ids)[0, :-1]
    scores = -F.cross_entropy(logits, sequence.ids[0, 1:], reduction="none")
    expected = (scores * sequence.loss_weights[0, 1:]).sum()
    torch.testing.assert_close(lm.log_likelihood([sequence])[0], expected.detach())


def test_likelihood_is_the_same_alone_and_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = small_lm()
    sequences = random_sequences([7, 2, 33, 1, 12])
    alone = torch.cat([lm.log_likelihood([sequence]) for sequence in sequences])
    assert alone[3] == 0.0
    torch.testing.assert_close(lm.log_likelihood(sequences), alone, atol=1e-4, rtol=1e-5)
    monkeypatch.setattr(scoring, "CPU_POSITIONS", 34)
    torch.testing.assert_close(lm.log_likelihood(sequences), alone, atol=1e-4, rtol=1e-5)
    assert lm.log_likelihood([]).shape == (0,)
