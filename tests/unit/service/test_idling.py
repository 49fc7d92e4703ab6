"""Which idle servers are stopped, and which are kept up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_agentfarm.scheduling.idling import Up, to_keep_up, to_stop
from jupyterhub_agentfarm.store.poolrules import Rules

ups = st.lists(
    st.builds(Up, agent=st.text("abcdef", min_size=1, max_size=4), pool=st.sampled_from([None, "p", "q"]), idle=st.floats(0, 9000), works=st.booleans()),
    unique_by=lambda one: one.agent, max_size=12,
)  # fmt: skip
some_rules = st.dictionaries(
    st.sampled_from(["p", "q"]),
    st.builds(Rules, st.integers(0, 4), st.none(), st.sampled_from([None, 0.0, 60.0, 900.0])),
)


@given(ups, some_rules, st.sampled_from([0.0, 60.0, 3600.0]))
def test_who_works_is_never_stopped_nor_is_a_pool_brought_below_its_minimum(
    up: list[Up], rules: dict[str, Rules], usual: float
) -> None:
    stopped = set(to_stop(up, rules, usual))
    for one in up:
        patience = usual if (own := rules.get(one.pool or "", Rules()).idle_seconds) is None else own
        if one.agent in stopped:
            assert not one.works and 0 < patience <= one.idle
    for pool, rule in rules.items():
        here = [one for one in up if one.pool == pool]
        left = [one for one in here if one.agent not in stopped]
        assert len(left) >= min(rule.min_servers, len(here))


def test_the_longest_idle_goes_first_and_a_minimum_is_started_again() -> None:
    up = [Up("a", "p", 100, False), Up("b", "p", 300, False), Up("c", "p", 200, False), Up("w", "p", 9000, True)]
    assert to_stop(up, {"p": Rules(2, None, 60)}, 3600) == ["b", "c"]
    assert to_stop(up, {"p": Rules(0, None, 0)}, 10) == [], "never"
    assert to_stop(up, {}, 250) == ["b"], "as the farm does"
    assert to_keep_up(["a", "b", "c"], {"b"}, Rules(2)) == ["a"]
    assert to_keep_up(["a", "b"], {"a", "b"}, Rules(1)) == []
