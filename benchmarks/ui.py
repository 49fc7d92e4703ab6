"""Panel and farm pages in a real Chromium against a real farm: from event to pixel, first paint, bytes, requests.

`.venv/bin/python benchmarks/ui.py [--json FILE]`. It takes a minute. Times of one machine: the ledger's clock is the browser's.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "e2e")]

from browserkit import FLAGS, PANEL, PROGRAMS, Desk  # noqa: E402
from farmkit import Farm, clean_env  # noqa: E402
from ownrun import OwnRun  # noqa: E402

PACKAGE = ROOT / "jupyterhub_agentfarm"
EVENTS, EVERY = 200, 0.05  # so many, so many seconds apart
LIMITS = {"event_to_pixel_p95_ms": 100.0, "first_panel_paint_ms": 1000.0, "lab_gzip_kb": 300.0}

# Notes for each event when the frame that shows it has been drawn.
WATCH = """() => {
  window.drawn = {};
  const note = () => {
    const fresh = [...document.querySelectorAll('.af-step')].map(one => one.dataset.seq).filter(seq => !(seq in window.drawn));
    if (fresh.length) {
      fresh.forEach(seq => { window.drawn[seq] = 0; });
      requestAnimationFrame(() => { const { port1, port2 } = new MessageChannel();
        port1.onmessage = () => fresh.forEach(seq => { window.drawn[seq] = Date.now(); }); port2.postMessage(0); });
    }
  };
  new MutationObserver(note).observe(document.body, { subtree: true, childList: true });
  note();
}"""

# Notes when JupyterLab is ready (its splash goes) and when the panel shows the farm's answer.
PAINT = f"""(() => {{
  window.paint = {{}};
  const look = () => {{
    if (!window.paint.ready && document.querySelector('.jp-LabShell') && !document.querySelector('#jupyterlab-splash')) window.paint.ready = performance.now();
    if (!window.paint.panel && document.querySelector('{PANEL} section h3 ~ *')) requestAnimationFrame(() => {{ window.paint.panel ??= performance.now(); }});
    if (!window.paint.ready || !window.paint.panel) requestAnimationFrame(look);
  }};
  requestAnimationFrame(look);
}})()"""


def to_pixel(page: Any, run: OwnRun) -> list[float]:
    """Append events one by one; return the milliseconds from each one's commit to the frame that shows it."""
    page.evaluate(WATCH)
    seqs = []
    for at in range(EVENTS):
        begin = time.perf_counter()
        seqs.append(run.say(f"word {at}"))
        time.sleep(max(0.0, EVERY - (time.perf_counter() - begin)))
    page.wait_for_function("last => window.drawn[last]", arg=str(seqs[-1]))
    drawn = page.evaluate("window.drawn")
    committed = {event["seq"]: event["ms"] for event in run.moments()}
    return [drawn[str(seq)] - committed[seq] for seq in seqs if drawn.get(str(seq))]


def percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * part))], 1)


def gzipped(folder: Path) -> float:
    """Return the kilobytes that a browser loads of a folder's scripts and styles."""
    files = [*folder.rglob("*.js"), *folder.rglob("*.css")]
    return round(sum(len(gzip.compress(one.read_bytes(), 6)) for one in files) / 1000, 1)


def measure(browser: Any, farm: Farm) -> dict[str, float]:
    person, found = farm.person("petra"), dict[str, float]()
    for where in ("page", "lab"):
        run = OwnRun(person)
        desk = Desk(browser, farm, "petra")
        if where == "page":
            page = desk.at(f"runs/{run.run_id}")
        else:
            page = desk.lab()
            page.locator(PANEL).get_by_role("region", name="Latest tasks").get_by_role("button").first.click()
        page.locator(".af-step").first.wait_for()
        asked: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        taken = to_pixel(page, run)
        run.end()
        found[f"{where}_event_to_pixel_p50_ms"], found[f"{where}_event_to_pixel_p95_ms"] = (
            percentile(taken, 0.5),
            percentile(taken, 0.95),
        )
        found[f"{where}_requests_per_event"] = round(
            sum("/v1/" in one or "/agentfarm/" in one for one in asked) / EVENTS, 3
        )
        desk.close()
    found["first_panel_paint_ms"] = first_paint(browser, farm)
    return found


def first_paint(browser: Any, farm: Farm) -> float:
    """Return the median milliseconds from JupyterLab's being ready until the panel shows agents and tasks, of five reloads."""
    desk = Desk(browser, farm, "petra")
    page = desk.lab()
    page.context.add_init_script(PAINT)
    taken = []
    for _ in range(5):
        time.sleep(2)  # JupyterLab saves its layout a while after a change
        page.reload()
        page.wait_for_function("window.paint.ready && window.paint.panel")
        paint = page.evaluate("window.paint")
        taken.append(max(0.0, paint["panel"] - paint["ready"]))
    desk.close()
    return percentile(taken, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="a file for the figures")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    program = next(one for one in PROGRAMS if Path(one).exists())
    figures = {"lab_gzip_kb": gzipped(PACKAGE / "labextension"), "pages_gzip_kb": gzipped(PACKAGE / "pages" / "build")}
    with tempfile.TemporaryDirectory(prefix="af-ui-") as folder, sync_playwright() as started:
        farm = Farm(Path(folder) / "farm", clean_env(), options=("--no-demo",))
        farm.start()
        try:
            browser = started.chromium.launch(executable_path=program, args=FLAGS)
            figures |= measure(browser, farm)
            browser.close()
        finally:
            farm.stop()
    for name, value in figures.items():
        limit = next((most for part, most in LIMITS.items() if name.endswith(part)), None)
        said = "" if limit is None else f"   {'holds' if value <= limit else 'DOES NOT HOLD'}: at most {limit:g}"
        print(f"{name:32} {value:10.1f}{said}")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
