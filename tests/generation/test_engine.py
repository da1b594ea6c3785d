import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_cases import CASES, allowed, known_part, random_content
from small_lm import shared_lm, small_lm

from speechlm.config import SamplingConfig
from speechlm.errors import InputError
from speechlm.generation import engine as engine_module
from speechlm.generation.engine import Engine
from speechlm.generation.generate import generate, generate_stream
from speechlm.generation.request import Request
from speechlm.layouts.grid import Prompt
from speechlm.model.fast_linear import Weights
from speechlm.model.unit_lm import UnitLM

SAMPLINGS = [
    SamplingConfig(max_units=8),
    SamplingConfig(max_units=8, temperature=1.0),
    SamplingConfig(max_units=8, temperature=0.8, top_k=4, repetition_penalty=1.3),
    SamplingConfig(max_units=8, temperature=1.2, top_p=0.8),
    SamplingConfig(max_units=8, temperature=1.2, min_p=0.1),
]
HEADED_CASES = [(case, False) for case in CASES] + [
    (case, True) for case in ("parallel", "delay-moshi", "duplex-moshi", "text-timed", "flat")
]


def prompts_for(lm: UnitLM, lengths: list[int], seed: int = 0) -> list[Prompt]:
    prompts = []
    for index, length in enumerate(lengths):
        content = random_content(
            lm.layout, frames=length, asked=length, tokens=length, seed=seed + index
        )
        known = known_part(lm.layout, content, length)
        prompts.append(lm.layout.prompt(lm.vocabulary, known))
    return prompts


@pytest.mark.parametrize(("case", "depth"), HEADED_CASES)
@settings(deadline=None, max_examples=3)
@given(data=st.data())
def test_output_is_the_same_alone_and_in_any_batch(
    case: str, depth: bool, data: st.DataObject
) -> None:
    lm = shared_lm(case, depth)
    lengths = data.draw(st.lists(st.integers(1, 7), min_size=2, max_size=4))
    sampling = data.draw(st.sampled_from(SAMPLINGS))
    prompts = prompts_for(lm, lengths)
    seeds = list(range(len(prompts)))
    together = generate(lm, prompts, sampling, seeds)
    turned = generate(lm, prompts[::-1], sampling, seeds[::-1])[::-1]
    for prompt, seed, one, other in zip(prompts, seeds, together, turned, strict=True):
        alone = generate(lm, [prompt], sampling, [seed])[0]
        assert torch.equal(one, alone)
        assert torch.equal(other, alone)
        streamed = list(generate_stream(lm, prompt, sampling, seed))
        assert [list(column) for column in streamed] == alone.T.tolist()
        lm.layout.read(lm.vocabulary, prompt, alone)  # whatever comes can be read


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_requests_join_and_leave_a_running_batch(weights: str) -> None:
    lm = shared_lm()
    prompts = prompts_for(lm, [3, 9, 1, 20, 6])
    samplings = [SAMPLINGS[index % len(SAMPLINGS)] for index in range(5)]
    expected = [
        generate(lm, [prompt], sampling, [7], weights=weights)[0].T.tolist()
        for prompt, sampling in zip(prompts, samplings, strict=True)
    ]
    engine = Engine(lm, num_positions=128, max_batch=3, weights=weights)
    outputs: dict[int, list[list[int]]] = {}
    left = list(zip(prompts, samplings, strict=True))
    while left or engine.busy:
        if left:  # one more joins at every step
            prompt, sampling = left.pop(0)
            (ticket,) = engine.add(Request(prompt=prompt, sampling=sampling, seeds=(7,)))
            outputs[ticket] = []
        for drawn in engine.step():
            outputs[drawn.ticket].append(list(drawn.column))
    assert list(outputs.values()) == expected


def test_samples_of_a_request_are_what_each_seed_gives_alone() -> None:
    lm = shared_lm("delay", True)
    (prompt,) = prompts_for(lm, [5])
    sampling = SAMPLINGS[1]
    engine = Engine(lm, num_positions=256)
    outputs = {
        ticket: []
        for ticket in engine.add(Request(prompt=prompt, sampling=sampling, seeds=(3, 4, 5)))
    }
    while engine.busy:
        for drawn in engine.step():
            outputs[drawn.ticket].append(list(drawn.column))
    for seed, columns in zip((3, 4, 5), outputs.values(), strict=True):
        assert columns == generate(lm, [prompt], sampling, [seed])[0].T.tolist()


def test_long_prompts_are_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = shared_lm()
    prompts = prompts_for(lm, [30, 11, 2])
    expected = generate(lm, prompts, SAMPLINGS[1], [0, 1, 2])
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", 4)
    for one, other in zip(expected, generate(lm, prompts, SAMPLINGS[1], [0, 1, 2]), strict=True):
        assert torch.equal(one, other)


