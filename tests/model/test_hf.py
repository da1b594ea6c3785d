"""Checkpoints as files: sharded, partial, broken, from the hub; and a text LM that writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechlm.errors import CheckpointError, ConfigError, InputError
from speechlm.layouts.text import TextTokenizer
from speechlm.model import from_hf, to_hf
from speechlm.model.architecture import DecoderConfig
from speechlm.model.cache import KVCache
from speechlm.model.decoder import Decoder
from speechlm.model.fast import prepare

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")


def small_decoder(**changes: Any) -> Decoder:
    shape = dict(vocab_size=31, num_layers=3, model_dim=48, num_heads=3, num_kv_heads=1)
    shape |= dict(ffn_dim=40, max_positions=64, tie_embeddings=False, dropout=0.0)
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(**{**shape, **changes})).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(5 if parameter.ndim > 1 else 1)
    return decoder


NEOX = dict(norm="layer", gated=False, qkv_bias=True, o_bias=True, mlp_bias=True)
NEOX |= dict(num_kv_heads=3, parallel_residual=True, rotary_fraction=0.5, activation="gelu")
IDS = torch.tensor([[1, 5, 0, 30, 7, 7, 2]])


def saved(folder: Path, **changes: Any) -> Decoder:
    decoder = small_decoder(**changes)
    to_hf(decoder, folder)
    return decoder


@pytest.mark.parametrize(
    "shape", [{}, NEOX, {"tie_embeddings": True}], ids=["llama", "neox", "tied"]
)
def test_shards_go_both_ways(shape: dict[str, Any], tmp_path: Path) -> None:
    decoder = small_decoder(**shape)
    to_hf(decoder, tmp_path / "ours", max_shard_bytes=30_000)
    shards = sorted(path.name for path in (tmp_path / "ours").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    with torch.inference_mode():
        expected = decoder(IDS)
        assert torch.equal(from_hf(tmp_path / "ours")(IDS), expected)
        opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
        torch.testing.assert_close(opened(IDS).logits, expected, atol=1e-4, rtol=0)
        opened.save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
        assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
        assert torch.equal(from_hf(tmp_path / "theirs")(IDS), expected)


def test_the_dtype_is_float32_unless_another_is_asked_for(tmp_path: Path) -> None:
    decoder = small_decoder().to(torch.bfloat16)
    to_hf(decoder, tmp_path / "lm")
    assert json.loads((tmp_path / "lm/config.json").read_text())["torch_dtype"] == "bfloat16"
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lm", dtype="auto")
    assert opened.dtype == torch.bfloat16
    for dtype in (torch.float32, torch.bfloat16):
        read = from_hf(tmp_path / "lm", dtype=dtype)
        assert {parameter.dtype for parameter in read.parameters()} == {dtype}
        assert torch.equal(read.model.norm.weight.float(), decoder.model.norm.weight.float())
    assert {p.device.type for p in from_hf(tmp_path / "lm", device="meta").parameters()} == {"meta"}


def test_what_is_read_can_be_trained_and_does_not_hold_the_file(tmp_path: Path) -> None:
    saved(tmp_path / "lm")
    read = from_hf(tmp_path / "lm")
    before = read(IDS).detach()
    path = tmp_path / "lm" / "model.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(read(IDS), before)
    read(IDS).sum().backward()
    assert all(parameter.grad is not None for parameter in read.parameters())


def test_ids_that_end_and_pad_are_said(tmp_path: Path) -> None:
    to_hf(small_decoder(), tmp_path / "lm", end_id=1, pad_id=0)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    assert (opened.generation_config.eos_token_id, opened.generation_config.pad_token_id) == (1, 0)
    assert opened.config.bos_token_id is None
    saved(tmp_path / "unsaid")
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "unsaid")
    assert opened.generation_config.eos_token_id is None


def test_a_body_without_a_head_is_read_where_the_head_is_tied(tmp_path: Path) -> None:
    decoder = saved(tmp_path / "lm", tie_embeddings=True)
    body = transformers.AutoModel.from_pretrained(tmp_path / "lm")
    body.save_pretrained(tmp_path / "body")
    assert "embed_tokens.weight" in load_file(tmp_path / "body/model.safetensors")
    with torch.inference_mode():
        assert torch.equal(from_hf(tmp_path / "body")(IDS), decoder(IDS))


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "model-00001-of-00001.safetensors"
        path = path if path.exists() else folder / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path, {"format": "pt"})

    return edit


def shard(folder: Path) -> None:
    to_hf(small_decoder(), folder, max_shard_bytes=30_000)


def lose_shard(folder: Path) -> None:
    shard(folder)
    sorted(folder.glob("*.safetensors"))[1].unlink()


def leave_the_folder(folder: Path) -> None:
    shard(folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = "../elsewhere.safetensors"
    path.write_text(json.dumps(index))


def swap_shards(folder: Path) -> None:
    shard(folder)
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    first.write_bytes(second.read_bytes())


def only_bin(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def write(name: str, text: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        if name.endswith("index.json"):
            (folder / "model.safetensors").unlink()
        (folder / name).write_text(text)

    return edit


DOWN = "model.layers.1.mlp.down_proj.weight"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"holds no config\.json; expected a"),
    "config no JSON": (write("config.json", "{"), r"config\.json cannot be read"),
    "config a list": (write("config.json", "[]"), r"config\.json: expected keys and values"),
    "architecture": (edit_config(model_type="mamba2"), "'mamba2'; known: llama, .*gpt_neox"),
    "no heads": (edit_config(num_key_value_heads=0), "model.num_kv_heads must be at least 1"),
    "no layers": (edit_config(num_hidden_layers=0), "model.num_layers must be at least 1"),
    "no theta": (edit_config(rope_theta=1), "expected rope_theta above 1, got 1"),
    "no epsilon": (edit_config(rms_norm_eps=-1), "expected norm_eps of 0 or more"),
    "strange activation": (edit_config(hidden_act=["silu"]), "a value that cannot be used"),
    "yarn from nothing": (
        edit_config(rope_scaling={"rope_type": "yarn", "original_max_position_embeddings": 0}),
        r"config\.json",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        r"holds neither model\.safetensors nor",
    ),
    "bin only": (only_bin, r"pytorch_model\.bin is no safetensors file: save it again"),
    "cut": (cut, r"model\.safetensors cannot be read .*; save or download it again"),
    "no index": (write("model.safetensors.index.json", "{}"), "is no index of shards"),
    "index of names": (
        write("model.safetensors.index.json", '{"weight_map": []}'),
        "is no index of shards",
    ),
    "missing shard": (lose_shard, r"lacks model-00002-of-\d+\.safetensors, one of \d+ shards"),
    "shard elsewhere": (leave_the_folder, r"lacks \.\./elsewhere\.safetensors"),
    "swapped shard": (swap_shards, r"model-00001-of-\d+\.safetensors does not give the tensor"),
    "missing tensor": (edit_weights(lambda w: w.pop(DOWN)), rf"lacks the tensor {DOWN}"),
    "missing head": (edit_weights(lambda w: w.pop("lm_head.weight")), "lacks the tensor lm_head"),
    "vocabulary": (
        edit_config(vocab_size=32),
        r"embed_tokens\.weight is \[31, 48\], but config\.json asks for \[32, 48\]",
    ),
    "shape": (
        edit_weights(lambda w: w.update({DOWN: torch.zeros(48, 39)})),
        rf"{DOWN} is \[48, 39\], but config\.json asks for \[48, 40\]",
    ),
    "spare": (
        edit_weights(lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": w[DOWN][0] + 0})),
        r"1 tensors that config\.json does not speak of, such as model\.layers\.0",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_checkpoint_that_cannot_be_used_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    breaks, message = BROKEN[name]
    saved(tmp_path / "lm")
    breaks(tmp_path / "lm")
    with pytest.raises(CheckpointError, match=message) as caught:
        from_hf(tmp_path / "lm")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "lm") in str(caught.value)


def test_what_old_checkpoints_hold_besides_weights_is_passed_over(tmp_path: Path) -> None:
    decoder = saved(tmp_path / "lm", tie_embeddings=True)

    def add(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1  # tied all the same

    edit_weights(add)(tmp_path / "lm")
    assert torch.equal(from_hf(tmp_path / "lm")(IDS), decoder(IDS))


def test_only_a_models_folder_is_replaced(tmp_path: Path) -> None:
    first, second = small_decoder(), small_decoder(model_dim=24, num_heads=1)
    to_hf(first, tmp_path / "lm")
    to_hf(second, tmp_path / "lm")
    assert from_hf(tmp_path / "lm").config == second.config
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="notes holds other files; expected a new folder"):
        to_hf(first, tmp_path / "notes")
    with pytest.raises(InputError, match=r"mine\.txt is a file; expected a new folder"):
        to_hf(first, tmp_path / "notes" / "mine.txt")
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["mine.txt"]


def test_a_refused_export_leaves_what_was_there(tmp_path: Path) -> None:
    decoder = saved(tmp_path / "lm")
    with pytest.raises(ConfigError, match="no family of transformers fits"):
        to_hf(small_decoder(o_bias=True), tmp_path / "lm")
    assert from_hf(tmp_path / "lm").config == decoder.config
    assert [path.name for path in tmp_path.iterdir()] == ["lm"]


def test_a_decoder_made_ready_to_decode_is_refused(tmp_path: Path) -> None:
    decoder = prepare(small_decoder())
    with pytest.raises(InputError, match="not one made ready to decode"):
        to_hf(decoder, tmp_path / "lm")


def test_the_hub_is_asked_for_what_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[tuple[str, str | None, list[str]]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(tmp_path / "lm")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    decoder = saved(tmp_path / "lm")
    assert torch.equal(from_hf("someone/lm", revision="v2")(IDS), decoder(IDS))
    patterns = ["config.json", "model*.safetensors", "model.safetensors.index.json"]
    assert asked == [("someone/lm", "v2", patterns)]
    (tmp_path / "lm" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"someone/lm on the hub .* no config\.json"):
        from_hf("someone/lm")

    def fail(name: str, **options: object) -> str:
        raise OSError("no such repository\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        CheckpointError, match=r"neither .* that the hub gives: no such repository$"
    ):
        from_hf("someone/lm")
    with pytest.raises(CheckpointError, match="not a text LM"):
        from_hf("no-such-folder")


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "OPT", "GPTNeoX"])
def test_greedy_text_is_that_of_transformers(family: str, tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=90, show_progress=False)
    tokenizer.train_from_iterator(["the cat sat on the mat, and so it goes on and on"], trainer)
    text = TextTokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    shape = dict(hidden_size=48, num_attention_heads=3, num_hidden_layers=2)
    shape |= {"ffn_dim": 64} if family == "OPT" else {"intermediate_size": 64}
    shape |= {"word_embed_proj_dim": 48, "tie_word_embeddings": False} if family == "OPT" else {}
    shape |= {"head_dim": 16, "num_key_value_heads": 1} if family == "Qwen3" else {}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=text.size, pad_token_id=None, bos_token_id=None, eos_token_id=None, **shape
    )
    torch.manual_seed(3)
    reference = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5)
    reference.save_pretrained(tmp_path / "lm")
    text.save(tmp_path / "text")

    decoder = from_hf(tmp_path / "lm")
    loaded = TextTokenizer.load(tmp_path / "text")
    prompt = loaded.encode("the cat sat on")
    expected = reference.generate(
        prompt[None],
        attention_mask=torch.ones_like(prompt[None]),
        do_sample=False,
        max_new_tokens=40,
        pad_token_id=0,
    )[0, len(prompt) :]

    cache = KVCache(decoder.config, 128)
    region = cache.reserve(len(prompt) + 40)
    written: list[int] = []
    with torch.inference_mode():
        given = prompt
        while len(written) < 40:
            logits = decoder(given[None], cache=cache.step([(region, len(given))]))
            written.append(int(logits[0, -1].argmax()))
            given = torch.tensor(written[-1:])
    assert written == expected.tolist()
    assert len(set(written)) > 5, "one token over and over would prove little"
    assert loaded.decode(written) == text.decode(expected)
