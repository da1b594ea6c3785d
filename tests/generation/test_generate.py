import pytest
import torch
from small_lm import small_lm

from speechlm.config import SamplingConfig
from speechlm.errors import InputError
from speechlm.generation import generate as module
from speechlm.generation.generate import generate, generate_stream
from speechlm.layouts.grid import Prompt

SAMPLINGS = [
    SamplingConfig(max_units=12),
    SamplingConfig(max_units=12, temperature=1.0),
    SamplingConfig(max_units=12, temperature=0.7, top_k=5),
    SamplingConfig(max_units=12, temperature=1.2, top_p=0.8),
]
LM = small_lm()
VOCABULARY = LM.vocabulary


def prompts_of(lengths: list[int]) -> list[Prompt]:
    generator = torch.Generator().manual_seed(5)
    grids = [torch.randint(VOCABULARY.size, (1, n), generator=generator) for n in lengths]
    return [Prompt(ids=grid, given=grid[:, :0]) for grid in grids]


def units_of(output: torch.Tensor) -> list[int]:
    """What came before the end."""
    return [unit for unit in output[0].tolist() if unit != VOCABULARY.end]


def test_greedy_output_is_what_stepping_without_a_cache_gives() -> None:
    prompts = prompts_of([3, 17, 9])
    outputs = generate(LM, prompts, SamplingConfig(max_units=10), [0, 0, 0])
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = prompt.ids[0].tolist()
        for _ in range(10):
            scores = LM.decoder(torch.tensor([ids]))[0, -1].detach()
            scores[[i for i in range(VOCABULARY.first_unit) if i != VOCABULARY.end]] = -torch.inf
            ids.append(int(scores.argmax()))
            if ids[-1] == VOCABULARY.end:
                ids.pop()
                break
        assert units_of(output) == ids[len(prompt) :]


def test_many_prompts_are_decoded_in_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of([4, 8, 2, 6, 3])
    seeds = [5, 6, 7, 8, 9]
    expected = generate(LM, prompts, SAMPLINGS[1], seeds)
    monkeypatch.setattr(module, "MAX_BATCH", 2)
    for one, other in zip(generate(LM, prompts, SAMPLINGS[1], seeds), expected, strict=True):
        assert torch.equal(one, other)


def test_ties_are_decided_as_for_the_sequence_alone() -> None:
    lm = small_lm()
    with torch.no_grad():  # all logits equal: every choice hangs on the last bit
        lm.decoder.lm_head.weight.copy_(lm.decoder.lm_head.weight[:1].expand(VOCABULARY.size, -1))
    prompts = prompts_of([5, 20, 11])
    together = generate(lm, prompts, SAMPLINGS[0], [0] * 3)
    for prompt, output in zip(prompts, together, strict=True):
        assert torch.equal(generate(lm, [prompt], SAMPLINGS[0], [0])[0], output)


def test_only_units_come_out_even_when_the_lm_prefers_controls() -> None:
    lm = small_lm()
    with torch.no_grad():
        lm.decoder.lm_head.weight[: VOCABULARY.first_unit] *= 50
        lm.decoder.lm_head.weight[VOCABULARY.end] = 0
    for sampling in SAMPLINGS:
        for output in generate(lm, prompts_of([2, 7, 20]), sampling, [1, 2, 3]):
            assert min(units_of(output), default=VOCABULARY.size) >= VOCABULARY.first_unit


def test_the_end_ends_it() -> None:
    lm = small_lm()
    model = lm.decoder.model
    with torch.no_grad():  # whatever is read, the last hidden state is the same
        model.embed_tokens.weight.copy_(model.embed_tokens.weight[:1].expand(VOCABULARY.size, -1))
        for layer in model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        lm.decoder.lm_head.weight.zero_()
        lm.decoder.lm_head.weight[VOCABULARY.end] = model.embed_tokens.weight[0]
    (output,) = generate(lm, prompts_of([4]), SamplingConfig(max_units=5), [0])
    assert output.tolist() == [[VOCABULARY.end]]
    assert output.dtype == torch.int64


def test_seeds_differ_and_repeat() -> None:
    sampling = SamplingConfig(max_units=12, temperature=1.5)
    prompt = prompts_of([6])[0]
    outputs = {seed: units_of(generate(LM, [prompt], sampling, [seed])[0]) for seed in range(6)}
    assert len({tuple(output) for output in outputs.values()}) > 1
    assert units_of(generate(LM, [prompt], sampling, [3])[0]) == outputs[3]


def test_output_stops_at_max_positions() -> None:
    lm = small_lm(max_positions=16)
    with torch.no_grad():
        lm.decoder.lm_head.weight[VOCABULARY.end] = 0
    sampling = SamplingConfig(max_units=100, temperature=0.3)
    outputs = generate(lm, prompts_of([15, 3]), sampling, [0, 1])
    assert outputs[0].shape[1] <= 1
    assert outputs[1].shape[1] <= 13


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    sampling = SamplingConfig()
    message = r"1 to 63 LM positions \(model.max_positions is 64\), got 64"
    with pytest.raises(InputError, match=message):
        generate(LM, prompts_of([4, 64]), sampling, [0, 0])
    with pytest.raises(InputError, match=message):
        generate_stream(LM, prompts_of([64])[0], sampling, 0)
    with pytest.raises(InputError, match="got 0"):
        generate(LM, prompts_of([0]), sampling, [0])
    with pytest.raises(InputError, match="one seed a prompt"):
        generate(LM, prompts_of([4]), sampling, [])
