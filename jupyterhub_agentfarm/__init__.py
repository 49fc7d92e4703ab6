from agentfarm_sdk import __version__ as __version__
