"""HTML of what the farm's things look like in a notebook: elements whose every text is escaped, one style sheet. Pure.

Text comes from people, models and tools. It is shown letter by letter: no markup, no link, no control sequence of it does
anything, in a page, in a terminal or in a saved notebook.
"""

from __future__ import annotations

import html
import json
from typing import Any
from urllib.parse import quote, urlsplit

LONGEST = 4000  # characters of one text; the rest is counted
SHORT = 110

# What a terminal or a browser would obey: C0 and C1 controls, and what reorders or hides the text around it.
_OBEYED = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}
_OBEYED |= {
    code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x2028, 0x2029)
}

STATES = {
    "succeeded": "good", "done": "good", "published": "good", "same": "good", "failed": "bad", "differs": "bad", "cancelled": "off",
    "running": "run", "assigned": "run", "cancelling": "wait", "waiting": "wait", "in doubt": "wait", "queued": "off", "draft": "off",
    "over": "bad", "room": "good",
}  # fmt: skip


class Html(str):
    """Markup that was made here: it is not escaped again."""


def plain(value: Any) -> str:
    """Return a value as text in which nothing is obeyed; data as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.replace("\r\n", "\n").translate(_OBEYED)


def one_line(value: Any, length: int = SHORT) -> str:
    text = " ".join(plain(value).split())
    return text if len(text) <= length else text[: length - 1] + "…"


def bounded(value: Any, length: int = LONGEST) -> str:
    """Return a value as text of at most so many characters, and how many more there are."""
    if isinstance(value, dict) and "$blob" in value:
        return f"{plain(value.get('preview', ''))}\n… {value.get('size', '?')} bytes in all"
    text = plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1, default=str))
    return text if len(text) <= length else f"{text[:length]}\n… {len(text) - length:,} more characters"


def el(tag: str, *children: str | None, **attributes: str | bool | None) -> Html:
    """Return an element. Children that are no Html are escaped; `class_` is class, `data_x` is data-x; None is left out."""
    named = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items())
    said = "".join(
        f" {name}" if value is True else f' {name}="{html.escape(plain(str(value)), quote=True)}"'
        for name, value in named
        if value is not None and value is not False
    )
    return Html(f"<{tag}{said}>{joined(*children)}</{tag}>")


def joined(*children: str | None) -> Html:
    return Html("".join(one if isinstance(one, Html) else html.escape(plain(one)) for one in children if one))


def link(url: str, text: str) -> Html:
    """Return a link to a page of the farm; only the text where the address is none of the web's."""
    if urlsplit(url).scheme not in ("http", "https"):
        return joined(text)
    return el("a", text, href=url, target="_blank", rel="noopener noreferrer")


def run_page(page: str, run_id: str) -> str:
    """Return the address of a run at the farm's page; "" where the page is not known."""
    return f"{page.rstrip('/')}/runs/{quote(run_id, safe='')}" if page and run_id else ""


def state(word: str, look: str = "") -> Html:
    """Return a dot and the word: colour alone says nothing."""
    return el("span", word, class_=f"afo-state afo-{look or STATES.get(word.partition(':')[0], 'off')}")


def page(*children: str | None) -> Html:
    """Return what one output holds, with its style: outputs are moved, saved and shown one by one."""
    return el("div", Html(f"<style>{STYLE}</style>"), *children, class_="agentfarm")


def number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def money(usd: float) -> str:
    return f"${usd:.4f}" if 0 < usd < 0.1 else f"${usd:,.2f}"


