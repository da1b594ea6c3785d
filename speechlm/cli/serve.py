"""Serve a bundle: talk with it in the browser, or with any client of OpenAI's Realtime protocol.

Once it is ready it prints the address to open. It listens to this machine alone: for others,
give tokens (--token-file, one a line, or the variable SPEECHLM_TOKENS) and --host 0.0.0.0.
Browsers give a page the microphone on localhost or over TLS only: elsewhere add --self-signed,
or a certificate of your own.

Ctrl-C or SIGTERM lets in nobody new and closes once the present answers are finished. Neither
sound nor text nor tokens are logged: a line a turn holds figures, see docs/dialogue.md.
"""

from __future__ import annotations

import asyncio
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from speechlm.cli import render
from speechlm.dialogue.server.settings import ServerSettings
from speechlm.dialogue.settings import PRESETS
from speechlm.errors import ConfigError, PluginError

if TYPE_CHECKING:
    from speechlm.dialogue.server.access import Access

EXAMPLES = (
    ("speechlm serve runs/demo/bundle", "this machine's browser: open the address it prints"),
    (
        "speechlm serve runs/demo/bundle --host 0.0.0.0 --self-signed --token-file tokens",
        "the phones and machines around, with a token",
    ),
    (
        "speechlm serve runs/demo/bundle --turns patient --max-sessions 4 --queue 10",
        "four at once who may pause to think, ten more wait",
    ),
    (
        "speechlm serve runs/demo/bundle --weights int8 --log turns.jsonl --port 9000",
        "faster weights, and a line of figures a turn",
    ),
)
SECTIONS = ()
LIMITS = ServerSettings(model="")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help=render.BUNDLE_HELP)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=port, default=8000, help="0 takes a free one (%(default)s)")
    parser.add_argument(
        "--turns",
        choices=tuple(PRESETS),
        default=LIMITS.turns,
        help="when a caller's turn has ended, unless the client says so itself (%(default)s)",
    )
    parser.add_argument(
        "--name", help="what clients call the model; default: the bundle's folder or hub id"
    )
    render.add_weights(parser)
    access = parser.add_argument_group("who may come in")
    access.add_argument(
        "--token-file", type=Path, metavar="FILE", help="tokens of callers, one a line"
    )
    access.add_argument(
        "--no-auth",
        action="store_true",
        help="let in whoever reaches it, also from other machines",
    )
    access.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="URL",
        help="web pages of this address may use it too, e.g. https://example.org; can be repeated",
    )
    access.add_argument(
        "--self-signed", action="store_true", help="TLS with a certificate made on the spot"
    )
    access.add_argument("--certificate", type=Path, metavar="FILE", help="TLS with this one")
    access.add_argument("--key", type=Path, metavar="FILE", help="the key of --certificate")
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-sessions",
        type=count,
        default=LIMITS.max_sessions,
        metavar="N",
        help="conversations at once; further callers are told so (%(default)s)",
    )
    limits.add_argument(
        "--queue",
        type=count_or_none,
        default=LIMITS.queue_size,
        metavar="N",
        help="callers who may wait instead (%(default)s)",
    )
    limits.add_argument(
        "--queue-seconds",
        type=seconds,
        default=LIMITS.queue_s,
        metavar="S",
        help="how long they wait (%(default)g)",
    )
    limits.add_argument(
        "--idle-seconds",
        type=seconds,
        default=LIMITS.idle_s,
        metavar="S",
        help="a silent connection is closed after (%(default)g)",
    )
    limits.add_argument(
        "--session-seconds",
        type=seconds,
        default=LIMITS.session_s,
        metavar="S",
        help="longest conversation (%(default)g)",
    )
    limits.add_argument(
        "--answer-seconds",
        type=seconds,
        default=LIMITS.max_answer_s,
        metavar="S",
        help="longest answer (%(default)g)",
    )
    limits.add_argument(
        "--drain-seconds",
        type=seconds,
        default=10.0,
        metavar="S",
        help="how long answers may go on when it is stopped (%(default)g)",
    )
    logs = parser.add_argument_group("logs")
    logs.add_argument(
        "--log", type=Path, metavar="FILE", help="append a JSON line of figures a turn"
    )
    logs.add_argument("--verbose", action="store_true", help="the same on stdout")


