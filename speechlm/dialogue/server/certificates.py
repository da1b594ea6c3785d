"""A certificate made on the spot: microphones in browsers need HTTPS, but on localhost."""

from __future__ import annotations

import socket
from pathlib import Path

from speechlm.errors import PluginError


def write_certificate(folder: Path, host: str) -> tuple[Path, Path]:
    """Make a certificate that nobody vouches for; browsers ask once whether to go on.

    Args:
        folder: Where the two files are written, readable by their owner alone.
        host: What the server is bound to; ``localhost`` and this machine's name are added.

    Returns:
        The files of the certificate's chain and of its key.

    Raises:
        PluginError: trustme is not installed.
    """
    try:
        import trustme
    except ModuleNotFoundError:
        raise PluginError("--self-signed needs trustme; pip install 'speechlm[serve]'") from None
    names = ["localhost", "127.0.0.1", "::1", socket.gethostname(), *_addresses()]
    if host not in ("0.0.0.0", "::", ""):
        names.append(host)
    authority = trustme.CA(organization_name="speechlm")
    made = authority.issue_cert(*dict.fromkeys(names))
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    for path in (certificate, key):
        path.touch(mode=0o600)
    for blob in made.cert_chain_pems:
        blob.write_to_path(str(certificate), append=True)
    made.private_key_pem.write_to_path(str(key), append=True)
    return certificate, key


def _addresses() -> list[str]:
    """Those under which other machines see this one, as far as it knows."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(address[0]).partition("%")[0] for *_, address in found]
