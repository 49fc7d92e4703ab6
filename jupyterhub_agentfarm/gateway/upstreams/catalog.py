"""What a router lists of its models: prices and context by provider, and what they take besides text. Pure.

The form is that of the Hugging Face router's /v1/models: `providers: [{provider, status, pricing: {input, output}, context_length}]` in USD
per million tokens, `architecture: {input_modalities}`. What is missing or odd is passed over: it is no price then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Price = tuple[float, float]  # USD per million tokens, in and out


@dataclass(frozen=True)
class Entry:
    """A model. prices and contexts (tokens): of each live provider, "" for the model itself; inputs: text, image, file …"""

    prices: Mapping[str, Price] = field(default_factory=dict)
    inputs: frozenset[str] = frozenset({"text"})
    contexts: Mapping[str, int] = field(default_factory=dict)

    def context(self, provider: str | None) -> int | None:
        """Return how many tokens it takes at the provider; without one the least: nobody knows yet who will serve."""
        if provider and provider in self.contexts:
            return self.contexts[provider]
        return min(self.contexts.values(), default=None)

    def price(self, provider: str | None) -> Price | None:
        """Return the provider's price; without one the highest: nobody knows yet who will serve."""
        if provider and provider in self.prices:
            return self.prices[provider]
        prices = list(self.prices.values())
        return (max(one[0] for one in prices), max(one[1] for one in prices)) if prices else None


def read(models: Iterable[Mapping[str, Any]]) -> dict[str, Entry]:
    """Read the list of models."""
    return {str(model["id"]): _entry(model) for model in models}


def _entry(model: Mapping[str, Any]) -> Entry:
    prices, contexts = {}, dict[str, int]()
    if (tokens := _tokens(model)) is not None:
        contexts[""] = tokens
    for one in _list(model.get("providers")):
        if isinstance(one, Mapping) and one.get("status", "live") == "live" and (price := _price(one.get("pricing"))):
            prices[str(one.get("provider"))] = price
        if isinstance(one, Mapping) and one.get("status", "live") == "live" and (tokens := _tokens(one)) is not None:
            contexts[str(one.get("provider"))] = tokens
    shape = model.get("architecture")
    inputs = _list(shape.get("input_modalities")) if isinstance(shape, Mapping) else []
    return Entry(prices, frozenset({"text", *(str(one) for one in inputs)}), contexts)


def _tokens(entry: Mapping[str, Any]) -> int | None:
    """Return the context by the names that servers give it: routers, and vLLM."""
    found = entry.get("context_length") or entry.get("max_model_len")
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None


def _price(pricing: Any) -> Price | None:
    if not isinstance(pricing, Mapping):
        return None
    found = [pricing.get(name) for name in ("input", "output")]
    if all(isinstance(one, int | float) and not isinstance(one, bool) and one >= 0 for one in found):
        return float(found[0]), float(found[1])  # type: ignore[arg-type]
    return None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
