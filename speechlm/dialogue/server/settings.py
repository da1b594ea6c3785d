"""What a server allows its callers."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """Limits; every one is told to a caller who meets it, in one line."""

    model: str
    """What clients name the bundle."""
    turns: str = "openai"
    """Preset of sessions that choose none, see :data:`speechlm.dialogue.settings.PRESETS`."""
    max_sessions: int = 8
    """Conversations at once; further ones are refused with ``session_limit_reached``."""
    queue_size: int = 0
    """Callers who may wait for a session instead."""
    queue_s: float = 30.0
    """How long they wait at most."""
    max_frame_bytes: int = 16 * MIB
    """Of one WebSocket message; a larger one closes with 1009."""
    max_backlog_s: float = 60.0
    """Sound that was sent but not heard yet; beyond, the oldest of it is dropped and counted."""
    max_output_bytes: int = 8 * MIB
    """What waits for a slow client; beyond, it is closed with 1013."""
    max_answer_s: float = 30.0
    idle_s: float = 60.0
    """Without a message from the client: closed with 1000."""
    session_s: float = 3600.0
    """Longest conversation; its last minute is announced by ``expires_at``."""
    max_upload_bytes: int = 25 * MIB
    """Of one HTTP request; a larger one gets 413."""
    log_sound: bool = False
    """Sound and transcripts may be written to logs."""
