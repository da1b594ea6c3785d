"""``speechlm train``: from a unit store to a trained unit LM, resumable at every moment."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from speechlm.config import RunConfig, TrainConfig
from speechlm.data.store import UnitStore
from speechlm.errors import FingerprintError
from speechlm.model.unit_lm import UnitLM
from speechlm.parts import CONFIG_NAME
from speechlm.plugins import load_tokenizer
from speechlm.progress import say
from speechlm.training.content import ContentPlan
from speechlm.training.identity import (
    check_identity,
    identity_of,
    write_identity,
)
from speechlm.training.lora import import_peft, merge_lora
from speechlm.training.running import (
    choose_device,
    choose_dtype,
    import_fairseq2,
    run_recipe,
    surroundings,
)
from speechlm.training.sequences import SequenceSet
from speechlm.training.start import Language, Start, choose_language, choose_start


def train(config: RunConfig) -> None:
    """Train the unit LM of a run and write it to ``config.train_path / "lm"``.

    A run that was stopped or killed goes on from its last checkpoint and has the losses of
    one that was not; a finished one is left as it is. Under ``torchrun`` the processes share
    every step.

    Raises:
        PluginError: fairseq2, or peft for LoRA, is not installed.
        ConfigError: The layout or the head does not fit the store.
        InputError: The layout needs text, or what a store does not hold.
        CorpusError: The unit store is missing, partial, or holds nothing to train on.
        FingerprintError: The tokenizer is not the store's, or a checkpoint is of another
            vocabulary or other units.
        CheckpointError: A checkpoint is of another shape or setting, or cannot be read.
        PartialFailure: Stopped by Ctrl-C or SIGTERM, or the disk is full; a rerun goes on.
    """
    folder = config.train_path
    store = UnitStore.open(config.store_path)
    language = choose_language(config, store)
    features = _unit_features(config.tokenizer_path, store.fingerprint)
    if config.train.lora_rank:
        import_peft()
    start = choose_start(config, language, features)
    sequences, valid = (
        _sequences(config, store, language, start, split) for split in ("train", "valid")
    )
    sequences.check_not_empty(config.store_path)
    identity = identity_of(
        config,
        vocabulary=language.vocabulary.fingerprint,
        units=sequences.fingerprint(),
        text_lm=start.text_lm,
        num_processes=int(os.environ.get("WORLD_SIZE", "1")),
    )
    finished = (folder / "lm" / CONFIG_NAME).is_file()
    if finished or any((folder / "checkpoints").glob("step_*[0-9]")):
        check_identity(folder, identity)
    leader = os.environ.get("RANK", "0") == "0"
    if finished:
        if leader:
            say(f"{folder / 'lm'} is trained already; delete {folder} to train anew")
        return
    device = choose_device(config.train.device)
    dtype = choose_dtype(config.train, device)

    with surroundings(device):
        import_fairseq2()
        from speechlm.training.recipe import UnitLMRecipe, last_checkpoint, unit_lm_settings

        resumed = last_checkpoint(folder / "checkpoints")
        if leader:
            write_identity(folder, identity)
            _announce(sequences, valid, config.train, device, dtype, resumed)
        recipe = UnitLMRecipe(
            config, train=sequences, valid=valid, start=start, first_step=resumed + 1
        )
        del start  # the recipe lets go of the text LM's weights once they are in the model
        run_recipe(recipe, unit_lm_settings(config, dtype), folder)
    if leader:
        assert recipe.decoder is not None
        if config.train.lora_rank:
            merge_lora(recipe.decoder)
        lm = UnitLM(recipe.decoder, language.vocabulary, language.layout, language.text_tokenizer)
        lm.save(folder / "lm")
        say(f"trained: {folder / 'lm'}")


def _sequences(
    config: RunConfig, store: UnitStore, language: Language, start: Start, split: str
) -> SequenceSet:
    layout = language.train_layout if split == "train" else language.layout
    plan = ContentPlan(
        layout,
        num_codebooks=store.num_codebooks,
        text_tokenizer=language.text_tokenizer,
        spans=config.layout.spans,
    )
    return SequenceSet.of_split(
        store,
        layout,
        language.vocabulary,
        plan,
        split,
        max_length=min(start.shape.max_positions, config.train.batch_units),
    )


def _unit_features(tokenizer_path: Path, expected: str) -> Tensor | None:
    """What each unit sounds like, where the run has the tokenizer and that one knows."""
    if not tokenizer_path.is_dir():
        return None
    tokenizer = load_tokenizer(tokenizer_path)
    if tokenizer.fingerprint != expected:
        raise FingerprintError(
            part="the unit store",
            expected=expected,
            got=tokenizer.fingerprint,
            remedy="run 'speechlm tokenize' again with this tokenizer",
        )
    features: Tensor | None = getattr(tokenizer, "unit_features", None)
    return features


def _announce(
    sequences: SequenceSet,
    valid: SequenceSet,
    config: TrainConfig,
    device: str,
    dtype: torch.dtype,
    resumed: int,
) -> None:
    say(
        f"training on {sequences.num_conversations} conversations and {sequences.num_speech} "
        f"recordings alone, validating on {len(valid)}; {device}, {str(dtype)[6:]}"
    )
    for part, name in ((sequences, "train"), (valid, "valid")):
        for line in part.describe_left_out():
            say(f"{name}: {line}")
    if resumed:
        say(f"going on from step {resumed} of {config.max_steps}")
