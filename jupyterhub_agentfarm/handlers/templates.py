"""Agents to begin with: each is a whole draft that works as it stands, or says what it still needs.

The demo's two are for the embedded model; the others are for a model that follows instructions and calls tools by itself.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from agentfarm_sdk.protocol import Definition
from agentfarm_sdk.tools.registry import builtin_specs

from .. import demo
from . import drafts
from .routes import Call, Empty, Route
from .views import Listed


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """`definition`: what POST /agents takes as `draft`. `tasks`: inputs to try it with. `needs`: what it lacks on a new farm."""

    name: str
    title: str
    description: str
    definition: Definition
    tasks: list[Any] = []
    needs: list[str] = []


_MODEL = "a model that calls tools by itself: set HF_API_URL and HUGGING_FACE_AUTH_TOKEN, or name a model server"

_WRITTEN: list[dict[str, Any]] = [
    {
        "name": "assistant",
        "title": "Assistant with a memory",
        "description": "Talks, remembers what matters for later conversations, and asks when only a person can know.",
        "needs": [_MODEL],
        "tasks": ["My team meets on Tuesdays at 10:00 in room 4.12. Remember that.", "When and where does my team meet?"],
        "definition": {
            "description": "Answers questions, and remembers across conversations.",
            "prompt": (
                "You are the assistant of {{person}}. Answer shortly and to the point.\n"
                "Before you answer a question about what you were told earlier, recall it. When you learn a fact, a decision or a "
                "preference that will matter later, remember it under a short key in lower case.\n"
                "If you lack something that only a person can know, ask_person; never invent it."
            ),
            "variables": {"person": "the person who writes to you"},
            "tools": ["remember", "recall", "forget", "ask_person"],
        },
    },
    {
        "name": "data-analyst",
        "title": "Data analyst",
        "description": "Reads tables in its workspace, computes in Python, writes a report as a file.",
        "needs": [_MODEL, "the files: put them into the agent's workspace, e.g. by opening its server in Lab"],
        "tasks": ["Which files are there? Describe the columns of each table.", "Write report.md: the totals by month of sales.csv."],
        "definition": {
            "description": "Analyses tables with Python, and writes what it found into files.",
            "prompt": (
                "You analyse data. Look first: list_files, then read_file of what you need.\n"
                "run_python has no files and no network: put the data that it needs into the program as text, print what you want "
                "to know, and check a sum or a count before you rely on it.\n"
                "Say how you got each number. Where data are missing or doubtful, say so in place of a guess. Write longer results "
                "with write_file, and answer with the file's name and the three most important findings."
            ),
            "tools": ["list_files", "read_file", "write_file", "run_python", "calculator"],
            "limits": {"steps": 30, "calls": 60, "seconds": 1800},
        },
    },
    {
        "name": "web-service",
        "title": "Caller of a web service",
        "description": "Reads from one HTTP API by itself; what would change something there waits for a person's approval.",
        "needs": [_MODEL, "the service's address: tools, http_request, config.allow", "its key, if it has one: a secret of yours, named in tools, http_request, secrets"],
        "tasks": ["List the open issues of the service, newest first."],
        "definition": {
            "description": "Works with one web service; changes there need approval.",
            "prompt": (
                "You work with the web service at {{address}}. Read what you need by GET. To change something, make one request, and "
                "say in a sentence before it what it will change and why: a person approves it.\n"
                "Never repeat a request that may have taken effect; look first whether it did. If the service refuses, report its "
                "words as they are."
            ),
            "variables": {"address": "https://api.example.com/"},
            "tools": [{"name": "http_request", "approval": 'has(method) and lower(method) != "get"', "config": {"allow": ["https://api.example.com/"]}}],
        },
    },
    {
        "name": "extractor",
        "title": "Extractor of fields",
        "description": "Turns a letter, an e-mail or an invoice into JSON of a fixed form; made for many tasks from a CSV.",
        "needs": [_MODEL],
        "tasks": ["Invoice 2024-117 of Miller Ltd, 3 May 2024: 12 chairs at 49.90 EUR, total 598.80 EUR, due within 30 days."],
        "definition": {
            "description": "Reads a document and answers with its fields as JSON.",
            "prompt": (
                "You read one document and answer with its fields. Copy names and numbers as they stand in it. A field that the "
                "document does not say is null: never guess one. Dates are written YYYY-MM-DD, amounts as numbers."
            ),
            "model": {"parameters": {"temperature": 0}},
            "answer": {
                "type": "object",
                "properties": {
                    "kind": {"enum": ["invoice", "order", "complaint", "other"]},
                    "sender": {"type": ["string", "null"]},
                    "number": {"type": ["string", "null"]},
                    "date": {"type": ["string", "null"]},
                    "total": {"type": ["number", "null"]},
                    "currency": {"type": ["string", "null"]},
                },
                "required": ["kind", "sender", "number", "date", "total", "currency"],
                "additionalProperties": False,
            },
            "limits": {"steps": 3, "tokens": 20_000, "seconds": 300},
        },
    },
    {
        "name": "coordinator",
        "title": "Coordinator",
        "description": "Splits a larger task, gives the parts to other agents of yours, and puts their results together.",
        "needs": [_MODEL, "other published agents of yours: name them in the variable agents, or give them a pool"],
        "tasks": ["Compare the three offers in the workspace of the data analyst, and recommend one."],
        "definition": {
            "description": "Delegates parts of a task to other agents, and answers with the whole.",
            "prompt": (
                "You lead the work of other agents: {{agents}}.\n"
                "Split the task into parts that can be done on their own. Delegate each with all that its agent needs to know: it "
                "sees nothing of this conversation. Check what comes back; where two results contradict each other, ask again or "
                "ask_person. Answer with the whole, and say which part came from whom."
            ),
            "variables": {"agents": "data-analyst (tables), pool:extractors (documents)"},
            "tools": ["delegate", "ask_person", "wait_until"],
            "limits": {"steps": 30, "calls": 30, "seconds": 7200},
        },
    },
]  # fmt: skip


@cache
def templates() -> list[Template]:
    """Return all of them, their tools pinned as a draft's are."""
    shown = [
        Template(name=name, title=f"Demo: {name}", description=one.description, definition=one, tasks=[text for agent, text in demo.TASKS if agent == name])
        for name, one in demo.agents().items()
    ]  # fmt: skip
    builtins = builtin_specs()
    for one in _WRITTEN:
        definition = drafts.settle(one["definition"], {}, builtins, lambda _: False).definition
        shown.append(Template(**{**one, "definition": definition}))
    return shown


async def listed(call: Call) -> Listed[Template]:
    return Listed(templates())


ROUTES = [
    Route("GET", "/templates", listed, "Agents to begin with", query=Empty, answer=Listed[Template]),
]  # fmt: skip
