import pytest
import torch
from torch.nn import functional as F

from speechlm.config import ModelConfig
from speechlm.errors import InputError
from speechlm.model.architecture import DecoderConfig
from speechlm.model.cache import KVCache
from speechlm.model.decoder import INIT_STD, Decoder, _dropout

VOCAB_SIZE = 37


def small_config(**changes: object) -> DecoderConfig:
    shape = dict(num_layers=2, model_dim=32, num_heads=4, num_kv_heads=2, ffn_dim=48, dropout=0.0)
    shape["max_positions"] = 64
    return DecoderConfig(**{**shape, **changes}, vocab_size=VOCAB_SIZE)


def small_decoder(**changes: object) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(small_config(**changes)).eval()
    with torch.no_grad():  # wide weights make a wrong rotation or mask visible
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return decoder


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_logits_equal_those_of_transformers_llama(num_kv_heads: int, tie: bool) -> None:
    transformers = pytest.importorskip("transformers")
    decoder = small_decoder(num_kv_heads=num_kv_heads, tie_embeddings=tie)
    config = decoder.config
    reference = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=config.model_dim,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=num_kv_heads,
            max_position_embeddings=config.max_positions,
            rms_norm_eps=config.norm_eps,
            rope_theta=config.rope_theta,
            tie_word_embeddings=tie,
        )
    ).eval()
    missing, unexpected = reference.load_state_dict(decoder.state_dict(), strict=False)
    assert unexpected == []
    assert missing == (["lm_head.weight"] if tie else [])

    ids = random_ids(2, 20)
    with torch.inference_mode():
        expected = reference(ids).logits
        assert (expected.amax(-1) - expected.amin(-1)).min() > 1  # not flat, so it shows errors
        torch.testing.assert_close(decoder(ids), expected, atol=1e-4, rtol=0)
        cache = KVCache(config, 128)
        regions = [cache.reserve(20), cache.reserve(20)]
        steps = [
            decoder(ids[:, i][None], cache=cache.step([(region, 1) for region in regions]))[0]
            for i in range(20)
        ]
        torch.testing.assert_close(torch.stack(steps, dim=1), expected, atol=1e-4, rtol=0)


def test_packed_documents_do_not_see_each_other() -> None:
    decoder = small_decoder()
    lengths = [5, 1, 9, 7]
    documents = [random_ids(length) + 0 for length in lengths]
    packed = torch.cat(documents)[None]
    segments = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    with torch.inference_mode():
        together = decoder(packed, segment_ids=segments)[0].split(lengths)
        for logits, document in zip(together, documents, strict=True):
            torch.testing.assert_close(logits, decoder(document[None])[0], atol=1e-5, rtol=0)
    # And the attention that is not isolated is another one, so the test can fail.
    mixed = decoder(packed)[0].split(lengths)
    assert not torch.allclose(mixed[2], together[2], atol=1e-2)


def test_packed_gradients_equal_the_sum_of_unpacked_ones() -> None:
    decoder = small_decoder()
    documents = [random_ids(6), random_ids(11)]

    def loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits[:-1], ids[1:], reduction="sum")

    for document in documents:
        loss(decoder(document[None])[0], document).backward()
    expected = {name: p.grad.clone() for name, p in decoder.named_parameters()}
    decoder.zero_grad()
    segments = torch.tensor([[0] * 6 + [1] * 11])
    logits = decoder(torch.cat(documents)[None], segment_ids=segments)[0].split([6, 11])
    sum(loss(one, ids) for one, ids in zip(logits, documents, strict=True)).backward()
    for name, parameter in decoder.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-4)


def test_sequences_of_unequal_length_go_through_the_cache_together() -> None:
    decoder = small_decoder()
    ids = random_ids(3, 16)
    with torch.inference_mode():
        expected = decoder(ids)
        cache = KVCache(decoder.config, 128)
        regions = [cache.reserve(16) for _ in range(3)]
        read = [0, 0, 0]
        # Prefill in chunks, single positions, and sequences that sit a step out.
        for counts in ([4, 9, 0], [3, 1, 1], [1, 1, 1], [0, 2, 7], [1, 3, 1]):
            rows = [(r, n) for r, n in zip(regions, counts, strict=True) if n]
            parts = [ids[i, read[i] : read[i] + n] for i, n in enumerate(counts)]
            logits = decoder(torch.cat(parts)[None], cache=cache.step(rows))[0].split(counts)
            for i, n in enumerate(counts):
                wanted = expected[i, read[i] : read[i] + n]
                torch.testing.assert_close(logits[i], wanted, atol=1e-4, rtol=0)
                read[i] += n


def test_selected_positions_are_those_of_all() -> None:
    decoder = small_decoder()
    ids = random_ids(2, 8)
    with torch.inference_mode():
        some = decoder(ids, select=torch.tensor([3, 9]))
        every = decoder(ids).flatten(0, 1)
    torch.testing.assert_close(some, every[[3, 9]], atol=1e-5, rtol=0)


def test_too_many_positions_are_refused() -> None:
    decoder = small_decoder(max_positions=8)
    with pytest.raises(InputError, match=r"at most 8 positions .*got 9"):
        decoder(random_ids(1, 9))
    cache = KVCache(decoder.config, 4)
    region = cache.reserve(4)
    with pytest.raises(InputError, match="at most 32 positions in the cache, got 33"):
        decoder(random_ids(1, 33), cache=cache.step([(region, 33)]))


def test_dropout_acts_in_training_only() -> None:
    decoder = small_decoder(dropout=0.5)
    ids = random_ids(1, 8)
    assert torch.equal(decoder(ids), decoder(ids))
    decoder.train()
    assert not torch.equal(decoder(ids), decoder(ids))


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_keeps_the_mean(probability: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(401, 251, requires_grad=True)
    dropped = _dropout(x, probability)
    assert (dropped == 0).float().mean().item() == pytest.approx(probability, abs=0.01)
    assert dropped.max().item() == pytest.approx(1 / (1 - probability))
    dropped.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, dropped.detach())
    if probability:
        assert not torch.equal(_dropout(x, probability), dropped)


def test_bfloat16_autocast_gives_nearly_the_same_logits() -> None:
    decoder = small_decoder()
    ids = random_ids(2, 20)
    with torch.inference_mode():
        expected = decoder(ids)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = decoder(ids)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - expected).abs().max() < 0.1 * expected.abs().max()


def test_similar_units_start_with_similar_embeddings() -> None:
    decoder = Decoder(small_config())
    controls = decoder.model.embed_tokens.weight[:-30].detach().clone()
    features = torch.randn(30, 13, generator=torch.Generator().manual_seed(2))
    features[1] = features[0] + 0.01
    decoder.init_unit_embeddings(features)
    units = decoder.model.embed_tokens.weight[-30:].detach()
    assert units.std() == pytest.approx(INIT_STD, rel=0.01)
    assert (units[0] - units[1]).norm() < 0.05 * (units[0] - units[2]).norm()
    assert torch.equal(decoder.model.embed_tokens.weight[:-30], controls)
    again = Decoder(small_config())
    again.init_unit_embeddings(features)
    assert torch.equal(again.model.embed_tokens.weight[-30:], units)
    with pytest.raises(InputError, match="unit features"):
        decoder.init_unit_embeddings(torch.randn(VOCAB_SIZE + 1, 4))


def test_the_default_shape_is_a_valid_model() -> None:
    config = DecoderConfig.of(ModelConfig(), vocab_size=505)
    with torch.device("meta"):
        count = sum(p.numel() for p in Decoder(config).parameters())
    assert 3_000_000 < count < 6_000_000
