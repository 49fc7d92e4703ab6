"""`agentfarm agent …`: agents, their versions, files and servers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from agentfarm_sdk.errors import Invalid, NotFound
from agentfarm_sdk.farm import Farm

from . import connect, logs, placements
from .show import Out, noun

RESTART_SECONDS = 120.0  # for the end of a server and the Hub's word that another one starts
COLUMNS = ("name", "owner", "pool", "published", "rights", "created_at")


def add(nouns: Any) -> None:
    verb = noun(nouns, "agent", "agents: who they are, what they are told, what they may do")
    show_all = verb("list", list_agents, "all agents that you may see")
    show_all.add_argument("--limit", type=int, help="at most so many")
    verb("show", show_agent, "one agent with its draft").add_argument("name")

    create = verb("create", create_agent, "make an agent; what it is told is its draft until you publish it")
    create.add_argument("name")
    create.add_argument("--prompt", help="its system prompt; - reads it from standard input")
    create.add_argument(
        "--tool", action="append", default=[], metavar="NAME", help="a tool it may use; may be repeated"
    )
    create.add_argument("--model", default="", help="a model as `agentfarm model list` names it; the farm's default")
    create.add_argument("--pool", help="agents that can stand in for each other")

    publish = verb("publish", publish_agent, "make a version of the draft: from now on tasks run by it")
    publish.add_argument("name")
    publish.add_argument("--note", default="", help="what changed")

    export = verb("export", export_agent, "write an agent as one YAML file")
    export.add_argument("name")
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="into this file instead of standard output")

    load = verb("import", import_agent, "make an agent of an exported file, or set the draft of the one that is there")
    load.add_argument("file", help="the YAML file; - reads standard input")
    load.add_argument("--publish", action="store_true", help="and publish it")

    memory = verb("memory", show_memory, "what an agent remembers; with a KEY all of that value")
    memory.add_argument("name")
    memory.add_argument("key", nargs="?", default="")
    memory.add_argument("--query", default="", metavar="WORDS", help="only what has all these words")
    memory.add_argument("--forget", action="store_true", help="let it forget KEY")

    start = verb("start", start_agent, "start the agent's server (a task does so by itself)")
    start.add_argument("name")
    verb("restart", restart_agent, "start the agent's server anew, once no run is on it").add_argument("name")
    verb("stop", stop_agent, "stop the agent's server").add_argument("name")
    logs.add(verb)
    placements.add_resources(verb)
    connect.add(verb)
    verb("delete", delete_agent, "retire an agent; its runs stay on record").add_argument("name")


def list_agents(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    out.rows(farm.agents(asked.limit), COLUMNS, "there is no agent yet: agentfarm agent create NAME --prompt TEXT")


def show_agent(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    agent = farm.agent(asked.name)
    if out.as_json:
        out.value(agent)
        return
    out.record({name: value for name, value in agent.items() if name != "draft"})
    print("\ndraft:\n" + yaml.safe_dump(agent.get("draft") or {}, sort_keys=False, allow_unicode=True).rstrip())


def create_agent(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    draft: dict[str, Any] = {}
    if asked.prompt is not None:
        draft["prompt"] = sys.stdin.read() if asked.prompt == "-" else asked.prompt
    if asked.tool:
        draft["tools"] = [{"name": name} for name in asked.tool]
    if asked.model:
        draft["model"] = {"name": asked.model}
    body = {"name": asked.name, "draft": draft} | ({"pool": asked.pool} if asked.pool else {})
    agent = farm.request("POST", "/agents", body)
    out.line(f"{agent['name']} is made, as a draft: agentfarm agent publish {agent['name']}", agent)


def publish_agent(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    version = farm.publish(asked.name, asked.note)
    out.line(f"{asked.name}: version {version['number']} ({version['hash'][:12]}) is published", version)


def export_agent(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    text = farm.export_agent(asked.name)
    if out.as_json:
        out.value(yaml.safe_load(text))
    elif asked.output:
        try:
            asked.output.write_text(text)
        except OSError as error:
            raise Invalid(f"{asked.output} cannot be written: {error.strerror}") from error
        print(f"{asked.name} is in {asked.output}")
    else:
        sys.stdout.write(text)


def import_agent(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    try:
        text = sys.stdin.read() if asked.file == "-" else Path(asked.file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{asked.file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    agent = farm.import_agent(text)
    if asked.publish:
        version = farm.publish(agent["name"], f"imported from {Path(asked.file).name}")
        out.line(f"{agent['name']} is imported, version {version['number']} published", agent)
    else:
        out.line(f"{agent['name']} is imported as a draft: agentfarm agent publish {agent['name']}", agent)


def show_memory(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    name, key = asked.name, asked.key
    if asked.forget:
        if not key:
            raise Invalid("forget which key?", hint=f"agentfarm agent memory {name} KEY --forget")
        answer = farm.forget(name, key)
        out.line(f"{name} has forgotten {key}; the events that told of it stay until they are erased", answer)
    elif key:
        found = next((one for one in farm.memory(name) if one["key"] == key), None)
        if found is None:
            raise NotFound(f"{name} remembers nothing as {key}", hint=f"agentfarm agent memory {name}")
        out.record(found)
    else:
        out.rows(farm.memory(name, asked.query), ("key", "value", "changed_at", "run_id"), f"{name} remembers nothing")


def start_agent(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    answer = farm.request("POST", f"/agents/{quote(asked.name, safe='')}/start") or {}
    word = "is up" if answer.get("ready") else "is starting"
    out.line(f"the server of {asked.name} {word}  {answer.get('url') or ''}".rstrip(), answer)


def restart_agent(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    answer = farm.request("POST", f"/agents/{quote(asked.name, safe='')}/restart", timeout=RESTART_SECONDS)
    out.line(f"the server of {asked.name} is started anew", answer)


def stop_agent(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    answer = farm.request("POST", f"/agents/{quote(asked.name, safe='')}/stop")
    out.line(f"the server of {asked.name} is stopped", answer)


def delete_agent(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    answer = farm.request("DELETE", f"/agents/{quote(asked.name, safe='')}")
    out.line(f"{asked.name} is retired; its runs stay on record", answer)