def port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise ArgumentTypeError(f"expected a port, 0..65535, got {text!r}")
    return int(text)


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def count_or_none(text: str) -> int:
    return 0 if text == "0" else count(text)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1e6:
        raise ArgumentTypeError(f"expected seconds above 0, got {text!r}")
    return value


def run(args: Namespace) -> None:
    try:
        from speechlm.dialogue.server import app, serving
    except ModuleNotFoundError as error:
        raise PluginError(
            f"the server needs {error.name}; pip install 'speechlm[serve]'"
        ) from error
    from speechlm.dialogue.worker import WorkerService

    access = _access(args)
    settings = ServerSettings(
        model=args.name or Path(args.bundle).resolve().name,
        turns=args.turns,
        max_sessions=args.max_sessions,
        queue_size=args.queue,
        queue_s=args.queue_seconds,
        idle_s=args.idle_seconds,
        session_s=args.session_seconds,
        max_answer_s=args.answer_seconds,
    )
    with ExitStack() as stack:
        certificate, key = _certificate(args, stack)
        log = _log(args, stack)
        listening = stack.enter_context(serving.bind(args.host, args.port))

        async def serve() -> None:
            async with WorkerService(
                args.bundle, weights=args.weights, max_sessions=args.max_sessions
            ) as service:
                await serving.serve(
                    app.create_app(service, settings, access, log=log),
                    listening,
                    max_frame_bytes=settings.max_frame_bytes,
                    drain_s=args.drain_seconds,
                    when_ready=lambda: _announce(args, listening.getsockname()[1]),
                    certificate=certificate,
                    key=key,
                )

        asyncio.run(serve())


def _access(args: Namespace) -> Access:
    from speechlm.dialogue.server.access import Access, is_loopback, read_tokens

    tokens = read_tokens(args.token_file)
    if not tokens and not args.no_auth and not is_loopback(args.host):
        raise ConfigError(
            f"{args.host} lets in other machines, and there are no tokens: give --token-file or "
            "the variable SPEECHLM_TOKENS, or say --no-auth"
        )
    for origin in args.origin:
        scheme, _, rest = origin.partition("://")
        if origin != "*" and (scheme not in ("http", "https") or not rest or "/" in rest):
            raise ConfigError(
                f"expected --origin as https://example.org, without a path, got {origin!r}"
            )
    return Access(tokens=tokens, origins=tuple(args.origin), any_host=args.no_auth)


def _certificate(args: Namespace, stack: ExitStack) -> tuple[Path | None, Path | None]:
    import ssl
    from tempfile import TemporaryDirectory

    from speechlm.dialogue.server.certificates import write_certificate

    if (args.certificate is None) != (args.key is None):
        raise ConfigError("--certificate and --key go together")
    if args.self_signed:
        if args.certificate is not None:
            raise ConfigError("expected either --self-signed or --certificate, got both")
        folder = stack.enter_context(TemporaryDirectory(prefix="speechlm-"))
        return write_certificate(Path(folder), args.host)
    if args.certificate is not None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                args.certificate, args.key
            )
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{args.certificate} and {args.key} are not a certificate with its key: {error}"
            ) from None
    return args.certificate, args.key


def _log(args: Namespace, stack: ExitStack) -> TextIO | None:
    if args.log is not None:
        log: TextIO = stack.enter_context(args.log.open("a", encoding="utf-8"))
        return log
    return sys.stdout if args.verbose else None


def _announce(args: Namespace, port: int) -> None:
    """One line that says where to go."""
    secure = args.self_signed or args.certificate is not None
    host = "localhost" if args.host in ("127.0.0.1", "0.0.0.0", "::", "::1") else args.host
    host = f"[{host}]" if ":" in host else host
    print(
        f"speechlm: ready, open {'https' if secure else 'http'}://{host}:{port}/ (Ctrl-C stops it)",
        file=sys.stderr,
        flush=True,
    )
