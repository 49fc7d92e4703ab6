"""What the farm answers, as it came (a dict), and with a look in a notebook."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import AgentFarmError, Invalid
from .document import notebook_of
from .live import Farm, Following, in_notebook, show
from .markup import run_page
from .story import Story
from .things import list_bundle, one_bundle

Json = dict[str, Any]
SHOWN = 50  # items of a list


class Record(dict[str, Any]):
    """One thing: an agent, a budget, an item of the inbox, a task's row."""

    def __init__(self, data: Json, farm: Farm, kind: str) -> None:
        super().__init__(data)
        self._farm, self._kind = farm, kind

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return one_bundle(self._kind, self, self._farm.page if in_notebook() else "")


class RunRecord(dict[str, Any]):
    """A run's row. Shown, it is the whole run, and goes on while the run does."""

    def __init__(self, data: Json, farm: Farm) -> None:
        super().__init__(data)
        self._farm = farm
        self.id = str(data["run_id"])

    @property
    def page(self) -> str:
        """The run at the farm's page."""
        return run_page(self._farm.page, self.id)

    def story(self) -> Story:
        """Return what it did, step by step."""
        return Story(self.id).apply_all(self._farm.events(self.id))

    def notebook(self, path: Path | str | None = None, *, source: str = "") -> Path:
        """Write the run as a notebook whose cells replay it; return its path (RUN.ipynb). Raises Invalid.

        source: what the cells read instead of the farm, a bundle's file name.
        """
        return save_notebook(self.story(), path, source or self.id)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return Following(self._farm, run_id=self.id).read_once().bundle()

    def _ipython_display_(self) -> None:
        if self.get("ended_at") or not in_notebook():
            raise NotImplementedError  # nothing will change: the ordinary way shows it
        show(Following(self._farm, run_id=self.id))


def save_notebook(story: Story, path: Path | str | None, source: str) -> Path:
    """Raises Invalid: it cannot be written."""
    file = Path(path or f"{story.run_id}.ipynb")
    try:
        file.write_text(json.dumps(notebook_of(story, source), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise Invalid(f"{file} cannot be written: {error.strerror}", hint="name another file") from error
    return file


class Listing(Iterator[Json]):
    """A list of the farm, page after page as it is gone through. Shown, it is a table of the first ones."""

    def __init__(self, fetch: Callable[[int | None], Iterator[Json]], farm: Farm, kind: str, limit: int | None) -> None:
        self._fetch, self._farm, self._kind, self._limit = fetch, farm, kind, limit
        self._items: Iterator[Json] | None = None

    def __iter__(self) -> Iterator[Json]:
        return self

    def __next__(self) -> Json:
        if self._items is None:
            self._items = self._fetch(self._limit)
        return Record(next(self._items), self._farm, self._kind)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        wanted = min(SHOWN, self._limit or SHOWN)
        try:
            found = list(islice(self._fetch(wanted + 1), wanted + 1))
        except AgentFarmError as error:
            return {"text/plain": f"{error.detail}. {error.hint}".rstrip(". ")}
        return list_bundle(self._kind, found[:wanted], self._farm.page, more=len(found) > wanted and not self._limit)
