"""Read by every kernel of this environment: in people's servers on the farm %agentfarm and %%agent are there from the start.

The extension imports nothing but itself until one of them is used; AGENTFARM_SOCKET is set in people's servers alone.
"""

import os

c = get_config()  # noqa: F821 - IPython runs this file

if os.environ.get("AGENTFARM_SOCKET") and not os.environ.get("AGENTFARM_AGENT"):
    c.InteractiveShellApp.extensions.append("agentfarm_sdk")
