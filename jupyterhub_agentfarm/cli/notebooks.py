"""`agentfarm run notebook RUN`: a run as a notebook that replays it, of the farm or of an evidence bundle."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from agentfarm_sdk.audit import read_bundle
from agentfarm_sdk.errors import Invalid
from agentfarm_sdk.farm import Farm
from agentfarm_sdk.shown.records import save_notebook
from agentfarm_sdk.shown.story import Story

from .show import Out


def offline(asked: argparse.Namespace) -> bool:
    return str(asked.run).endswith(".zip")


def write(farm: Farm | None, asked: argparse.Namespace, out: Out) -> None:
    file = Path(asked.output) if asked.output else None
    if farm is None:
        bundle = Path(asked.run)
        about, events, _ = read_bundle(bundle)
        made = file or Path(f"{about.run_id}.ipynb")
        save_notebook(Story().apply_all(events), made, os.path.relpath(bundle, made.parent))
    else:
        run = farm.run(asked.run)
        made = file or Path(f"{run.id}.ipynb")
        kept = made.with_suffix(".zip") if asked.bundle else None
        if kept is not None:
            _save(kept, farm.bundle(run.id))
        run.notebook(made, source=kept.name if kept is not None else "")
    out.line(str(made), {"file": str(made)})


def _save(file: Path, content: bytes) -> None:
    try:
        file.write_bytes(content)
    except OSError as error:
        raise Invalid(f"{file} cannot be written: {error.strerror}", hint="name another file by -o") from error