def test_guidance_goes_from_the_other_prompt_through_this_one() -> None:
    lm = shared_lm("delay", False)
    prompt, other = prompts_for(lm, [5, 9])

    def run(guidance: float, unconditioned: Prompt, max_batch: int = 8) -> list[list[int]]:
        engine = Engine(lm, num_positions=512, max_batch=max_batch)
        sampling = SamplingConfig(max_units=8, guidance=guidance)
        request = Request(prompt=prompt, sampling=sampling, unconditioned=unconditioned)
        engine.add(Request(prompt=other, sampling=SAMPLINGS[1]))  # company
        (ticket,) = engine.add(request)
        columns = []
        while engine.busy:
            columns += [list(d.column) for d in engine.step() if d.ticket == ticket]
        return columns

    plain = generate(lm, [prompt], SamplingConfig(max_units=8), [0])[0].T.tolist()
    assert run(3.0, prompt) == plain  # away from itself leads nowhere
    guided = run(3.0, other)
    assert guided != plain
    assert guided == run(3.0, other, max_batch=1)
    # The first column by hand: logits of both prompts, led and masked.
    with torch.inference_mode():
        states = [lm.decoder.hidden(p.ids[None])[:, -1] for p in (prompt, other)]
        row_ids = lm.layout.row_ids(lm.vocabulary)
        grammar = lm.layout.grammar(lm.vocabulary)
        mask = allowed(grammar, grammar.start, len(row_ids))
        for row, ids in enumerate(row_ids):
            real, free = (lm.decoder.logits(state, ids)[0] for state in states)
            led = (free + 3.0 * (real - free)).masked_fill(~mask[row][ids], -torch.inf)
            assert guided[0][row] == int(ids[led.argmax()])


def test_a_window_lets_output_outlast_the_context() -> None:
    lm = small_lm(max_positions=32)
    with torch.no_grad():
        lm.decoder.lm_head.weight[lm.vocabulary.end] = 0
    sampling = SamplingConfig(max_units=100, temperature=0.5, window=32)
    prompts = prompts_for(lm, [20, 3, 11])
    together = generate(lm, prompts, sampling, [1, 2, 3])
    assert max(output.shape[1] for output in together) > 40
    for prompt, seed, output in zip(prompts, (1, 2, 3), together, strict=True):
        assert torch.equal(generate(lm, [prompt], sampling, [seed])[0], output)
    with pytest.raises(InputError, match="at least 16 positions, got 8"):
        generate(lm, prompts, SamplingConfig(window=8), [0, 0, 0])
    learned = small_lm(position="learned")
    with pytest.raises(InputError, match="needs rotary positions, the LM has learned ones"):
        generate(learned, prompts, SamplingConfig(window=32), [0, 0, 0])


def test_what_a_window_keeps_counts_as_if_it_stood_there() -> None:
    """After forgetting, attention sees the sinks and the rest at their new positions."""
    lm = small_lm(num_layers=1, max_positions=32)
    (prompt,) = prompts_for(lm, [30])
    ids = prompt.ids[:, :32]
    sampling = SamplingConfig(max_units=2, window=32)
    (output,) = generate(lm, [Prompt(ids=ids[:, :31], given=ids[:, :0])], sampling, [0])
    # One layer's keys depend on nothing but the ids, so dropping ids is the same thing.
    dropped = (32 - 4) // 4
    seen = torch.cat([ids[:, :31], output[:, :1]], dim=1)
    assert seen.shape[1] == 32
    kept = torch.cat([seen[:, :4], seen[:, 4 + dropped :]], dim=1)
    with torch.inference_mode():
        grammar = lm.layout.grammar(lm.vocabulary)
        logits = lm.decoder(kept)[0, -1]
        (mask,) = allowed(grammar, grammar.start, 1)
        assert int(logits.masked_fill(~mask, -torch.inf).argmax()) == int(output[0, 1])


def test_stop_runs_end_a_sample() -> None:
    lm = small_lm()
    (prompt,) = prompts_for(lm, [4])
    sampling = SamplingConfig(max_units=30, temperature=1.5)
    (free,) = generate(lm, [prompt], sampling, [3])
    run = tuple(free[0, 4:6].tolist())
    engine = Engine(lm, num_positions=256)
    engine.add(Request(prompt=prompt, sampling=sampling, seeds=(3,), stop=(run,)))
    columns = []
    while engine.busy:
        columns += [drawn.column[0] for drawn in engine.step()]
    lengths = range(2, free.shape[1] + 1)
    ended = next(n for n in lengths if tuple(free[0, n - 2 : n].tolist()) == run)
    assert columns == free[0, :ended].tolist()


