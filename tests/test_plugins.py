from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from speechlm import plugins
from speechlm.errors import CheckpointError, PluginError
from speechlm.parts import save_part
from speechlm.plugins import TOKENIZERS, VOCODERS, available, load_tokenizer, load_vocoder, plugin


def register(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    monkeypatch.setattr(
        plugins, "available", lambda group: {p.name: p for p in points if p.group == group}
    )


def test_the_built_in_parts_are_found_by_their_entry_points() -> None:
    assert "logmel-kmeans" in available(TOKENIZERS)
    assert "centroid-mel" in available(VOCODERS)


def test_every_registered_part_can_be_imported() -> None:
    for group in (TOKENIZERS, VOCODERS):
        for name in available(group):
            assert callable(plugin(group, name).load)


def test_an_unknown_name_gives_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(PluginError) as caught:
        load_tokenizer("logmel-kmean")
    assert str(caught.value).startswith("unknown tokenizer 'logmel-kmean', known: ")
    assert str(caught.value).endswith("did you mean 'logmel-kmeans'?")
    with pytest.raises(PluginError, match=r"unknown vocoder 'zzz', known: [^?]*$"):
        load_vocoder("zzz")


def test_an_empty_group_says_to_install_again(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    with pytest.raises(PluginError, match=r"no tokenizer is registered at all.*pip install"):
        load_tokenizer("logmel-kmeans")


def test_a_part_whose_package_is_missing_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, EntryPoint("far", "no_such_package_here:Far", TOKENIZERS))
    with pytest.raises(PluginError, match=r"tokenizer 'far' needs .* 'no_such_package_here'"):
        load_tokenizer("far")


def test_the_name_of_a_tokenizer_that_must_be_fitted_says_how() -> None:
    with pytest.raises(PluginError, match=r"run 'speechlm fit CORPUS tokenizer.name=logmel-kmea"):
        load_tokenizer("logmel-kmeans")


def test_a_vocoder_by_name_needs_a_tokenizer() -> None:
    with pytest.raises(PluginError, match="renders the units of one tokenizer: give that too"):
        load_vocoder("centroid-mel")


def test_a_folder_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match=f"{folder.name}.* holds no config.json"):
            load_tokenizer(folder)


def test_a_part_in_a_bundle_is_found(tmp_path: Path) -> None:
    save_part(tmp_path / "bundle" / "tokenizer", "nobodys-kind", {}, {})
    for folder in (tmp_path / "bundle", tmp_path / "bundle" / "tokenizer"):
        with pytest.raises(PluginError, match="unknown tokenizer 'nobodys-kind'"):
            load_tokenizer(folder)
