"""What may be reserved of a budget: laws of the decision, without a database."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_agentfarm.gateway.budgets import SHORTEST_OUTPUT, Balance, Reached, Wish, decide, size_of
from jupyterhub_agentfarm.store.budgets import Budget, key_of

AMOUNTS = st.floats(0, 1e6, allow_nan=False)
UNITS = st.sampled_from(["usd", "tokens"])
ACTIONS = st.sampled_from(["stop", "ask"])


def balance(unit: str = "tokens", amount: float = 1000, spent: float = 0, action: str = "stop") -> Balance:
    return Balance(Budget("agent", "a", unit, "day", amount, action, "ann", 0.0), "2026-11-21", spent)


def wish(tokens_in: int, tokens_out: int, price: tuple[float, float] | None = (1.0, 2.0)) -> Wish:
    return Wish("a", "ann", "run-1", "m", tokens_in, tokens_out, price)


BALANCES = st.lists(st.builds(balance, UNITS, AMOUNTS, AMOUNTS, ACTIONS), min_size=1, max_size=4)
WISHES = st.builds(wish, st.integers(0, 10**6), st.integers(1, 10**6), st.tuples(AMOUNTS, AMOUNTS))


@given(BALANCES, AMOUNTS, WISHES)
def test_what_is_given_fits_every_budget_beside_what_is_spent_and_reserved(
    balances: list[Balance], held: float, asked: Wish
) -> None:
    given_ = decide(balances, lambda _budget: held, asked)
    if isinstance(given_, int):
        for one in balances:
            taken = one.spent + held + asked.amount(one.budget.unit, given_)
            assert taken <= one.budget.amount * (1 + 1e-9) + 1e-9
        assert min(asked.tokens_out, SHORTEST_OUTPUT) <= given_ <= asked.tokens_out


@given(BALANCES, WISHES)
def test_only_requests_under_way_are_waited_for_and_stop_goes_before_ask(balances: list[Balance], asked: Wish) -> None:
    given_ = decide(balances, lambda _budget: 0.0, asked)
    assert given_ is not None
    if isinstance(given_, Reached) and given_.budget.action == "ask":
        stops = [one for one in balances if one.budget.action == "stop"]
        assert not stops or not isinstance(decide(stops, lambda _budget: 0.0, asked), Reached)


def test_a_reply_is_cut_to_what_is_left_and_not_below_what_an_answer_needs() -> None:
    assert decide([balance(amount=1000)], lambda b: 0.0, wish(100, 4096)) == 900
    assert decide([balance(amount=1000)], lambda b: 500.0, wish(100, 4096)) is None
    assert isinstance(decide([balance(amount=1000, spent=700)], lambda b: 0.0, wish(100, 4096)), Reached)
    assert decide([balance("usd", amount=1.0)], lambda b: 0.0, wish(500_000, 4096, (1.0, 1000.0))) == 500


def test_a_prompt_is_measured_by_its_text_and_not_by_the_base64_of_an_image() -> None:
    text = {"role": "user", "content": "x" * 1000}
    image = {
        "role": "user",
        "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": "y" * 10**6}],
    }
    assert 500 <= size_of(text, msgspec.json.encode(text)) < 600
    assert 2000 <= size_of(image, msgspec.json.encode(image)) < 2100


def test_periods_begin_with_their_day_and_month_in_utc() -> None:
    assert [key_of(period, 1795219199.0) for period in ("day", "month", "total")] == ["2026-11-20", "2026-11", ""]
