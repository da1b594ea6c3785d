import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from speechlm.errors import InputError
from speechlm.model.architecture import DecoderConfig
from speechlm.model.decoder import Decoder
from speechlm.model.heads import RowSampler, joined_head, local_ids, row_logits

VOCAB_SIZE = 30
EVERYTHING = [torch.arange(VOCAB_SIZE)]
NEIGHBOURS = [torch.arange(4, 12), torch.arange(12, 15), torch.arange(15, 29)]
SCATTERED = [torch.tensor([0, 1, 5, 6, 7]), torch.tensor([0, 8, 9]), torch.tensor([0])]


def small_decoder(tie: bool) -> Decoder:
    torch.manual_seed(0)
    return Decoder(
        DecoderConfig(
            vocab_size=VOCAB_SIZE,
            num_layers=1,
            model_dim=16,
            num_heads=2,
            num_kv_heads=1,
            ffn_dim=24,
            dropout=0.0,
            tie_embeddings=tie,
        )
    ).eval()


def greedy(row: int, logits: Tensor) -> Tensor:
    return logits.argmax(dim=-1)


@pytest.mark.parametrize("row_ids", [EVERYTHING, NEIGHBOURS, SCATTERED])
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("num_frames", [1, 5])
def test_parallel_heads_are_parts_of_the_whole_output(
    row_ids: list[Tensor], tie: bool, num_frames: int
) -> None:
    decoder = small_decoder(tie)
    hidden = torch.randn(num_frames, 16)
    with torch.inference_mode():
        ids = RowSampler(decoder, row_ids).frame(hidden, greedy)
        whole = decoder.logits(hidden)
        known = row_logits(decoder, hidden, ids, row_ids)
    for row, (logits, possible) in enumerate(zip(known, row_ids, strict=True)):
        torch.testing.assert_close(logits, whole[:, possible], atol=1e-6, rtol=1e-5)
        assert torch.equal(possible[logits.argmax(dim=-1)], ids[:, row])


@pytest.mark.parametrize("row_ids", [EVERYTHING, NEIGHBOURS, SCATTERED])
def test_a_frame_does_not_depend_on_its_batch(row_ids: list[Tensor]) -> None:
    decoder = small_decoder(tie=True)
    hidden = torch.randn(6, 16)
    sampler = RowSampler(decoder, row_ids)
    with torch.inference_mode():
        together = sampler.frame(hidden, greedy)
        alone = torch.cat([sampler.frame(state, greedy) for state in hidden.split(1)])
    assert torch.equal(together, alone)


def test_rows_are_chosen_in_order_and_may_end_early() -> None:
    sampler = RowSampler(small_decoder(tie=True), NEIGHBOURS)
    seen: list[tuple[int, list[int]]] = []

    def choose(row: int, logits: Tensor) -> Tensor:
        seen.append((row, list(logits.shape)))
        return torch.full((2,), row)

    ids = sampler.frame(torch.randn(2, 16), choose)
    assert ids.tolist() == [[4, 13, 17]] * 2
    assert seen == [(0, [2, 8]), (1, [2, 3]), (2, [2, 14])]
    assert torch.equal(sampler.frame(torch.randn(2, 16), choose, num_rows=2), ids[:, :2])


def test_heads_share_the_weights_of_neighbours_and_may_be_replaced() -> None:
    decoder = small_decoder(tie=True)
    table = decoder.model.embed_tokens.weight
    head = joined_head(decoder, NEIGHBOURS)
    assert head.weight.data_ptr() == table[4].data_ptr()
    assert head.weight.shape == (25, 16)
    assert joined_head(small_decoder(tie=False), SCATTERED).weight.shape == (9, 16)

    class Largest(torch.nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return torch.arange(25.0).expand(len(hidden), -1)

    sampler = RowSampler(decoder, NEIGHBOURS, head=Largest())
    assert sampler.frame(torch.randn(1, 16), greedy).tolist() == [[11, 14, 28]]


def test_gradients_reach_heads_and_nothing_else_of_the_table() -> None:
    decoder = small_decoder(tie=False)
    ids = torch.tensor([[5, 8, 0], [1, 0, 0]])
    scores = row_logits(decoder, torch.randn(2, 16), ids, SCATTERED)
    sum(logits.square().sum() for logits in scores).backward()
    touched = decoder.lm_head.weight.grad.abs().sum(dim=1) > 0
    assert touched.nonzero().flatten().tolist() == [0, 1, 5, 6, 7, 8, 9]


@given(st.data())
def test_local_ids_are_undone_by_the_rows(data: st.DataObject) -> None:
    num_rows = data.draw(st.integers(1, 4))
    num_frames = data.draw(st.integers(0, 5))
    rows = [
        torch.tensor(sorted(data.draw(st.sets(st.integers(0, 50), min_size=1))))
        for _ in range(num_rows)
    ]
    ids = torch.stack(
        [
            torch.tensor(
                [data.draw(st.sampled_from(row.tolist())) for _ in range(num_frames)],
                dtype=torch.int64,
            )
            for row in rows
        ],
        dim=1,
    )
    local = local_ids(ids, rows)
    assert local.shape == ids.shape
    for index, row in enumerate(rows):
        assert torch.equal(row[local[:, index]], ids[:, index])


def test_another_number_of_rows_is_refused() -> None:
    decoder = small_decoder(tie=True)
    ids = torch.zeros(4, 2, dtype=torch.int64)
    for call in (
        lambda: local_ids(ids, NEIGHBOURS),
        lambda: row_logits(decoder, torch.randn(4, 16), ids, NEIGHBOURS),
    ):
        with pytest.raises(InputError, match=r"^expected ids \[N, 3\] of as many rows, got \[4, 2"):
            call()
