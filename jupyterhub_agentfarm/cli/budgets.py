"""`agentfarm budget …` and `agentfarm usage`: what agents, owners and the farm may use, and what they have used."""

from __future__ import annotations

import argparse
from typing import Any

from agentfarm_sdk.errors import Invalid
from agentfarm_sdk.farm import Farm

from .show import Out, command, noun

BUDGET = ("scope", "name", "amount", "unit", "period", "action", "spent", "reserved", "left", "set_by", "waived")
SUMS = ("requests", "tokens_in", "tokens_out", "cost", "estimated", "unpriced")


def add(nouns: Any) -> None:
    verb = noun(nouns, "budget", "what agents, owners and the farm may use")
    verb("list", list_budgets, "all that you may see, and what is left of them")
    setting = verb("set", set_budget, "set a limit, or change it: agentfarm budget set agent:analyst 5 --per day")
    _whose(setting)
    setting.add_argument("amount", type=float, help="USD, or tokens with --tokens")
    setting.add_argument(
        "--ask", action="store_true", help="a run that reaches it waits for a person, instead of failing"
    )
    _whose(verb("remove", remove_budget, "take a limit away"))
    used = command(nouns, "usage", show_usage, "requests, tokens and cost")
    used.add_argument("--by", default="day,agent,model", help="what to sum by, of day, agent, owner, model")
    used.add_argument("--since", default="", metavar="DAY", help="from this day on, 2026-11-21")
    used.add_argument("--until", default="", metavar="DAY", help="up to this day")


def _whose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("whose", help="agent:NAME, owner:NAME or farm")
    parser.add_argument("--per", choices=("day", "month", "total"), default="day", help="the period, in UTC (day)")
    parser.add_argument("--tokens", action="store_true", help="a limit of tokens, not of USD")


def list_budgets(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    items = farm.request("GET", "/budgets")["items"]
    out.rows(items, BUDGET, "there is no budget: agentfarm budget set agent:NAME AMOUNT")


def set_budget(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    answer = farm.request(
        "PUT", "/budgets", {**_body(asked), "amount": asked.amount, "action": "ask" if asked.ask else "stop"}
    )
    warning = f"\n  but {answer['warning']}" if answer.get("warning") else ""
    unit = "tokens" if asked.tokens else "USD"
    out.line(f"{asked.whose}: {answer['amount']:g} {unit} per {asked.per}, {answer['left']:g} left{warning}", answer)


def remove_budget(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    answer = farm.request("PUT", "/budgets", {**_body(asked), "amount": None})
    out.line(f"{asked.whose}: no limit per {asked.per} any more", answer)


def _body(asked: argparse.Namespace) -> dict[str, Any]:
    scope, _, name = asked.whose.partition(":")
    if scope not in ("agent", "owner", "farm") or (scope == "farm") != (name == ""):
        raise Invalid(f"{asked.whose!r} is nobody's budget", hint="agent:NAME, owner:NAME or farm")
    return {"scope": scope, "name": name, "unit": "tokens" if asked.tokens else "usd", "period": asked.per}


def show_usage(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    params = {"by": asked.by, "since": asked.since or None, "until": asked.until or None}
    keys = [key.strip() for key in asked.by.split(",")]
    out.rows(farm.request("GET", "/usage", params=params)["items"], (*keys, *SUMS), "nothing was used")
