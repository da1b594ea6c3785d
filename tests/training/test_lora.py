"""Which weights LoRA trains, and that merging changes no score."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from speechlm.config import TrainConfig
from speechlm.errors import PluginError
from speechlm.model.architecture import DecoderConfig, DepthConfig
from speechlm.model.decoder import Decoder
from speechlm.training.lora import add_lora, import_peft, merge_lora

IDS = torch.arange(12).view(2, 6)


def small_decoder(*, depth: bool = False) -> Decoder:
    torch.manual_seed(0)
    small = DepthConfig(row_sizes=(6, 6), num_layers=1, dim=8, num_heads=2, num_kv_heads=2)
    config = DecoderConfig(
        vocab_size=12,
        num_layers=2,
        model_dim=16,
        num_heads=2,
        num_kv_heads=1,
        ffn_dim=24,
        dropout=0.0,
        qkv_bias=True,
        tie_embeddings=False,
        depth=small if depth else None,
    )
    return Decoder(config)


def corrected(*, depth: bool = False, steps: int = 3) -> tuple[Decoder, dict[str, Tensor]]:
    """A decoder with corrections that were trained, and all its weights before that."""
    pytest.importorskip("peft")
    decoder = small_decoder(depth=depth)
    add_lora(decoder, TrainConfig(lora_rank=2, lora_alpha=8.0))
    before = {name: weight.clone() for name, weight in decoder.state_dict().items()}
    trained = [p for p in decoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    for _ in range(steps):
        logits = decoder(IDS)[:, :-1].flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, IDS[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return decoder, before


def test_projections_are_kept_and_all_else_trains() -> None:
    decoder, before = corrected()
    after = decoder.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if ".base_layer." in name}
    projections = {name.rpartition(".")[0].removesuffix(".base_layer") for name in same}
    assert len(projections) == 2 * 7


def test_a_depth_transformer_trains_whole() -> None:
    decoder, _ = corrected(depth=True, steps=0)
    assert decoder.depth is not None
    assert all(parameter.requires_grad for parameter in decoder.depth.parameters())
    assert not any("lora" in name for name in decoder.depth.state_dict())


@torch.no_grad()
def merged_scores(decoder: Decoder) -> tuple[Tensor, Tensor]:
    decoder.eval()
    apart = decoder(IDS)
    merge_lora(decoder)
    return apart, decoder(IDS)


def test_merged_it_is_a_plain_decoder_of_the_same_scores() -> None:
    decoder, _ = corrected()
    apart, merged = merged_scores(decoder)
    torch.testing.assert_close(merged, apart, atol=1e-5, rtol=1e-5)
    plain = small_decoder()
    plain.load_state_dict(decoder.state_dict())
    assert torch.equal(plain(IDS), merged)
    assert all(parameter.requires_grad for parameter in decoder.parameters())


def test_a_new_correction_changes_nothing() -> None:
    decoder, _ = corrected(steps=0)
    apart, merged = merged_scores(decoder)
    assert torch.equal(apart, small_decoder().eval()(IDS))
    assert torch.equal(merged, apart)


def test_missing_peft_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PluginError, match=r"pip install 'speechlm\[lora\]'"):
        import_peft()
