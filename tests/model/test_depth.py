import pytest
import torch
from torch import Tensor, nn

from speechlm.errors import ConfigError, InputError
from speechlm.model.architecture import DecoderConfig, DepthConfig
from speechlm.model.decoder import INIT_STD, Decoder
from speechlm.model.fast import prepare
from speechlm.model.fast_linear import fast_linear
from speechlm.model.heads import RowSampler, joined_head, row_logits

VOCAB_SIZE = 40
KINDS = {
    "plain": {},
    "moshi": {"first_from_body": True, "last_norm": False, "num_kv_heads": 2},
    "rotated steps": {"rope": True},
    "shared": {"per_step_weights": False, "rope": True, "num_kv_heads": 2},
    "csm": {
        "per_step_weights": False,
        "rope": True,
        "shared_embeddings": True,
        "first_from_body": True,
        "num_kv_heads": 1,
    },
    "csm whole": {"per_step_weights": False, "rope": True, "shared_embeddings": True},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def rows_of(num_rows: int) -> list[Tensor]:
    """Rows of unequal sizes, each with the fill id 0 and a range of its own."""
    sizes = [5, 8, 3, 6, 9][:num_rows]
    first = torch.tensor([2, *sizes]).cumsum(0)
    return [
        torch.cat([torch.tensor([0]), start + torch.arange(size)])
        for start, size in zip(first, sizes, strict=False)
    ]


def depth_decoder(kind: str, num_rows: int = 4, scale: float = 8.0) -> Decoder:
    torch.manual_seed(0)
    depth = DepthConfig(num_layers=2, dim=24, num_heads=4, ffn_dim=40, **KINDS[kind])
    decoder = Decoder(
        DecoderConfig(
            vocab_size=VOCAB_SIZE,
            num_layers=1,
            model_dim=32,
            num_heads=4,
            ffn_dim=48,
            dropout=0.0,
            depth=depth.of(rows_of(num_rows)),
        )
    ).eval()
    with torch.no_grad():  # wide weights make a wrong rotation or mask visible
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return decoder


def random_frames(num_frames: int, num_rows: int = 4) -> tuple[Tensor, Tensor]:
    """The body's states [N, D] and what follows, joint ids [N, R]."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(num_frames, 32, generator=generator)
    columns = [
        row[torch.randint(len(row), (num_frames,), generator=generator)]
        for row in rows_of(num_rows)
    ]
    return hidden, torch.stack(columns, dim=1)


def greedy_frame(
    decoder: Decoder, hidden: Tensor, head: nn.Module | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The ids that were chosen, and the logits that they were chosen by."""
    scores: list[Tensor] = []

    def choose(row: int, logits: Tensor) -> Tensor:
        assert row == len(scores)
        scores.append(logits)
        return logits.argmax(dim=-1)

    with torch.inference_mode():
        num_rows = len(decoder.config.depth.row_sizes)
        return RowSampler(decoder, rows_of(num_rows), head).frame(hidden, choose), scores


@every_kind
@pytest.mark.parametrize("num_rows", [1, 2, 5])
def test_stream_by_stream_scores_equal_those_of_whole_frames(kind: str, num_rows: int) -> None:
    decoder = depth_decoder(kind, num_rows)
    hidden, _ = random_frames(7, num_rows)
    ids, scores = greedy_frame(decoder, hidden)
    assert ids.shape == (7, num_rows)
    known = row_logits(decoder, hidden, ids, rows_of(num_rows))
    assert [len(logits[0]) for logits in known] == [len(row) for row in rows_of(num_rows)]
    for row, (logits, wanted) in enumerate(zip(scores, known, strict=True)):
        torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)
        assert torch.equal(rows_of(num_rows)[row][wanted.argmax(dim=-1)], ids[:, row])


@every_kind
def test_a_frame_does_not_depend_on_its_batch(kind: str) -> None:
    decoder = depth_decoder(kind)
    hidden, _ = random_frames(6)
    ids, scores = greedy_frame(decoder, hidden)
    for frame in range(6):
        alone, own = greedy_frame(decoder, hidden[frame : frame + 1])
        assert torch.equal(alone[0], ids[frame])
        for logits, wanted in zip(own, scores, strict=True):
            torch.testing.assert_close(logits[0], wanted[frame], atol=1e-5, rtol=1e-5)


@every_kind
def test_a_stream_sees_the_streams_before_it_and_no_others(kind: str) -> None:
    decoder = depth_decoder(kind)
    hidden, ids = random_frames(5)
    before = row_logits(decoder, hidden, ids, rows_of(4))
    changed = ids.clone()
    changed[:, 1] = torch.where(ids[:, 1] == 0, 9, 0)
    after = row_logits(decoder, hidden, changed, rows_of(4))
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [True, True, False, False]


