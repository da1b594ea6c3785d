import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm.config import SamplingConfig
from speechlm.errors import InputError
from speechlm.generation import generate as engine
from speechlm.generation.generate import generate, generate_stream
from speechlm.layouts.registry import build_layout
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.model.architecture import DecoderConfig
from speechlm.model.decoder import Decoder
from speechlm.model.unit_lm import UnitLM

VOCABULARY = Vocabulary(tokenizer_fingerprint="tokenizer-01", stream_sizes=(20,))
SAMPLINGS = [
    SamplingConfig(max_units=12),
    SamplingConfig(max_units=12, temperature=1.0),
    SamplingConfig(max_units=12, temperature=0.7, top_k=5),
    SamplingConfig(max_units=12, temperature=1.2, top_p=0.8),
]


def make_lm(max_positions: int = 48) -> UnitLM:
    torch.manual_seed(0)
    config = DecoderConfig(
        num_layers=2,
        model_dim=16,
        num_heads=2,
        num_kv_heads=1,
        ffn_dim=24,
        max_positions=max_positions,
        vocab_size=VOCABULARY.size,
        tie_embeddings=False,
    )
    decoder = Decoder(config)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(12)
    return UnitLM(decoder, VOCABULARY, build_layout("flat", {}, 1))


LM = make_lm()


def prompts_of(lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(VOCABULARY.size, (n,), generator=generator) for n in lengths]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.sampled_from(SAMPLINGS))
def test_output_is_the_same_alone_and_in_any_batch(
    lengths: list[int], sampling: SamplingConfig
) -> None:
    prompts = prompts_of(lengths)
    seeds = list(range(len(prompts)))
    together = generate(LM, prompts, sampling, seeds)
    turned = generate(LM, prompts[::-1], sampling, seeds[::-1])[::-1]
    for prompt, seed, one, other in zip(prompts, seeds, together, turned, strict=True):
        alone = generate(LM, [prompt], sampling, [seed])[0].tolist()
        assert one.tolist() == alone == other.tolist()
        assert list(generate_stream(LM, prompt, sampling, seed)) == alone


def test_greedy_output_is_what_stepping_without_a_cache_gives() -> None:
    prompts = prompts_of([3, 17, 9])
    outputs = generate(LM, prompts, SamplingConfig(max_units=10), [0, 0, 0])
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = prompt.tolist()
        for _ in range(10):
            scores = LM.decoder(torch.tensor([ids]))[0, -1].detach()
            scores[[i for i in range(VOCABULARY.first_unit) if i != VOCABULARY.end]] = -torch.inf
            ids.append(int(scores.argmax()))
            if ids[-1] == VOCABULARY.end:
                ids.pop()
                break
        assert output.tolist() == ids[len(prompt) :]


def test_many_prompts_are_decoded_in_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of([4, 8, 2, 6, 3])
    seeds = [5, 6, 7, 8, 9]
    expected = generate(LM, prompts, SAMPLINGS[1], seeds)
    monkeypatch.setattr(engine, "MAX_BATCH", 2)
    for one, other in zip(generate(LM, prompts, SAMPLINGS[1], seeds), expected, strict=True):
        assert torch.equal(one, other)


def test_ties_are_decided_as_for_the_sequence_alone() -> None:
    lm = make_lm()
    with torch.no_grad():  # all logits equal: every choice hangs on the last bit
        lm.decoder.lm_head.weight.copy_(lm.decoder.lm_head.weight[:1].expand(VOCABULARY.size, -1))
    prompts = prompts_of([5, 20, 11])
    together = generate(lm, prompts, SAMPLINGS[0], [0] * 3)
    for prompt, output in zip(prompts, together, strict=True):
        assert torch.equal(generate(lm, [prompt], SAMPLINGS[0], [0])[0], output)


def test_only_units_come_out_even_when_the_lm_prefers_controls() -> None:
    lm = make_lm()
    with torch.no_grad():
        lm.decoder.lm_head.weight[: VOCABULARY.first_unit] *= 50
        lm.decoder.lm_head.weight[VOCABULARY.end] = 0
    for sampling in SAMPLINGS:
        for output in generate(lm, prompts_of([2, 7, 20]), sampling, [1, 2, 3]):
            assert (output >= VOCABULARY.first_unit).all()


def test_the_end_ends_it() -> None:
    lm = make_lm()
    model = lm.decoder.model
    with torch.no_grad():  # whatever is read, the last hidden state is the same
        model.embed_tokens.weight.copy_(model.embed_tokens.weight[:1].expand(VOCABULARY.size, -1))
        for layer in model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        lm.decoder.lm_head.weight.zero_()
        lm.decoder.lm_head.weight[VOCABULARY.end] = model.embed_tokens.weight[0]
    (output,) = generate(lm, prompts_of([4]), SamplingConfig(max_units=5), [0])
    assert output.shape == (0,)
    assert output.dtype == torch.int64


def test_seeds_differ_and_repeat() -> None:
    sampling = SamplingConfig(max_units=12, temperature=1.5)
    prompt = prompts_of([6])[0]
    outputs = {seed: generate(LM, [prompt], sampling, [seed])[0].tolist() for seed in range(6)}
    assert len({tuple(output) for output in outputs.values()}) > 1
    assert generate(LM, [prompt], sampling, [3])[0].tolist() == outputs[3]


def test_output_stops_at_max_positions() -> None:
    lm = make_lm(max_positions=16)
    with torch.no_grad():
        lm.decoder.lm_head.weight[VOCABULARY.end] = 0
    sampling = SamplingConfig(max_units=100, temperature=0.3)
    outputs = generate(lm, prompts_of([15, 3]), sampling, [0, 1])
    assert len(outputs[0]) <= 1
    assert len(outputs[1]) <= 13


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    sampling = SamplingConfig()
    message = r"1 to 47 LM positions \(model.max_positions is 48\), got 48"
    with pytest.raises(InputError, match=message):
        generate(LM, prompts_of([4, 48]), sampling, [0, 0])
    with pytest.raises(InputError, match=message):
        generate_stream(LM, prompts_of([48])[0], sampling, 0)
    with pytest.raises(InputError, match="got 0"):
        generate(LM, [torch.zeros(0, dtype=torch.int64)], sampling, [0])
    with pytest.raises(InputError, match="one seed a prompt"):
        generate(LM, prompts_of([4]), sampling, [])
