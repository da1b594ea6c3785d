"""Low-rank corrections of a text LM's projections, put in before training and merged after it.

``peft`` does it; this says which weights are corrected and which train whole.

Source:
    LoRA: Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

from speechlm.config import TrainConfig
from speechlm.errors import PluginError
from speechlm.model.decoder import Decoder

PROJECTIONS = r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
"""The body's; a depth transformer is new, and trains whole."""


def import_peft() -> None:
    """Refuse to go on without it.

    Raises:
        PluginError: peft is not installed.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise PluginError(
            f"train.lora_rank needs a package that is missing ({error}): "
            "pip install 'speechlm[lora]'"
        ) from error


def add_lora(decoder: Decoder, config: TrainConfig) -> None:
    """Freeze the body's projections and give each a correction of rank ``config.lora_rank``.

    All else trains: embeddings and heads, which have new rows, norms, and a depth transformer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # its annotation says int
        lora_dropout=config.lora_dropout,
        target_modules=PROJECTIONS,
    )
    inject_adapter_in_model(settings, decoder)
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_(".base_layer." not in name)


def merge_lora(decoder: Decoder) -> None:
    """Add the corrections to the weights they correct; what is left is a plain decoder."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(decoder.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(decoder.get_submodule(parent), child, module.get_base_layer())
    decoder.requires_grad_(True)
