"""What every server of the farm is told, before its own configuration (JUPYTER_CONFIG_PATH names this folder)."""

import os

from jupyterhub_agentfarm.labserver.editor import offer

c = get_config()  # type: ignore[name-defined]  # noqa: F821  (Jupyter puts it there)

c.HubOAuth.cache_max_age = 20  # seconds for which a token that was revoked is still let in; the Hub's default is 300
offer(c, os.environ)
