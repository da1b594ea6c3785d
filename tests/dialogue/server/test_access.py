"""Who is let in, and that nothing of a token is told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from starlette.datastructures import Headers

from speechlm.dialogue.server import access as access_module
from speechlm.dialogue.server.access import Access, ClientSecrets, is_beta, read_tokens
from speechlm.dialogue.server.refusal import Refusal
from speechlm.errors import ConfigError

TOKEN = "a-token-of-some-length"


def bearer(token: str) -> Headers:
    return Headers({"Authorization": f"Bearer {token}"})


def refusal_of(access: Access, headers: Headers, protocols: tuple[str, ...] = ()) -> Refusal:
    with pytest.raises(Refusal) as caught:
        access.check_token(headers, protocols)
    return caught.value


def test_any_of_the_tokens_lets_in_as_header_or_as_subprotocol() -> None:
    access = Access(tokens=("another-token", TOKEN))
    access.check_token(bearer(TOKEN))
    access.check_token(Headers(), ("realtime", f"openai-insecure-api-key.{TOKEN}"))


@pytest.mark.parametrize(
    "shown", ["", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "ek_0123456789abcdef_x", "ü"]
)
def test_anything_else_is_refused_and_not_repeated(shown: str) -> None:
    refusal = refusal_of(Access(tokens=(TOKEN,)), bearer(shown))
    assert (refusal.status, refusal.code) == (401, "invalid_api_key")
    assert TOKEN not in refusal.message
    assert not shown or f"{shown!r}" not in refusal.message


def test_basic_authorization_is_no_token() -> None:
    assert refusal_of(Access(tokens=(TOKEN,)), Headers({"Authorization": f"Basic {TOKEN}"}))


def test_every_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def compare(shown: bytes, expected: bytes) -> bool:
        seen.append(expected)
        return shown == expected

    monkeypatch.setattr(access_module.hmac, "compare_digest", compare)
    Access(tokens=("first-token", "second-token")).check_token(bearer("first-token"))
    assert {b"first-token", b"second-token"} <= set(seen)


def test_without_tokens_everybody_is_let_in() -> None:
    assert Access().check_token(Headers()) == {}


def test_tokens_do_not_show_when_access_is_printed() -> None:
    assert TOKEN not in repr(Access(tokens=(TOKEN,)))


def test_a_client_secret_opens_conversations_as_configured_and_nothing_else() -> None:
    access = Access(tokens=(TOKEN,))
    secret, _ = access.client_secrets.create(60, {"instructions": "be brief"})
    assert access.check_token(bearer(secret), talks=True) == {"instructions": "be brief"}
    assert refusal_of(access, bearer(secret)).status == 401
    assert refusal_of(access, bearer(secret[:-1])).status == 401


def test_a_client_secret_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ClientSecrets()
    secret, expires_at = secrets.create(60, {})
    assert secrets.session_of(secret) == {}
    monkeypatch.setattr(time, "time", lambda: expires_at + 1.0)
    assert secrets.session_of(secret) is None


def test_there_are_only_so_many_client_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "MAX_SECRETS", 2)
    secrets = ClientSecrets()
    _, expires_at = secrets.create(60, {})
    secrets.create(60, {})
    with pytest.raises(Refusal, match="2 client secrets"):
        secrets.create(60, {})
    monkeypatch.setattr(time, "time", lambda: expires_at + 1.0)
    secrets.create(60, {})


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"host": "localhost:8000"}, None),
        ({"host": "[::1]:8000", "origin": "http://[::1]:8000"}, None),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}, None),
        ({"host": "127.0.0.1:8000", "origin": "https://page.example"}, None),
        ({"host": "127.0.0.1:8000", "origin": "https://page.example.net"}, "origin_not_allowed"),
        ({"host": "127.0.0.1:8000", "origin": "null"}, "origin_not_allowed"),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:9000"}, "origin_not_allowed"),
        ({"host": "evil.example", "origin": "http://evil.example"}, "host_not_allowed"),
    ],
)
def test_pages_of_other_origins_are_refused(headers: dict[str, str], code: str | None) -> None:
    access = Access(origins=("https://page.example",))
    if code is None:
        access.check_page(Headers(headers))
        return
    with pytest.raises(Refusal) as caught:
        access.check_page(Headers(headers))
    assert (caught.value.status, caught.value.code) == (403, code)


@pytest.mark.parametrize("access", [Access(tokens=(TOKEN,)), Access(any_host=True)])
def test_with_tokens_or_on_purpose_a_server_answers_to_any_name(access: Access) -> None:
    access.check_page(Headers({"host": "speech.example", "origin": "https://speech.example"}))


def test_the_beta_dialect_is_asked_for_by_header_or_subprotocol() -> None:
    assert is_beta(Headers({"OpenAI-Beta": "realtime=v1"}), ())
    assert is_beta(Headers(), ("realtime", "openai-beta.realtime-v1"))
    assert not is_beta(Headers(), ("realtime",))


def test_tokens_come_from_a_file_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tokens"
    file.write_text("# callers\n\ntoken-of-the-file\n", encoding="utf-8")
    monkeypatch.setenv("SPEECHLM_TOKENS", "token-one, token-two")
    assert read_tokens(file) == ("token-one", "token-two", "token-of-the-file")
    monkeypatch.delenv("SPEECHLM_TOKENS")
    assert read_tokens(None) == ()


def test_a_token_file_that_is_missing_empty_or_weak_says_so_without_the_token(
    tmp_path: Path,
) -> None:
    file = tmp_path / "tokens"
    with pytest.raises(ConfigError, match="expected tokens, one a line"):
        read_tokens(file)
    file.write_text("# none yet\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds no token"):
        read_tokens(file)
    file.write_text("long-enough\nshort1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="token 2 of 2: expected at least 8") as caught:
        read_tokens(file)
    assert "short1" not in str(caught.value)
