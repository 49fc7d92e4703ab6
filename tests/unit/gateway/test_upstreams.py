"""Which server serves a model, when an attempt follows, and what is asked past a proxy: decisions without a network."""

from __future__ import annotations

import pytest

from agentfarm_sdk.protocol import Retry
from jupyterhub_agentfarm.errors import NotFound, Transient
from jupyterhub_agentfarm.gateway.asking import Reply, UpstreamError
from jupyterhub_agentfarm.gateway.proxy import Route, Upstreams, pause
from jupyterhub_agentfarm.gateway.upstreams.openai_compatible import (
    OpenAICompatible,
    Settings,
    is_loopback,
    retry_after,
)


def route(name: str, *models: str) -> Route:
    return Route(OpenAICompatible(Settings(name=name, url="http://127.0.0.1:1/v1")), models)


def test_a_model_goes_to_the_server_that_names_it_before_one_that_takes_all() -> None:
    upstreams = Upstreams([route("all", "*"), route("one", "small"), route("some", "big-*")])
    assert upstreams.default == "small"
    assert [upstreams.route(name)[0].upstream.name for name in ("small", "", "big-9")] == ["one", "one", "all"]
    with pytest.raises(NotFound, match="other"):
        Upstreams([route("one", "small")]).route("other")
    with pytest.raises(Transient, match="no model"):
        Upstreams([]).route("")


def test_an_attempt_follows_when_it_may_help_later_each_time_and_not_for_ever() -> None:
    down = UpstreamError("down", "gone", retry=True)
    assert [pause(down, attempt, Retry()) for attempt in range(1, 9)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, None]
    assert pause(UpstreamError("busy", "x", retry=True, retry_after=7.0), 1, Retry()) == 7.0
    assert pause(UpstreamError("busy", "x", retry=True, retry_after=3600.0), 1, Retry()) is None
    assert pause(UpstreamError("unauthorised", "x"), 1, Retry()) is None
    assert pause(down, 1, Retry(attempts=1)) is None and pause(down, 1, Retry(on=("busy",))) is None


def test_retry_after_is_read_as_seconds_and_as_a_date() -> None:
    assert [retry_after(header, 0.0) for header in ("7", "0.5", "", "soon", "²")] == [7.0, 0.5, None, None, None]
    assert retry_after("Thu, 01 Jan 1970 00:01:40 GMT", 40.0) == 60.0
    assert retry_after("Thu, 01 Jan 1970 00:01:40 GMT", 900.0) == 0.0


@pytest.mark.parametrize("url", ["http://127.0.0.1:80/v1", "http://localhost/v1", "http://[::1]:8/v1"])
def test_what_is_on_this_machine_is_not_asked_through_a_proxy(url: str) -> None:
    assert is_loopback(url) and not is_loopback("https://router.huggingface.co/v1")


def test_a_reply_costs_what_the_operator_says_for_the_name_that_was_asked() -> None:
    prices = {"big": (2.0, 10.0), "*": (1.0, 1.0)}
    upstream = OpenAICompatible(Settings(name="s", url="http://127.0.0.1:1/v1", prices=prices))
    assert upstream.cost(Reply("", tokens_in=1_000_000, tokens_out=100_000, model="big-2026", asked="big")) == 3.0
    assert upstream.cost(Reply("", tokens_in=1_000_000, tokens_out=0, model="x", asked="y")) == 1.0


def test_a_model_without_a_price_has_no_cost_and_one_that_is_free_costs_nothing() -> None:
    for prices, cost in (({}, None), ({"*": (0.0, 0.0)}, 0.0)):
        upstream = OpenAICompatible(Settings(name="s", url="http://127.0.0.1:1/v1", prices=prices))
        assert upstream.cost(Reply("", tokens_in=5, tokens_out=5, model="m", asked="m")) == cost
