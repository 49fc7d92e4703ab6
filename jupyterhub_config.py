"""The Hub of a one-machine farm: the smallest configuration that works, each line with its reason.

`agentfarm up` starts the Hub with it. For a Hub of your own take `configure` and `farm_authenticator` into your file,
and see docs/operate.md.
"""

import json
import os
from pathlib import Path

from jupyterhub.authenticators.shared import SharedPasswordAuthenticator

from jupyterhub_agentfarm.hubconfig import SERVICE, configure, cull_people, farm_authenticator

c = get_config()  # type: ignore[name-defined]  # noqa: F821  (JupyterHub puts it there)

state = Path(os.environ["AGENTFARM_STATE"])
ports = json.loads((state / "ports.json").read_text())
passwords = json.loads((state / "secrets" / "passwords.json").read_text())
admins = list(passwords["admin"])
public = f"http://farm.localhost:{ports['public']}"
pages = f"http://agentfarm--service.farm.localhost:{ports['public']}/services/{SERVICE}/"
service = f"http://127.0.0.1:{ports['service']}"
reached = os.environ.get("AGENTFARM_SERVICE_URL", service)  # by servers: another address where something stands between


def secret(name: str) -> str:
    return (state / "secrets" / name).read_text().strip()


# --- addresses ---------------------------------------------------------------------------------------------------

# Each server's pages get an origin of their own: an agent's page cannot use the session of the person who looks at it.
# Browsers take every name below .localhost for this machine; programs do not, and use 127.0.0.1.
c.JupyterHub.subdomain_host = public
c.JupyterHub.public_url = f"{public}/"  # links in mails, in VS Code
c.JupyterHub.bind_url = f"http://127.0.0.1:{ports['public']}"  # where the proxy listens
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{ports['hub']}"
c.JupyterHub.hub_connect_url = f"http://127.0.0.1:{ports['hub']}"  # by which servers and proxy reach the Hub

# The proxy is a process of its own: a restart of the Hub cuts no connection of a notebook.
c.JupyterHub.proxy_class = "configurable-http-proxy"
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{ports['proxy_api']}"
c.ConfigurableHTTPProxy.auth_token = secret("proxy.token")

# The API for programs on the public port too, under both names that programs use for this machine.
# (The pages are on agentfarm--service.farm.localhost, the Hub sends people there.)
api = f"/services/{SERVICE}/api/"
c.Proxy.extra_routes = {f"{host}{api}": service for host in ("farm.localhost", "127.0.0.1", "localhost")}

# --- what lasts --------------------------------------------------------------------------------------------------

c.JupyterHub.db_url = f"sqlite:///{state}/hub.sqlite"
c.JupyterHub.cookie_secret_file = str(state / "secrets" / "cookie_secret")
c.JupyterHub.cleanup_servers = False  # servers outlive a restart of the Hub, and work on

# --- the farm ----------------------------------------------------------------------------------------------------

configure(
    c,
    service_url=service,
    service_token=secret("hub-service.token"),
    fleet_token=secret("hub-fleet.token"),
    admins=admins,
    pages=pages,
)
# People's servers that nobody uses for so long are stopped.
if hours := os.environ.get("AGENTFARM_PEOPLE_IDLE_HOURS"):
    cull_people(c, round(float(hours) * 3600))  # agents' are the farm's own affair: it knows who works
# The launcher: tells the Hub to fill a restarted proxy, and mints the command line's token.
c.JupyterHub.services.append({"name": "agentfarm-launcher", "api_token": secret("hub-launcher.token")})
c.JupyterHub.load_roles.append(
    {
        "name": "agentfarm-launcher",
        "services": ["agentfarm-launcher"],
        "scopes": ["proxy", "read:hub", *(f"tokens!user={name}" for name in admins)],
    }
)
c.JupyterHub.oauth_require_pkce = True  # a code that leaks from a redirect is worth nothing
c.JupyterHub.concurrent_spawn_limit = 64  # on each microserver they take turns: as many at a time as it has cores
c.Spawner.start_timeout = 180  # with its turn: old machines are slow, and many servers may start together
c.Spawner.http_timeout = 60
# How a server reaches the farm, and where people find its pages (the panel's links).
c.Spawner.environment = {"AGENTFARM_URL": reached, "AGENTFARM_PAGES": pages}

# --- who signs in ------------------------------------------------------------------------------------------------

# One password for the admin, one that people share: enough to try the farm, on a machine that only you reach.
# Anybody else: any JupyterHub authenticator in its place.
c.JupyterHub.authenticator_class = farm_authenticator(SharedPasswordAuthenticator)
c.SharedPasswordAuthenticator.admin_password = passwords["admin"][admins[0]]
c.SharedPasswordAuthenticator.user_password = passwords["people"]
c.Authenticator.admin_users = set(admins)
c.Authenticator.allow_all = True
