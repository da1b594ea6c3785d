"""Speech LMs of transformers against the one decoder, with the same small random weights.

Each test maps a model's weights by a small function, then compares logits of known columns, all
at once and column by column, stream by stream. What is left out, and why:

- Bark's fine model predicts a codebook from all frames, later ones too: not a causal LM.
- MusicGen's text conditioning is cross-attention to T5, which this decoder has not.
- CSM's text positions read one text id and no units; our columns hold an id in every row, so
  such a column would need a fill id of zero embedding in the other rows. Its text table is left.
- Moshi's depth transformer predicts 8 of its 16 unit streams, those of the user are heard: the
  body reads all rows, the heads are given the ones that are predicted.
"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from speechlm.model.architecture import DecoderConfig, DepthConfig, RopeScaling
from speechlm.model.cache import KVCache
from speechlm.model.decoder import Decoder
from speechlm.model.heads import RowSampler, local_ids, row_logits

transformers = pytest.importorskip("transformers")

TINY_CODEC = dict(
    model_type="mimi",
    hidden_size=16,
    num_filters=4,
    upsampling_ratios=[2, 2],
    codebook_size=8,
    codebook_dim=8,
    vector_quantization_hidden_dimension=8,
    upsample_groups=16,
    num_quantizers=4,
    num_semantic_quantizers=1,
    num_hidden_layers=1,
    intermediate_size=16,
    num_attention_heads=2,
    num_key_value_heads=2,
)
"""Both models come with a codec that these tests do not run."""


def randomize(model: torch.nn.Module) -> None:
    """Weights wide enough that a wrong rotation, mask or table shows."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        wide = 0.3 * noise if parameter.ndim > 1 else 1 + 0.2 * noise
        parameter.data.copy_(wide)