@every_kind
def test_gradients_reach_every_parameter(kind: str) -> None:
    decoder = depth_decoder(kind).train()
    # A first step of its own weights has one key to attend to, whatever it asks for.
    idle = "depth.steps.0" if decoder.config.depth.per_step_weights else "none"
    _, ids = random_frames(6)
    grid = ids.T[None]  # one sequence of six columns
    hidden = decoder.hidden(grid[:, :, :-1])[0]
    scores = row_logits(decoder, hidden, ids[1:], rows_of(4))
    sum(logits.logsumexp(dim=-1).sum() for logits in scores).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        if not (name.startswith(idle) and "q_proj" in name):
            assert parameter.grad.abs().sum() > 0, name


@every_kind
def test_it_is_part_of_the_decoder(kind: str) -> None:
    decoder = depth_decoder(kind)
    weights = decoder.state_dict()
    assert any(name.startswith("depth.steps.0.layers.1.self_attn.q_proj") for name in weights)
    storages = [tensor.data_ptr() for tensor in weights.values()]
    assert len(set(storages)) == len(storages)  # safetensors refuses shared ones

    with torch.device("meta"):
        loaded = Decoder(DecoderConfig.from_dict(decoder.config.to_dict())).eval()
    loaded.load_state_dict(weights, assign=True)
    hidden, ids = random_frames(3)
    for logits, wanted in zip(
        row_logits(loaded, hidden, ids, rows_of(4)),
        row_logits(decoder, hidden, ids, rows_of(4)),
        strict=True,
    ):
        assert torch.equal(logits, wanted)


@every_kind
def test_fresh_weights_are_small_and_norms_are_one(kind: str) -> None:
    for name, parameter in depth_decoder(kind, scale=1.0).named_parameters():
        if "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert 0.4 * INIT_STD < parameter.std() < 1.3 * INIT_STD, name


@every_kind
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_it_can_be_made_ready_to_decode(kind: str, weights: str) -> None:
    decoder = depth_decoder(kind, scale=4.0)
    ready = prepare(decoder, weights)
    head = joined_head(decoder, rows_of(4))
    hidden, _ = random_frames(3)
    if weights == "bfloat16":
        head, hidden = head and head.bfloat16(), hidden.bfloat16()
    head = head and fast_linear(head, weights)
    ids, scores = greedy_frame(ready, hidden, head)
    tolerance = 1e-5 if weights == "float32" else 0.1
    exact = row_logits(decoder, hidden.float(), ids, rows_of(4))
    for logits, wanted in zip(scores, exact, strict=True):
        spread = wanted.detach().max() - wanted.detach().min()
        assert (logits.float() - wanted).abs().max() < tolerance * spread


def test_rows_that_it_was_not_made_for_are_refused() -> None:
    decoder = depth_decoder("moshi")
    hidden, ids = random_frames(2, 3)
    with pytest.raises(InputError, match=r"^expected 4 rows of \(6, 9, 4, 7\) ids.* got 3 rows"):
        row_logits(decoder, hidden, ids, rows_of(3))
    with pytest.raises(
        InputError, match=r"^expected 4 rows .*\(6, 9, 4, 7\).* got 4 rows of \(5, "
    ):
        RowSampler(decoder, [rows_of(4)[0][1:], *rows_of(4)[1:]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_layers": 0}, "depth.num_layers must be at least 1, got 0"),
        ({"num_heads": 3}, r"depth.num_heads \(3\) must divide depth.dim \(256\)"),
        (
            {"num_kv_heads": 3},
            r"depth.num_heads \(4\) must be a multiple of depth.num_kv_heads \(3",
        ),
        ({"rope": True, "head_dim": 3}, "depth.rope needs heads of even width, got 3"),
        ({"shared_embeddings": True}, "depth.shared_embeddings needs depth.per_step_weights to be"),
        ({"row_sizes": (4, 0)}, r"depth.row_sizes must be at least 1 each, got \(4, 0\)"),
    ],
)
def test_bad_shapes_are_refused(values: dict[str, object], message: str) -> None:
    if "num_heads" in values:
        values = {**values, "num_kv_heads": 1}
    with pytest.raises(ConfigError, match=f"^{message}"):
        DepthConfig(**values)


def test_it_needs_the_rows_of_a_layout() -> None:
    with pytest.raises(ConfigError, match=r"^expected depth.row_sizes"):
        Decoder(DecoderConfig(vocab_size=VOCAB_SIZE, depth=DepthConfig()))
