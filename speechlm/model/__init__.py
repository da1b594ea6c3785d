"""The decoder-only unit LM.

``from_hf`` and ``to_hf`` are imported when they are first used: importing this is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechlm.model.hf import from_hf as from_hf
    from speechlm.model.hf import to_hf as to_hf

__all__ = ["from_hf", "to_hf"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from speechlm.model import hf

        return getattr(hf, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
