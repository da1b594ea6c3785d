"""``speechlm train train.part=vocoder``, or ``tokenizer``: a part of one's own, resumable."""

from __future__ import annotations

import os
from typing import Any, cast

import torch

from speechlm.config import RunConfig
from speechlm.errors import ConfigError, PluginError
from speechlm.parts import CONFIG_NAME
from speechlm.plugins import AUTO, TOKENIZERS, VOCODERS, load_tokenizer, load_vocoder, plugin
from speechlm.progress import say
from speechlm.protocols import AudioTokenizer, PartTraining
from speechlm.training.identity import check_identity, identity_of_part, write_identity
from speechlm.training.running import (
    choose_device,
    choose_dtype,
    import_fairseq2,
    run_recipe,
    surroundings,
)
from speechlm.training.segments import SegmentSet, open_segments


def train_part(config: RunConfig) -> None:
    """Train the tokenizer or vocoder that ``train.part`` says and save it to the run's folder.

    A run that was stopped or killed goes on from its last checkpoint and has the losses of
    one that was not; a finished one is left as it is. Under ``torchrun`` the processes share
    every step.

    Raises:
        PluginError: The part is not known or is not trained, or fairseq2 is not installed.
        ConfigError: An option of it does not fit.
        CorpusError: The corpus, or its unit store, is missing or holds nothing to train on.
        FingerprintError: The unit store is of another tokenizer.
        CheckpointError: A checkpoint is of another setting, or cannot be read.
        PartialFailure: Stopped by Ctrl-C or SIGTERM, or the disk is full; a rerun goes on.
    """
    is_tokenizer = config.train.part == "tokenizer"
    target = config.tokenizer_path if is_tokenizer else config.vocoder_path
    leader = os.environ.get("RANK", "0") == "0"
    if (target / CONFIG_NAME).is_file():
        there = (load_tokenizer if is_tokenizer else load_vocoder)(target)
        if leader:
            say(f"{target}: trained already ({there.fingerprint}); delete it to train anew")
        return
    tokenizer = None if is_tokenizer else load_tokenizer(config.tokenizer_path)
    training = _build(config, tokenizer)
    made_for = None if tokenizer is None else tokenizer.fingerprint
    train, valid = open_segments(config, training, made_for)
    folder = config.train_path
    identity = identity_of_part(
        config,
        tokenizer=made_for,
        recordings=train.fingerprint(),
        num_processes=int(os.environ.get("WORLD_SIZE", "1")),
    )
    if any((folder / "checkpoints").glob("step_*[0-9]")):
        check_identity(folder, identity)
    device = choose_device(config.train.device)
    dtype = torch.float32  # losses over spectra and phases; ``bfloat16`` where it is asked for
    if config.train.dtype != "auto":
        dtype = choose_dtype(config.train, device)
    with surroundings(device):
        import_fairseq2()
        from speechlm.training.part_recipe import PartRecipe, part_settings
        from speechlm.training.recipe import last_checkpoint

        resumed = last_checkpoint(folder / "checkpoints")
        if leader:
            write_identity(folder, identity)
            _announce(training, train, valid, device, dtype)
            if resumed:
                say(f"going on from step {resumed} of {config.train.max_steps}")
        recipe = PartRecipe(config, training, train=train, valid=valid, first_step=resumed + 1)
        run_recipe(recipe, part_settings(config, training, dtype), folder)
    if leader:
        part = training.part()
        part.save(target)
        say(f"trained: {target} ({part.fingerprint})")


def _build(config: RunConfig, tokenizer: AudioTokenizer | None) -> PartTraining:
    """The part before its first step, the same in every process."""
    if tokenizer is None:
        name, kind = config.tokenizer.name, plugin(TOKENIZERS, config.tokenizer.name)
    else:
        name = "unit-vocos" if config.vocoder.name == AUTO else config.vocoder.name
        kind = plugin(VOCODERS, name)
    if not hasattr(kind, "training"):
        what = config.train.part
        remedy = "use 'speechlm fit'" if hasattr(kind, "fit") else "use it as it is"
        raise PluginError(f"{what} {name!r} is not trained: {remedy}, or choose another {what}")
    options = config.tokenizer.options if tokenizer is None else config.vocoder.options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        given: tuple[Any, ...] = () if tokenizer is None else (tokenizer,)
        training = cast(PartTraining, kind.training(*given, options, config.seed))
    if tokenizer is not None and tokenizer.sample_rate % tokenizer.hop_length == 0:
        rates = training.sample_rate / training.hop_length, tokenizer.frame_rate
        if rates[0] != rates[1]:
            raise ConfigError(
                f"vocoder {name!r} would render {rates[0]:g} frames/s, but the tokenizer gives "
                f"{rates[1]:g}; choose a sample_rate that fits in vocoder.options"
            )
    return training


def _announce(
    training: PartTraining, train: SegmentSet, valid: SegmentSet, device: str, dtype: torch.dtype
) -> None:
    count = sum(p.numel() for p in cast(torch.nn.Module, training).parameters())
    say(
        f"training {count / 1e6:.1f} M parameters on {len(train)} recordings "
        f"({train.duration_s / 60:.0f} min), validating on {len(valid)}; "
        f"{device}, {str(dtype)[6:]}"
    )