def lasted(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


# Lab's variables first, VS Code's second, then what reads on light and dark alike. Doubled classes outweigh Lab's own rules.
# Classes begin with afo-: those with af- are the panel's, whose style sheet is on the same page in Lab.
STYLE = """
.agentfarm{--af-quiet:var(--jp-ui-font-color2,var(--vscode-descriptionForeground,#77807b));
--af-line:var(--jp-border-color2,var(--vscode-panel-border,rgba(128,128,128,.3)));
--af-code:rgba(128,128,128,.13);
--af-link:var(--jp-content-link-color,var(--vscode-textLink-foreground,#2f7fb5));
--af-good:#1f7a45;--af-bad:#c0362c;--af-run:#1f6feb;--af-wait:#8f6000;
font:13px/1.5 var(--jp-ui-font-family,var(--vscode-font-family,system-ui,sans-serif));max-width:64rem;padding:2px 0}
[data-jp-theme-light="false"] .agentfarm,.vscode-dark .agentfarm,.vscode-high-contrast .agentfarm{--af-good:#5fc48a;--af-bad:#f2786d;--af-run:#6ea8fe;--af-wait:#e0a82e}
.agentfarm .afo-quiet{color:var(--af-quiet)}
.agentfarm .afo-head{display:flex;flex-wrap:wrap;gap:2px 12px;align-items:baseline}
.agentfarm .afo-head b{font-weight:600}
.agentfarm.agentfarm code{font-size:12px}
.agentfarm .afo-one .afo-state{margin:0 6px}
.agentfarm .afo-spring{flex:1}
.agentfarm a{color:var(--af-link);text-decoration:none}
.agentfarm a:hover{text-decoration:underline}
.agentfarm .afo-state{white-space:nowrap;color:var(--af-quiet)}
.agentfarm .afo-state::before{content:"";display:inline-block;width:8px;height:8px;border-radius:50%;background:currentColor;margin-right:6px}
.agentfarm .afo-good{color:var(--af-good)}.agentfarm .afo-bad{color:var(--af-bad)}
.agentfarm .afo-run{color:var(--af-run)}.agentfarm .afo-wait{color:var(--af-wait)}
.agentfarm .afo-part{margin:8px 0 0}
.agentfarm .afo-label{color:var(--af-quiet);font-size:11px;letter-spacing:.04em;text-transform:uppercase}
.agentfarm .afo-text,.agentfarm.agentfarm pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;max-height:24rem;overflow:auto}
.agentfarm.agentfarm pre{background:var(--af-code);color:inherit;border-radius:4px;padding:5px 9px;margin:3px 0 5px;font:12px/1.5 var(--jp-code-font-family,var(--vscode-editor-font-family,ui-monospace,monospace))}
.agentfarm.agentfarm code{background:none!important;padding:0!important;border:0;font-family:var(--jp-code-font-family,var(--vscode-editor-font-family,ui-monospace,monospace))}
.agentfarm.agentfarm ol{list-style:none;margin:8px 0 0;padding:0;border-top:1px solid var(--af-line)}
.agentfarm.agentfarm ol>li{margin:0;border-bottom:1px solid var(--af-line)}
.agentfarm details{margin:0}
.agentfarm summary{cursor:pointer;padding:4px 2px;border-radius:4px}
.agentfarm li>details>summary{display:grid;grid-template-columns:2.2em minmax(0,1fr) auto;gap:0 8px;align-items:baseline}
.agentfarm li>details>summary>.afo-one{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.agentfarm summary:hover{background:var(--af-code)}
.agentfarm summary:focus-visible{outline:2px solid var(--af-link);outline-offset:-2px}
.agentfarm .afo-num{text-align:right;font-variant-numeric:tabular-nums}
.agentfarm .afo-in{padding:2px 2px 8px calc(2.2em + 10px)}
.agentfarm .afo-call{margin:4px 0}
.agentfarm .afo-result{border-left:3px solid var(--af-good);padding:1px 0 1px 10px}
.agentfarm .afo-error{border-left:3px solid var(--af-bad);padding:1px 0 1px 10px}
.agentfarm .afo-note{border-left:3px solid var(--af-wait);padding:1px 0 1px 10px}
.agentfarm .afo-bar{display:flex;height:6px;border-radius:3px;overflow:hidden;background:var(--af-code);margin:6px 0 3px}
.agentfarm .afo-bar>i{display:block;height:100%;background:currentColor}
.agentfarm.agentfarm table{border-collapse:collapse;margin:4px 0;width:auto;font-size:13px;border:0;table-layout:auto}
.agentfarm.agentfarm tr:nth-child(n){background:none;border:0}
.agentfarm.agentfarm th,.agentfarm.agentfarm td{text-align:left;vertical-align:baseline;padding:3px 18px 3px 2px;border:0;border-bottom:1px solid var(--af-line);white-space:normal;overflow-wrap:break-word;max-width:26rem}
.agentfarm.agentfarm td code,.agentfarm td b,.agentfarm .afo-name{white-space:nowrap}
.agentfarm.agentfarm th{color:var(--af-quiet);font-weight:500;font-size:11px;letter-spacing:.04em;text-transform:uppercase;background:none;white-space:nowrap}
.agentfarm .afo-del{color:var(--af-bad)}.agentfarm .afo-add{color:var(--af-good)}
""".strip().replace("\n", "")
