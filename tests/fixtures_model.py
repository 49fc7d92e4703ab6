"""The embedded model's server as a fixture: a real small language model, the same in tests and in the farm."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from jupyterhub_agentfarm.gateway import embedded

KEY = "key-of-the-tests"
CHECKOUT = Path(__file__).parents[1]


def model_folder() -> Path | None:
    """Return where the model's file is: where setting up the checkout left it."""
    folder = Path(os.environ.get("AGENTFARM_MODEL_DIR") or CHECKOUT / ".farm" / "model")
    return folder if (folder / embedded.FILE).exists() else None


@pytest.fixture(scope="session")
def model_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL (with /v1) of a running model server; its key is KEY."""
    if why := embedded.why_not():
        pytest.skip(why)
    folder = model_folder()
    if folder is None:
        pytest.skip("the model's file is not here: make test fetches it")
    state = tmp_path_factory.mktemp("model")
    (state / "secrets").mkdir()
    (state / "secrets" / "model.key").write_text(KEY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "AGENTFARM_STATE": str(state),
        "AGENTFARM_MODEL_PORT": str(port),
        "AGENTFARM_MODEL_DIR": str(folder),
    }
    process = subprocess.Popen([sys.executable, "-m", "jupyterhub_agentfarm.gateway.embedded"], env=environment)
    url, deadline = f"http://127.0.0.1:{port}/v1", time.monotonic() + 60
    while True:
        assert process.poll() is None and time.monotonic() < deadline, "the model server did not start"
        try:
            if httpx.get(f"{url}/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200:
                break
        except httpx.HTTPError:
            time.sleep(0.1)
    yield url
    process.terminate()
    process.wait(10)
