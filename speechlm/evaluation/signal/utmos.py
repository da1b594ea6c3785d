"""UTMOS: the naturalness that listeners would hear, 1 to 5; code and weights come from the hub.

It is the strong learner of the winner of the VoiceMOS challenge 2022, as most papers on speech
language models report it. Both the code (a commit) and the weights (a SHA-256) are pinned, and
nothing is loaded before it is asked for.

Source:
    Saeki et al. 2022, arXiv:2204.02152; by tarepan/SpeechMOS 1.2.0 (MIT).
"""

from __future__ import annotations

import pickle
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from speechlm.errors import CheckpointError, InputError

SAMPLE_RATE = 16_000
LEAST_S = 0.1
"""Its first layers take less for nothing."""
REPOSITORY = "tarepan/SpeechMOS:ed25eacbfa42b99156c36ebec67a733b5dbb9b79"
ENTRY = "utmos22_strong"
WEIGHTS = (
    "https://github.com/tarepan/SpeechMOS/releases/download/v1.0.0/utmos22_strong_step7459_v1.pt"
)
WEIGHTS_SHA256 = "38aa51ab79e2a4e09a1449758a4b37e9cbb2e8235a49662a732d33a9ba1e9bff"


class UTMOS:
    """Rates recordings; make one and keep it.

    Args:
        repository: A hub's, or a folder with a ``hubconf.py``.
        source: Which of them.
        weights: Address or path of a state dict.
        sha256: Of the weights.

    Raises:
        CheckpointError: It cannot be downloaded, or is another than the pinned one.
    """

    def __init__(
        self,
        repository: str = REPOSITORY,
        *,
        source: Literal["github", "local"] = "github",
        weights: str = WEIGHTS,
        sha256: str = WEIGHTS_SHA256,
    ) -> None:
        from speechlm_tokenizers.downloads import check_sha256, fetch

        try:
            network = torch.hub.load(  # type: ignore[no-untyped-call]
                repository,
                ENTRY,
                source=source,
                # A commit says more than the branch that it is on.
                skip_validation=True,
                trust_repo=True,
                verbose=False,
                pretrained=False,
            )
        except (OSError, ImportError, RuntimeError) as error:
            raise CheckpointError(
                f"UTMOS: {repository} cannot be had ({error}); it is downloaded once, so run this "
                "where there is a network"
            ) from error
        assert isinstance(network, nn.Module)
        path = fetch(weights)
        check_sha256(path, sha256, "UTMOS")
        try:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path}: expected the weights of UTMOS ({reason})") from error
        self._network = network.eval().requires_grad_(False)

    @torch.inference_mode()
    def rate(self, wave: Tensor) -> float:
        """Rate float32 [T] at 16 kHz, about 1 (bad) to 5 (excellent).

        Raises:
            InputError: Shorter than :data:`LEAST_S`.
        """
        if len(wave) < LEAST_S * SAMPLE_RATE:
            raise InputError(f"UTMOS cannot rate it: expected at least {LEAST_S} s")
        return float(self._network(wave[None], SAMPLE_RATE)[0])


@lru_cache(1)
def utmos() -> UTMOS:
    """The one of this process."""
    return UTMOS()
