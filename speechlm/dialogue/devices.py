"""Microphone and loudspeaker as a user: what is said into one, and what is heard from the other.

Both run on one clock, in blocks: for each block that is recorded, one is played.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechlm.dialogue.users import Heard
from speechlm.errors import InputError, PluginError

BLOCK_S = 0.02
AHEAD = 3
"""Blocks that wait to be played, so that a late one leaves no gap."""
GATE_S = 0.3
"""So long after the loudspeaker fell silent a microphone that hears it is not listened to."""


class DeviceUser:
    """A :class:`speechlm.dialogue.users.User` behind a sound card.

    Args:
        rate: Samples a second.
        gate: Not to listen while the loudspeaker plays: without headphones the microphone hears
            it, and the model would answer itself.
    """

    patient = False

    def __init__(self, rate: int, *, gate: bool = False) -> None:
        self.log: list[dict[str, Any]] = []
        self.level = 0.0
        """Of the last block that was recorded, root mean square."""
        self._gate_blocks = round(GATE_S / BLOCK_S) if gate else 0
        self._gated = 0
        self._recorded: queue.SimpleQueue[Tensor | None] = queue.SimpleQueue()
        self._to_play: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        for _ in range(AHEAD):
            self._to_play.put(torch.zeros(round(BLOCK_S * rate)))

    def exchange(self, recorded: Tensor) -> Tensor:
        """Called by the sound card, in its thread: take a block, float32 [n], and give one."""
        self._recorded.put(recorded)
        try:
            return self._to_play.get_nowait()
        except queue.Empty:
            return torch.zeros_like(recorded)  # the model is late: silence

    def hang_up(self) -> None:
        """The dialogue ends here."""
        self._recorded.put(None)

    def play(self, sound: Tensor) -> None:
        """What is to be heard next, float32 [n]: a block for each that was recorded."""
        self._gated = self._gate_blocks if bool(sound.any()) else max(0, self._gated - 1)
        self._to_play.put(sound)

    def speak(self, count: int, heard: Heard) -> Tensor:
        """Wait for the next block of ``count`` samples; an empty one at the end."""
        block = self._recorded.get()
        if block is None:
            return torch.zeros(0)
        self.level = float(block.square().mean().sqrt())
        return torch.zeros_like(block) if self._gated else block


@contextmanager
def sound_card(
    user: DeviceUser, rate: int, microphone: str | None, speaker: str | None
) -> Iterator[None]:
    """Let a user speak and hear through this machine's devices.

    Args:
        user: Of the same rate.
        rate: Samples a second.
        microphone: A device's number or part of its name; None for the default.
        speaker: The same.

    Raises:
        PluginError: sounddevice, or PortAudio under it, is not installed.
        InputError: There is no such device, or it does not take this rate.
    """
    devices = _sounddevice()

    def exchange(recorded: Any, played: Any, frames: int, time: Any, status: Any) -> None:
        given = user.exchange(torch.from_numpy(np.array(recorded[:, 0])))
        played[:, 0] = given.numpy()

    try:
        stream = devices.Stream(
            samplerate=rate,
            blocksize=round(BLOCK_S * rate),
            channels=1,
            dtype="float32",
            latency="low",
            device=(_device(microphone), _device(speaker)),
            callback=exchange,
        )
    except (devices.PortAudioError, ValueError) as error:
        raise InputError(
            f"the microphone or loudspeaker cannot be used: {error}; 'speechlm talk --devices' "
            "lists what there is, and --input FILE --output FILE needs none"
        ) from error
    with stream:
        yield


def list_devices() -> str:
    """This machine's devices, a line each.

    Raises:
        PluginError: sounddevice, or PortAudio under it, is not installed.
    """
    return str(_sounddevice().query_devices()) or "no sound device"


def _device(name: str | None) -> int | str | None:
    return int(name) if name is not None and name.isdecimal() else name


def _sounddevice() -> Any:
    try:
        import sounddevice  # type: ignore[import-untyped]
    except (ImportError, OSError) as error:
        what = "the package sounddevice; run pip install 'speechlm[talk]'"
        if isinstance(error, OSError):
            what = "PortAudio; on Debian and Ubuntu run apt-get install libportaudio2"
        raise PluginError(
            f"microphone and loudspeaker need {what}, or use --input FILE --output FILE"
        ) from error
    return sounddevice
