"""A text LM's body under a joint vocabulary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from speechlm.errors import ConfigError, InputError
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.model.architecture import DecoderConfig, DepthConfig
from speechlm.model.decoder import INIT_STD, Decoder
from speechlm.model.warm_start import warm_start

TEXT_ROWS = 50
"""Of which the tokenizer has 45: checkpoints are padded."""


def text_lm(**changes: Any) -> Decoder:
    shape = dict(vocab_size=TEXT_ROWS, num_layers=2, model_dim=32, num_heads=2, num_kv_heads=2)
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(**{**shape, "ffn_dim": 24, "dropout": 0.0, **changes})).eval()
    with torch.no_grad():  # text rows that are not around zero
        decoder.model.embed_tokens.weight.add_(torch.linspace(-1, 1, 32))
    return decoder


def vocabulary(text_size: int = 45, units: int = 300) -> Vocabulary:
    return Vocabulary(
        tokenizer_fingerprint="units-1",
        stream_sizes=(units, 20),
        text_size=text_size,
        text_fingerprint="text-1" if text_size else None,
    )


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("init", ["mean", "normal"])
def test_text_is_scored_as_before(init: Any, tied: bool) -> None:
    text, joint = text_lm(tie_embeddings=tied), vocabulary()
    speech = warm_start(text, joint, init=init)
    assert speech.config == replace(text.config, vocab_size=joint.size)
    assert (speech.lm_head is None) == tied
    tokens = torch.tensor([[3, 0, 44, 7]])
    with torch.inference_mode():
        expected = text(tokens)[..., :45]
        scores = speech(joint.text_to_ids(tokens))[..., list(joint.text_range)]
    assert torch.equal(scores, expected)


def test_a_vocabulary_larger_than_the_checkpoint_has_new_rows_for_the_rest() -> None:
    text, joint = text_lm(), vocabulary(text_size=60)
    rows = warm_start(text, joint).model.embed_tokens.weight
    first = joint.first_text
    assert torch.equal(rows[first : first + TEXT_ROWS], text.model.embed_tokens.weight)
    assert rows[first + TEXT_ROWS : joint.first_unit].std().item() == pytest.approx(
        INIT_STD, rel=0.2
    )
    assert rows.shape == (joint.size, 32)


@pytest.mark.parametrize("text_size", [45, 0], ids=["text dropped", "no text"])
def test_without_text_only_the_body_is_kept(text_size: int) -> None:
    text, joint = text_lm(tie_embeddings=False), vocabulary(text_size=text_size)
    speech = warm_start(text, joint, keep_text=False)
    assert speech.lm_head is not None
    for rows in (speech.model.embed_tokens.weight, speech.lm_head.weight):
        assert rows.mean().abs() < INIT_STD / 10
        assert rows.std().item() == pytest.approx(INIT_STD, rel=0.05)
    kept, given = speech.state_dict(), text.state_dict()
    body = [name for name in given if ".layers." in name or name == "model.norm.weight"]
    assert len(body) > 10
    for name in body:
        assert kept[name].data_ptr() == given[name].data_ptr(), "the body is not copied"


def test_rows_at_the_mean_differ_a_little() -> None:
    text, joint = text_lm(), vocabulary()
    speech = warm_start(text, joint, init="mean")
    known = text.model.embed_tokens.weight[:45]
    new = speech.model.embed_tokens.weight[joint.first_unit :]
    assert (new.mean(dim=0) - known.mean(dim=0)).abs().max() < 0.1 * known.std(dim=0).max()
    assert len(new.unique(dim=0)) == len(new)
    assert new.std(dim=0).mean().item() == pytest.approx(
        0.1 * known.std(dim=0).mean().item(), rel=0.1
    )


def test_the_seed_decides_what_is_drawn() -> None:
    text, joint = text_lm(tie_embeddings=False), vocabulary()

    def rows(seed: int) -> torch.Tensor:
        return warm_start(text, joint, seed=seed).model.embed_tokens.weight

    before = torch.random.get_rng_state()
    assert torch.equal(rows(1), rows(1))
    assert not torch.equal(rows(1), rows(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    head = warm_start(text, joint, seed=1).lm_head
    assert head is not None
    assert not torch.equal(head.weight[-5:], rows(1)[-5:])


def test_device_dtype_and_mode_are_kept_and_dropout_can_be_set() -> None:
    text = text_lm().to(torch.bfloat16).train()
    speech = warm_start(text, vocabulary(), dropout=0.25)
    assert {p.dtype for p in speech.parameters()} == {torch.bfloat16}
    assert speech.training
    assert speech.config.dropout == 0.25
    assert {layer.dropout for layer in speech.model.layers} == {0.25}
    assert all(parameter.requires_grad for parameter in speech.parameters())


def test_a_depth_transformer_is_put_on_top() -> None:
    joint = vocabulary()
    depth = DepthConfig(num_layers=1, dim=16, num_heads=2, num_kv_heads=2, ffn_dim=8)
    depth = replace(depth, row_sizes=(301, 21))
    text = text_lm().to(torch.bfloat16)
    speech = warm_start(text, joint, depth=depth)
    assert speech.depth is not None
    drawn = {name: p.float() for name, p in speech.depth.named_parameters() if p.ndim > 1}
    assert drawn
    assert all(0 < p.std() < 2 * INIT_STD for p in drawn.values())
    assert {p.dtype for p in speech.parameters()} == {torch.bfloat16}
    with pytest.raises(InputError, match="got one with a depth transformer"):
        warm_start(speech, joint)


def test_an_unknown_initialisation_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected init mean or normal, got 'zeros'"):
        warm_start(text_lm(), vocabulary(), init="zeros")  # type: ignore[arg-type]
