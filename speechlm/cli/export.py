"""Write a bundle's language model as Hugging Face's transformers opens it.

AutoModelForCausalLM gives the same logits, so that vLLM and other tools can serve it. Beside it
stand ids.json, which says what each id means, and the text tokenizer, where there is one. The
unit tokenizer and the vocoder stay in the bundle. Of a tokenizer's own folder it writes the
encoder, where that is one of transformers' (phone-ctc): AutoModel and ssl-kmeans open it.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechlm.model.unit_lm import UnitLM

EXAMPLES = (
    ("speechlm export runs/demo/bundle -o exported", "a run's language model"),
    ("speechlm export name/bundle -o exported", "one from the Hugging Face hub"),
    ("speechlm export runs/demo/bundle -o exported --force", "replacing an earlier export"),
    ("speechlm export runs/phone-ctc/tokenizer -o encoder", "a tokenizer's encoder"),
)
SECTIONS = ()


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        help="a folder that 'speechlm train' wrote, or a hub id; or a tokenizer's folder",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="where the model goes"
    )
    parser.add_argument("--force", action="store_true", help="replace a model that is there")


def run(args: Namespace) -> None:
    from speechlm.bundle import SpeechLM
    from speechlm.errors import InputError
    from speechlm.model.hf import check_target
    from speechlm.parts import CONFIG_NAME

    check_target(args.output)
    if args.output.is_dir() and any(args.output.iterdir()) and not args.force:
        raise InputError(f"{args.output} exists already; --force replaces it")
    if (Path(args.bundle) / CONFIG_NAME).is_file():
        export_encoder(Path(args.bundle), args.output)
        return
    lm = SpeechLM.from_pretrained(args.bundle).lm
    architecture = export(lm, args.output)
    parameters = sum(weight.numel() for weight in lm.decoder.parameters())
    print(
        f"{args.bundle} -> {args.output}: {architecture}, {parameters / 1e6:.1f} M parameters, "
        f"{lm.vocabulary.size} ids"
    )


def export_encoder(tokenizer: Path, folder: Path) -> None:
    """Write the encoder of a tokenizer in the folder ``tokenizer``.

    Raises:
        InputError: It has none that transformers opens.
    """
    from speechlm.errors import InputError
    from speechlm.parts import part_kind
    from speechlm.plugins import load_tokenizer

    kind = part_kind(tokenizer)
    write = getattr(load_tokenizer(tokenizer), "export_encoder", None)
    if write is None:
        raise InputError(
            f"{tokenizer} holds a {kind!r}, which has no encoder that transformers opens; "
            "expected a bundle, or a tokenizer such as 'phone-ctc'"
        )
    write(folder)
    print(f"{tokenizer} -> {folder}: the encoder of {kind}")


def export(lm: UnitLM, folder: Path) -> str:
    """Write the model and what its ids mean, whole or not at all.

    Returns:
        The class of ``transformers`` that opens it.

    Raises:
        InputError: No class fits the decoder.
    """
    from speechlm.files import write_folder_aside, write_json
    from speechlm.model.hf import write_model
    from speechlm.model.unit_lm import TEXT_NAME

    vocabulary = lm.vocabulary
    with write_folder_aside(folder) as aside:
        architecture = write_model(lm.decoder, aside, end_id=vocabulary.end, pad_id=vocabulary.pad)
        write_json(aside / "ids.json", describe_ids(lm))
        if lm.text_tokenizer is not None:
            lm.text_tokenizer.save(aside / TEXT_NAME)
        (aside / "README.md").write_text(_card(lm, architecture), encoding="utf-8")
    return architecture


def describe_ids(lm: UnitLM) -> dict[str, Any]:
    """Which id stands for what, and how sequences are laid out."""
    from speechlm.layouts.vocabulary import CONTROLS

    vocabulary = lm.vocabulary
    text = vocabulary.text_range
    units = [vocabulary.unit_range(stream) for stream in range(len(vocabulary.stream_sizes))]
    return {
        "controls": {name: getattr(vocabulary, name) for name in CONTROLS},
        "text": [text.start, text.stop],
        "units": [[ids.start, ids.stop] for ids in units],
        "tokenizer_fingerprint": vocabulary.tokenizer_fingerprint,
        "text_fingerprint": vocabulary.text_fingerprint,
        "vocabulary_fingerprint": vocabulary.fingerprint,
        "lm_fingerprint": lm.fingerprint,
        "layout": lm.layout.to_dict(),
    }


def _card(lm: UnitLM, architecture: str) -> str:
    vocabulary = lm.vocabulary
    text = (
        f"Text token t of `text_tokenizer/` is the id {vocabulary.first_text} + t.\n"
        if lm.text_tokenizer is not None
        else ""
    )
    rows = (
        f"A position is a column of {lm.layout.num_rows} ids, read as the sum of their "
        "embeddings:\n`model(inputs_embeds=model.get_input_embeddings()(ids).sum(dim=1))` of ids "
        "[B, R, S].\n"
        if lm.layout.num_rows > 1
        else ""
    )
    return (
        f"# A speech language model, as {architecture}\n\n"
        "Its ids are not text: `ids.json` says which are controls, text tokens, and the units of "
        f"each stream,\nfrom the first up to, without, the last. The units are those of the "
        f"tokenizer `{vocabulary.tokenizer_fingerprint}`.\n{text}{rows}\n"
        "```python\nfrom transformers import AutoModelForCausalLM\n\n"
        'model = AutoModelForCausalLM.from_pretrained("this folder")\n```\n'
    )
