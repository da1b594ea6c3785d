"""``python -m speechlm`` is the command ``speechlm``."""

from __future__ import annotations

import sys

from speechlm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
