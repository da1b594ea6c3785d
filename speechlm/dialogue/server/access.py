"""Who may come in: bearer tokens, client secrets that expire, web pages of allowed origins."""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers

from speechlm.dialogue.server.refusal import Refusal
from speechlm.errors import ConfigError

TOKENS_VARIABLE = "SPEECHLM_TOKENS"
KEY_PROTOCOL = "openai-insecure-api-key."
"""Prefix of the subprotocol that carries a browser's token: it cannot set a header."""
BETA_PROTOCOL = "openai-beta.realtime-v1"
BETA_HEADER = "realtime=v1"
MIN_TOKEN_CHARACTERS = 8
MAX_SECRETS = 1_000
"""Client secrets that are valid at once."""


class ClientSecrets:
    """Tokens that a caller makes for another, a web page mostly: they expire by themselves.

    A secret is ``ek_NAME_REST``: found by its name, compared in constant time.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[bytes, float, Mapping[str, Any]]] = {}

    def create(self, lifetime_s: float, session: Mapping[str, Any]) -> tuple[str, int]:
        """Make one.

        Args:
            lifetime_s: For how long it opens conversations, s.
            session: What a conversation that it opens is set to.

        Returns:
            The secret, and when it expires, s since 1970.

        Raises:
            Refusal: Too many are valid already.
        """
        now = time.time()
        self._known = {name: known for name, known in self._known.items() if known[1] > now}
        if len(self._known) >= MAX_SECRETS:
            raise Refusal(
                429,
                "too_many_client_secrets",
                f"{MAX_SECRETS} client secrets are valid at once, which is all; let some expire",
                retry_after_s=10,
            )
        name, expires_at = secrets.token_hex(8), int(now + lifetime_s)
        secret = f"ek_{name}_{secrets.token_urlsafe(24)}"
        self._known[name] = (secret.encode(), expires_at, session)
        return secret, expires_at

    def session_of(self, secret: str) -> Mapping[str, Any] | None:
        """What a valid secret sets a conversation to; None for any other text."""
        expected, expires_at, session = self._known.get(secret[3:19], (b"", 0.0, {}))
        if hmac.compare_digest(expected, secret.encode()) and expires_at > time.time():
            return session
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """What callers must show."""

    tokens: tuple[str, ...] = field(default=(), repr=False)
    """Any of these; none: everybody who reaches the server may use it."""
    origins: tuple[str, ...] = ()
    """Web pages of these may use it beside its own, as ``https://example.org``; ``*`` for all."""
    any_host: bool = False
    """It may be called by any name, though there are no tokens. Otherwise only as this machine:
    a name that a foreign page had resolved to it (DNS rebinding) is refused."""
    client_secrets: ClientSecrets = field(default_factory=ClientSecrets, repr=False)

    def check_page(self, headers: Headers) -> None:
        """Refuse requests of web pages of other origins.

        Raises:
            Refusal: 403, saying which option lets it in.
        """
        host = headers.get("host", "")
        if not self.tokens and not self.any_host and not is_loopback(host_name(host)):
            raise Refusal(
                403,
                "host_not_allowed",
                f"this server has no tokens and is for this machine alone, not for {host[:100]!r}; "
                "start it with --token-file, or with --no-auth",
            )
        origin = headers.get("origin")
        if origin is None or "*" in self.origins or origin in self.origins:
            return
        if origin.partition("://")[2] != host:
            raise Refusal(
                403,
                "origin_not_allowed",
                f"pages of {origin[:100]!r} may not use this server; "
                "start it with --origin and that address",
            )

    def check_token(
        self, headers: Headers, protocols: Sequence[str] = (), *, talks: bool = False
    ) -> Mapping[str, Any]:
        """Refuse callers without a token.

        Args:
            headers: Of the request.
            protocols: The subprotocols that a WebSocket offers.
            talks: It is a conversation that is asked for: client secrets are for nothing else.

        Returns:
            What the conversation is set to by the client secret that was shown; else empty.

        Raises:
            Refusal: 401.
        """
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        shown = shown.strip() if scheme.lower() == "bearer" else ""
        for protocol in protocols:
            if protocol.startswith(KEY_PROTOCOL):
                shown = protocol.removeprefix(KEY_PROTOCOL)
        # Every token is compared, whole, so that the time taken tells nothing of any.
        matches = [hmac.compare_digest(shown.encode(), token.encode()) for token in self.tokens]
        session = self.client_secrets.session_of(shown) if talks else None
        if session is not None:
            return session
        if self.tokens and not any(matches):
            raise Refusal(
                401,
                "invalid_api_key",
                "expected a valid token, as 'Authorization: Bearer TOKEN' or as the subprotocol "
                f"'{KEY_PROTOCOL}TOKEN'; got {'another' if shown else 'none'}",
            )
        return {}


def is_beta(headers: Headers, protocols: Sequence[str]) -> bool:
    """Whether a caller speaks the protocol's earlier dialect."""
    return BETA_HEADER in headers.get("openai-beta", "") or BETA_PROTOCOL in protocols


def read_tokens(file: Path | None) -> tuple[str, ...]:
    """Tokens of a file, one a line (``#`` begins a comment), and of ``SPEECHLM_TOKENS``.

    Raises:
        ConfigError: The file cannot be read or holds none, or one is too short to be safe.
    """
    found = os.environ.get(TOKENS_VARIABLE, "").replace(",", " ").split()
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: expected tokens, one a line; {error}") from None
        listed = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not listed:
            raise ConfigError(f"{file} holds no token; write one a line")
        found += listed
    for number, token in enumerate(found, 1):
        if len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or " " in token:
            raise ConfigError(
                f"token {number} of {len(found)}: expected at least {MIN_TOKEN_CHARACTERS} "
                "characters of ASCII without a space; make one with 'openssl rand -hex 16'"
            )
    return tuple(found)


def is_loopback(host: str) -> bool:
    """Whether a host's name means this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
