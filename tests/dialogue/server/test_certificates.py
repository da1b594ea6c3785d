"""The certificate of ``--self-signed``."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

pytest.importorskip("trustme")

from speechlm.dialogue.server.certificates import write_certificate


def test_it_serves_tls_for_the_names_of_this_machine(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path, "speech.example")
    assert key.stat().st_mode & 0o077 == 0, "nobody else reads the key"
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key)
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    ours, theirs = socket.socketpair()
    with ours, theirs:
        answer = threading.Thread(
            target=lambda: server.wrap_socket(theirs, server_side=True).close()
        )
        answer.start()
        with client.wrap_socket(ours, server_hostname="localhost") as secure:
            shown = secure.getpeercert(binary_form=True)
        answer.join()
    assert shown is not None
    for name in (b"localhost", b"speech.example", socket.inet_aton("127.0.0.1")):
        assert name in shown