def test_a_cancelled_sample_frees_its_place() -> None:
    lm = small_lm()
    prompts = prompts_for(lm, [4, 6])
    engine = Engine(lm, num_positions=64)
    (first,) = engine.add(Request(prompt=prompts[0], sampling=SamplingConfig(max_units=20)))
    (second,) = engine.add(Request(prompt=prompts[1], sampling=SamplingConfig(max_units=20)))
    engine.step()
    engine.cancel(first)
    engine.cancel(first)
    columns = []
    while engine.busy:
        columns += [(drawn.ticket, list(drawn.column)) for drawn in engine.step()]
    expected = generate(lm, [prompts[1]], SamplingConfig(max_units=20), [0])[0].T.tolist()
    assert columns == [(second, column) for column in expected]


@pytest.mark.parametrize("cancelled", [0, 1, 2])
def test_cancelling_a_sample_that_waits_leaves_the_others_their_seeds(cancelled: int) -> None:
    lm = shared_lm()
    (prompt,) = prompts_for(lm, [5])
    sampling = SamplingConfig(max_units=8, temperature=1.5)
    engine = Engine(lm, num_positions=128)
    tickets = engine.add(Request(prompt=prompt, sampling=sampling, seeds=(3, 4, 5)))
    engine.cancel(tickets[cancelled])
    outputs: dict[int, list[list[int]]] = {ticket: [] for ticket in tickets}
    while engine.busy:
        for drawn in engine.step():
            outputs[drawn.ticket].append(list(drawn.column))
    for at, (seed, columns) in enumerate(zip((3, 4, 5), outputs.values(), strict=True)):
        expected = generate(lm, [prompt], sampling, [seed])[0].T.tolist()
        assert columns == ([] if at == cancelled else expected)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_new_engine_takes_weights_that_have_changed(weights: Weights) -> None:
    lm = small_lm()
    (prompt,) = prompts_for(lm, [5])
    sampling = SamplingConfig(max_units=12)
    before = generate(lm, [prompt], sampling, [0], weights=weights)[0]
    assert all(parameter.requires_grad for parameter in lm.decoder.parameters())
    with torch.no_grad():
        for parameter in lm.decoder.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    after = generate(lm, [prompt], sampling, [0], weights=weights)[0]
    afresh = UnitLM(copy.deepcopy(lm.decoder), lm.vocabulary, lm.layout)
    assert torch.equal(after, generate(afresh, [prompt], sampling, [0], weights=weights)[0])
    assert not torch.equal(after, before)


def test_requests_that_cannot_run_are_refused() -> None:
    lm = shared_lm()
    prompts = prompts_for(lm, [4, 70])
    engine = Engine(lm, num_positions=32)
    with pytest.raises(InputError, match=r"at most 32 LM positions .* got 64"):
        engine.add(Request(prompt=prompts[0]))
    with pytest.raises(InputError, match=r"a prompt of 1 to 63 LM positions .*got 72"):
        engine.add(Request(prompt=prompts[1]))
    with pytest.raises(InputError, match="needs an unconditioned prompt"):
        engine.add(Request(prompt=prompts[0], sampling=SamplingConfig(guidance=2.0)))
    two = Prompt(ids=prompts[0].ids.expand(2, -1), given=prompts[0].ids[:, :0])
    with pytest.raises(InputError, match=r"a prompt \[1, S\].* got \[2, 6\]"):
        engine.add(Request(prompt=two))
    guided = SamplingConfig(guidance=2.0, max_units=2)
    empty = Prompt(ids=prompts[0].ids[:, :0], given=prompts[0].ids[:, :0])
    for other, said in ((two, r"a prompt \[1, S\]"), (empty, "got 0"), (prompts[1], "got 72")):
        with pytest.raises(InputError, match=said):
            engine.add(Request(prompt=prompts[0], sampling=guided, unconditioned=other))
    strange = Prompt(ids=prompts[0].ids + 1000, given=prompts[0].ids[:, :0])
    with pytest.raises(InputError, match=r"expected ids in 0\.\.\d+ in a prompt"):
        engine.add(Request(prompt=strange))
    for seeds in ((), (2**64,)):
        with pytest.raises(InputError, match="expected a seed a sample, whole numbers of 64 bits"):
            engine.add(Request(prompt=prompts[0], seeds=seeds))
    with pytest.raises(InputError, match="expected one seed to run alone, got 2"):
        next(engine.run(Request(prompt=prompts[0], seeds=(1, 2))))
    narrow = SamplingConfig(window=20, max_units=4)
    (long,) = prompts_for(lm, [30])
    with pytest.raises(InputError, match=r"1 to 19 LM positions \(the window is 20\)"):
        engine.add(Request(prompt=long, sampling=narrow))
    assert not engine.busy
