"""Say what this machine can and cannot run, and how to mend what it cannot.

Shows versions, processor and devices, memory and disk; then each command, with what stands in
its way. Nothing is changed, installed or downloaded.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

EXAMPLES = (
    ("speechlm doctor", "for people"),
    ("speechlm doctor --json", "for programs, and for a bug report"),
    ("speechlm doctor --folder /data/runs", "with the disk that runs will be written to"),
)
SECTIONS = ()


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs"), help="where runs are written (%(default)s)"
    )


def run(args: Namespace) -> None:
    from speechlm.doctor import abilities, examine

    found = examine(args.folder)
    rows = abilities(found)
    if args.json:
        print(json.dumps({**found, "abilities": [asdict(row) for row in rows]}, indent=2))
        return
    cpu, memory, disk = found["cpu"], found["memory_gb"], found["disk"]
    packages = [f"{name} {version or '-'}" for name, version in found["packages"].items()]
    amounts = [f"{memory[k]:.1f} GB {k}" for k in ("total", "available") if memory[k] is not None]
    facts = {
        "speechlm": f"{found['speechlm']}, Python {found['python']}, {found['system']}",
        "packages": ", ".join(packages),
        "processor": f"{cpu['name']}, {cpu['cores']} cores, {' '.join(cpu['features']) or '-'}",
        "devices": ", ".join(found["devices"]) or "none",
        "memory": ", ".join(amounts) or "unknown",
        "disk": f"{disk['free_gb']:.1f} GB free at {disk['folder']}",
    }
    for name, value in facts.items():
        print(f"{name + ':':<11}{value}")
    print()
    for row in rows:
        print(f"{'ok     ' if row.ready else 'CANNOT '} {row.command}")
        if not row.ready:
            print(f"         {row.reason}; {row.remedy}")
