"""A notebook's kernel that drives a run of its own, bound to it: what it calls ends with it. Run as a process.

AGENTFARM_URL=… AGENTFARM_TOKEN=… python -m jupyterhub_agentfarm.chaos.notebook INPUT
"""

import sys

from agentfarm_sdk import Agent

from . import hands

if __name__ == "__main__":
    Agent("notebook", tools=[hands.look, hands.store, hands.charge], model="scripted", mode="live").run(sys.argv[1])