def random_grid(sizes: Sequence[int], num_columns: int, batch: int = 2) -> Tensor:
    """Local ids, int64 [B, R, S]."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(size, (batch, num_columns), generator=generator) for size in sizes]
    return torch.stack(rows, dim=1)


def assert_same_logits(
    decoder: Decoder, ids: Tensor, row_ids: list[Tensor], expected: list[Tensor]
) -> None:
    """Compare with ``expected`` float [B, S - 1, <= V_r] of each row, in both ways to run.

    The rows of ``ids`` [B, R, S] beyond those of ``row_ids`` are read and not predicted.
    """
    num_sequences, _, num_columns = ids.shape
    targets = ids[:, : len(row_ids), 1:].transpose(1, 2)
    with torch.inference_mode():
        hidden = decoder.hidden(ids[:, :, :-1])
        known = row_logits(decoder, hidden.flatten(0, 1), targets.flatten(0, 1), row_ids)
        for logits, wanted in zip(known, expected, strict=True):
            assert (wanted.amax(-1) - wanted.amin(-1)).min() > 1  # not flat
            got = logits.unflatten(0, wanted.shape[:2])[..., : wanted.shape[-1]]
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-5)

        cache = KVCache(decoder.config, 64 * num_sequences)
        regions = [cache.reserve(num_columns) for _ in range(num_sequences)]
        sampler = RowSampler(decoder, row_ids)
        for column in range(num_columns - 1):
            step = cache.step([(region, 1) for region in regions])
            state = decoder.hidden(ids[:, :, column].T[None], cache=step)[0]
            local = local_ids(targets[:, column], row_ids)
            scores: list[Tensor] = []

            def choose(row: int, logits: Tensor, local=local, scores=scores) -> Tensor:
                scores.append(logits)
                return local[:, row]

            assert torch.equal(sampler.frame(state, choose), targets[:, column])
            for logits, wanted in zip(scores, expected, strict=True):
                got = logits[:, : wanted.shape[-1]]
                torch.testing.assert_close(got, wanted[:, column], atol=1e-4, rtol=1e-5)


def llama_layers(source: dict[str, Tensor], target: str) -> dict[str, Tensor]:
    """``layers.N.…`` of a model that names its layers as Llama does."""
    return {f"{target}{name}": t for name, t in source.items() if name.startswith("layers.")}


def padded(weight: Tensor, num_rows: int) -> Tensor:
    """Zero rows for ids that a model reads and never predicts."""
    return torch.cat([weight, weight.new_zeros(num_rows - len(weight), *weight.shape[1:])])


@pytest.mark.parametrize("stage", ["semantic", "coarse"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_bark(stage: str, bias: bool) -> None:
    kind = stage.capitalize()
    shape = dict(num_layers=2, num_heads=3, block_size=32)
    reference = getattr(transformers, f"Bark{kind}Model")(
        getattr(transformers, f"Bark{kind}Config")(
            input_vocab_size=29, output_vocab_size=23, hidden_size=24, **shape
        )
    ).eval()
    randomize(reference)
    if not bias:  # as released; transformers cannot make a fresh one without (4.57)
        reference.load_state_dict(
            {
                n: t if n.endswith(("weight", "attn.bias")) else 0 * t
                for n, t in reference.state_dict().items()
            }
        )
    decoder = Decoder(
        DecoderConfig(
            vocab_size=29,
            model_dim=24,
            ffn_dim=96,
            num_layers=2,
            num_heads=3,
            num_kv_heads=3,
            max_positions=32,
            norm="layer",
            gated=False,
            activation="gelu",
            position="learned",
            qkv_bias=bias,
            o_bias=bias,
            mlp_bias=bias,
            tie_embeddings=False,
            dropout=0.0,
        )
    ).eval()
    decoder.load_state_dict(_from_bark(reference.state_dict(), set(decoder.state_dict())))

    ids = random_grid([23], 12)
    with torch.inference_mode():
        expected = reference(ids[:, 0, :-1]).logits
    assert_same_logits(decoder, ids, [torch.arange(23)], [expected])


def _from_bark(source: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    renamed = {
        "input_embeds_layer": "model.embed_tokens",
        "position_embeds_layer": "model.embed_positions",
        "layernorm_final": "model.norm",
        "layernorm_1": "input_layernorm",
        "layernorm_2": "post_attention_layernorm",
        "attn.out_proj": "self_attn.o_proj",
        "mlp.in_proj": "mlp.up_proj",
        "mlp.out_proj": "mlp.down_proj",
    }
    weights = {}
    for name, tensor in source.items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        name = name.replace("layers.", "model.layers.", 1)
        if ".att_proj." in name:
            for part, split in zip("qkv", tensor.chunk(3), strict=True):
                weights[name.replace("attn.att_proj", f"self_attn.{part}_proj")] = split
        elif not name.endswith(".attn.bias"):  # the causal mask, a buffer
            weights[name] = tensor
    weights["lm_head.weight"] = padded(source["lm_head.weight"], 29)
    # Without biases only those of the norms are left, all zeros.
    return {name: tensor for name, tensor in weights.items() if name in names}


def test_musicgen() -> None:
    num_rows, size = 4, 11
    reference = transformers.MusicgenForCausalLM(
        transformers.MusicgenDecoderConfig(
            vocab_size=size,
            num_codebooks=num_rows,
            hidden_size=24,
            ffn_dim=40,
            num_hidden_layers=2,
            num_attention_heads=3,
            max_position_embeddings=32,
            pad_token_id=size,
            bos_token_id=size,
        )
    ).eval()
    randomize(reference)
    # One more id a codebook, which fills the cells of the delay pattern and is not predicted.
    decoder = Decoder(
        DecoderConfig(
            vocab_size=num_rows * (size + 1),
            model_dim=24,
            ffn_dim=40,
            num_layers=2,
            num_heads=3,
            num_kv_heads=3,
            max_positions=32,
            norm="layer",
            gated=False,
            activation="gelu",
            position="sinusoidal",
            tie_embeddings=False,
            dropout=0.0,
        )
    ).eval()
    decoder.load_state_dict(_from_musicgen(reference.state_dict(), num_rows))

    local = random_grid([size] * num_rows, 12)
    with torch.inference_mode():
        logits = reference(local[:, :, :-1].flatten(0, 1)).logits.unflatten(0, (-1, num_rows))
    first = (size + 1) * torch.arange(num_rows)
    row_ids = [start + torch.arange(size) for start in first]
    assert_same_logits(decoder, local + first[:, None], row_ids, list(logits.unbind(dim=1)))


def _from_musicgen(source: dict[str, Tensor], num_rows: int) -> dict[str, Tensor]:
    renamed = {
        "model.decoder.layer_norm": "model.norm",
        "model.decoder.": "model.",
        "self_attn_layer_norm": "input_layernorm",
        "final_layer_norm": "post_attention_layernorm",
        "self_attn.out_proj": "self_attn.o_proj",
        "fc1": "mlp.up_proj",
        "fc2": "mlp.down_proj",
    }
    tables = [source[f"model.decoder.embed_tokens.{row}.weight"] for row in range(num_rows)]
    heads = [padded(source[f"lm_heads.{row}.weight"], len(tables[0])) for row in range(num_rows)]
    weights = {
        "model.embed_tokens.weight": torch.cat(tables),
        "lm_head.weight": torch.cat(heads),
    }
    for name, tensor in source.items():
        if any(part in name for part in ("encoder_attn", "embed_tokens", "lm_heads")):
            continue
        for old, new in renamed.items():
            name = name.replace(old, new)
        weights[name] = tensor
    return weights


def test_csm() -> None:
    num_rows, size, depth_dim = 4, 9, 24
    scaling = dict(factor=4.0, high_freq_factor=4.0, low_freq_factor=1.0)
    stretched = dict(**scaling, rope_type="llama3", original_max_position_embeddings=16)
    reference = transformers.CsmForConditionalGeneration(
        transformers.CsmConfig(
            num_codebooks=num_rows,
            vocab_size=size,
            text_vocab_size=7,
            hidden_size=32,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            rope_scaling=dict(stretched),
            pad_token_id=0,
            codebook_pad_token_id=0,
            bos_token_id=1,
            audio_token_id=2,
            audio_eos_token_id=3,
            codec_config=dict(TINY_CODEC),
            depth_decoder_config=dict(
                num_codebooks=num_rows,
                backbone_hidden_size=32,
                vocab_size=size,
                hidden_size=depth_dim,
                intermediate_size=36,
                num_hidden_layers=2,
                num_attention_heads=3,
                num_key_value_heads=1,
                max_position_embeddings=33,
                rope_scaling=dict(stretched),
            ),
        )
    ).eval()
    randomize(reference)
    row_ids = [size * row + torch.arange(size) for row in range(num_rows)]
    rope = dict(
        rope_theta=500_000.0,
        rope_scaling=RopeScaling(kind="llama3", original_max_positions=16, **scaling),
    )
    decoder = Decoder(
        DecoderConfig(
            vocab_size=num_rows * size,
            model_dim=32,
            ffn_dim=40,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            max_positions=64,
            tie_embeddings=False,
            dropout=0.0,
            depth=DepthConfig(
                dim=depth_dim,
                ffn_dim=36,
                num_layers=2,
                num_heads=3,
                num_kv_heads=1,
                per_step_weights=False,
                first_from_body=True,
                shared_embeddings=True,
                rope=True,
                **rope,
            ).of(row_ids),
            **rope,
        )
    ).eval()
    decoder.load_state_dict(_from_csm(reference, num_rows * size))

    local = random_grid([size] * num_rows, 10)
    with torch.inference_mode():
        read = local[:, :, :-1].transpose(1, 2)
        hidden = reference.backbone_model(read).last_hidden_state
        first = reference.lm_head(hidden)
        # Its place 0 holds the body's state instead of the id.
        frames = local[:, :, 1:].transpose(1, 2).flatten(0, 1)
        others = reference.depth_decoder(
            torch.cat([torch.zeros_like(frames[:, :1]), frames[:, :-1]], dim=1),
            backbone_last_hidden_state=hidden.flatten(0, 1),
        ).logits
    expected = [first, *(o.unflatten(0, first.shape[:2]) for o in others.unbind(dim=1))]
    ids = local + size * torch.arange(num_rows)[:, None]
    assert_same_logits(decoder, ids, row_ids, expected)


def _from_csm(reference: torch.nn.Module, vocab_size: int) -> dict[str, Tensor]:
    body = reference.backbone_model.state_dict()
    depth = reference.depth_decoder.model.state_dict()
    heads = reference.depth_decoder.codebooks_head.weight.data
    return {
        **llama_layers(body, "model."),
        "model.embed_tokens.weight": body["embed_tokens.embed_audio_tokens.weight"],
        "model.norm.weight": body["norm.weight"],
        "lm_head.weight": padded(reference.lm_head.weight.data, vocab_size),
        **llama_layers(depth, "depth.steps.0."),
        "depth.steps.0.input_proj.weight": depth["inputs_embeds_projector.weight"],
        "depth.steps.0.norm.weight": depth["norm.weight"],
        **{f"depth.heads.{index}.weight": head.T for index, head in enumerate(heads)},
    }


def test_moshi() -> None:
    num_codebooks, text_size, size = 4, 13, 8
    reference = transformers.MoshiForConditionalGeneration(
        transformers.MoshiConfig(
            vocab_size=text_size,
            audio_vocab_size=size,
            num_codebooks=num_codebooks,
            hidden_size=32,
            ffn_dim=80,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            audio_encoder_config=dict(TINY_CODEC),
            depth_decoder_config=dict(
                hidden_size=24,
                ffn_dim=72,
                num_hidden_layers=2,
                num_attention_heads=3,
                max_position_embeddings=9,
            ),
        )
    ).eval()
    randomize(reference)
    # A row reads one id more than it predicts: what stands before the first frame.
    sizes = [text_size + 1, *[size + 1] * 2 * num_codebooks]
    first = torch.tensor([0, *sizes[:-1]]).cumsum(0)
    row_ids = [f + torch.arange(s) for f, s in zip(first, sizes, strict=True)][: 1 + num_codebooks]
    decoder = Decoder(
        DecoderConfig(
            vocab_size=sum(sizes),
            model_dim=32,
            ffn_dim=40,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            max_positions=64,
            norm_eps=1e-8,
            tie_embeddings=False,
            dropout=0.0,
            depth=DepthConfig(
                dim=24,
                ffn_dim=36,
                num_layers=2,
                num_heads=3,
                num_kv_heads=3,
                norm_eps=1e-8,
                last_norm=False,
                first_from_body=True,
            ).of(row_ids),
        )
    ).eval()
    decoder.load_state_dict(_from_moshi(reference.state_dict(), num_codebooks, sum(sizes)))

    local = random_grid([text_size, *[size] * 2 * num_codebooks], 10)
    local[:, 3, 1] = size  # a delayed stream has not begun
    with torch.inference_mode():
        output = reference(
            input_ids=local[:, 0, :-1],
            moshi_audio_codes=local[:, 1 : 1 + num_codebooks, :-1],
            user_audio_codes=local[:, 1 + num_codebooks :, :-1],
        )
        frames = local[:, :num_codebooks, 1:].transpose(1, 2).flatten(0, 1)
        units = reference.depth_decoder(
            input_ids=frames, last_hidden_state=output.last_hidden_state.flatten(0, 1)[:, None]
        ).logits
    expected = [output.logits]
    expected += [o.unflatten(0, output.logits.shape[:2]) for o in units.unbind(dim=1)]
    assert_same_logits(decoder, local + first[:, None], row_ids, expected)


def _from_moshi(
    source: dict[str, Tensor], num_codebooks: int, vocab_size: int
) -> dict[str, Tensor]:
    tables = [source[f"embed_tokens.{stream}.weight"] for stream in range(2 * num_codebooks)]
    weights = {
        "model.embed_tokens.weight": torch.cat(
            [source["decoder.model.embed_tokens.weight"], *tables]
        ),
        "model.norm.weight": source["decoder.model.norm.weight"],
        "lm_head.weight": padded(source["decoder.lm_head.weight"], vocab_size),
        "depth.embeddings.0.weight": source["depth_decoder.text_embed_tokens.weight"],
    }
    for stream in range(num_codebooks - 1):
        table = source[f"depth_decoder.embed_tokens.{stream}.weight"]
        weights[f"depth.embeddings.{stream + 1}.weight"] = table
    for name, tensor in source.items():
        if name.startswith("decoder.model.layers."):
            weights |= _moshi_layer(name.removeprefix("decoder."), tensor)
        if not name.startswith("depth_decoder."):
            continue
        name = name.removeprefix("depth_decoder.")
        for step in range(num_codebooks):
            if name == "lm_heads.weight":
                heads = padded(tensor[step], tensor.shape[1] + 1)
                weights[f"depth.heads.{step}.weight"] = heads
            elif name == "input_projections.weight":
                weights[f"depth.steps.{step}.input_proj.weight"] = tensor[step]
            elif name.startswith("layers."):
                # Norms are shared by the steps there, and are their own here.
                own = tensor[step] if tensor.ndim == 3 else tensor
                weights |= _moshi_layer(f"depth.steps.{step}.{name}", own)
    return weights


def _moshi_layer(name: str, tensor: Tensor) -> dict[str, Tensor]:
    name = name.replace("_proj.linear.", "_proj.")
    if ".mlp.fc1." in name:
        gate, up = tensor.chunk(2)
        return {
            name.replace("fc1", "gate_proj"): gate,
            name.replace("fc1", "up_proj"): up,
        }
    return {name.replace("mlp.fc2", "mlp.down_proj"): tensor}
