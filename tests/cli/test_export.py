"""``export``: a bundle's LM as transformers opens it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_bundle import small_bundle

from speechlm import SpeechLM
from speechlm.cli.export import export
from speechlm.cli.main import main
from speechlm.layouts.registry import build_layout
from speechlm.layouts.text import TextTokenizer
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.model import from_hf
from speechlm.model.architecture import DecoderConfig
from speechlm.model.decoder import Decoder
from speechlm.model.unit_lm import UnitLM

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "bundle"
    small_bundle().save_pretrained(folder)
    return folder


def test_the_exported_lm_gives_the_same_logits(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(bundle), "--output", str(tmp_path / "lm")]) == 0
    lm = SpeechLM.from_pretrained(bundle).lm
    said = capsys.readouterr().out
    assert said.startswith(f"{bundle} -> {tmp_path / 'lm'}: LlamaForCausalLM, ")
    assert said.endswith(f" {lm.vocabulary.size} ids\n")

    ids = torch.randint(lm.vocabulary.size, (2, 50), generator=torch.Generator().manual_seed(1))
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    assert opened.generation_config.eos_token_id == lm.vocabulary.end
    with torch.inference_mode():
        expected = lm.decoder(ids)
        torch.testing.assert_close(opened(ids).logits, expected, atol=1e-4, rtol=0)
        assert torch.equal(from_hf(tmp_path / "lm")(ids), expected)

    meaning = json.loads((tmp_path / "lm" / "ids.json").read_text())
    assert meaning["controls"]["end"] == lm.vocabulary.end
    assert meaning["text"] == [lm.vocabulary.first_unit] * 2
    assert meaning["units"] == [[lm.vocabulary.first_unit, lm.vocabulary.size]]
    assert meaning["tokenizer_fingerprint"] == lm.vocabulary.tokenizer_fingerprint
    assert meaning["layout"] == lm.layout.to_dict()
    card = (tmp_path / "lm" / "README.md").read_text()
    assert lm.vocabulary.tokenizer_fingerprint in card
    assert "text_tokenizer" not in card
    assert "inputs_embeds" not in card


def test_an_lm_of_text_and_streams_says_how_to_read_it(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "cat": 1}, "<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    text = TextTokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=words))
    layout = build_layout("text-parallel", {}, 2)
    vocabulary = Vocabulary(
        tokenizer_fingerprint="units-1",
        stream_sizes=layout.stream_sizes((5, 5)),
        text_size=text.size,
        text_fingerprint=text.fingerprint,
    )
    shape = dict(num_layers=1, model_dim=16, num_heads=1, num_kv_heads=1, ffn_dim=8)
    decoder = Decoder(DecoderConfig(vocab_size=vocabulary.size, **shape))
    export(UnitLM(decoder, vocabulary, layout, text), tmp_path / "lm")

    assert TextTokenizer.load(tmp_path / "lm" / "text_tokenizer").encode("cat").tolist() == [1]
    meaning = json.loads((tmp_path / "lm" / "ids.json").read_text())
    assert meaning["text"] == [vocabulary.first_text, vocabulary.first_unit]
    card = (tmp_path / "lm" / "README.md").read_text()
    assert f"the id {vocabulary.first_text} + t" in card
    # As the card has it, a column of ids is the sum of embeddings.
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    ids = torch.randint(vocabulary.size, (2, layout.num_rows, 7))
    with torch.inference_mode():
        logits = opened(inputs_embeds=opened.get_input_embeddings()(ids).sum(dim=1)).logits
        torch.testing.assert_close(logits, decoder(ids), atol=1e-4, rtol=0)


def test_an_export_is_replaced_when_asked_to_only(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(bundle), "-o", str(tmp_path / "lm")]
    assert main(command) == 0
    assert main(command) == 2
    assert "exists already; --force replaces it" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert main(["export", str(bundle), "-o", str(bundle), "--force"]) == 2
    assert "holds other files; expected a new folder or a model's" in capsys.readouterr().err
    SpeechLM.from_pretrained(bundle)


def test_what_is_no_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path), "-o", str(tmp_path / "lm")]) == 2
    assert "is not a bundle" in capsys.readouterr().err
    assert not (tmp_path / "lm").exists()


def test_a_tokenizer_without_an_encoder_is_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(bundle / "tokenizer"), "-o", str(tmp_path / "encoder")]) == 2
    said = capsys.readouterr().err
    assert "holds a 'logmel-kmeans', which has no encoder that transformers opens" in said
    assert not (tmp_path / "encoder").exists()
