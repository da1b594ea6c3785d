from pathlib import Path

import pytest
import torch

from speechlm_tokenizers.logmel_kmeans import LogMelKMeans


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real tokenizer, fitted on noise."""
    random = torch.Generator().manual_seed(0)
    waves = [0.1 * torch.randn(32_000, generator=random) for _ in range(4)]
    folder = tmp_path_factory.mktemp("parts") / "tokenizer"
    LogMelKMeans.fit(waves, {"num_units": 20}, seed=1).save(folder)
    return folder
