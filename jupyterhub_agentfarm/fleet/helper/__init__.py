"""The helper of a microserver: one request as JSON on stdin, one answer as JSON on stdout. Owns nothing that lasts.

It imports the standard library and itself, and runs on Python 3.9: it goes to microservers as one file (`zipped.py`), where root's
key of the farm can run it and nothing else; on the daemon's own machine it runs as a folder. What may be asked is named in `checks.py`.
Which backend stands behind it is said by who installed it, on the command line, never by a request:

    helper.pyz                  systemd units, as root              systemdunits.py
    helper --process STATE      processes with a keeper each        processunits.py, keeper.py

Request: {"v": 3, "farm": whose, "op": "start" | "stop" | "show" | "list" | "facts" | "logs" | …, …}; answer: {"ok": {…}} or
{"error": {"type", "detail", "hint"}}. To one farm another's units are not there (`farms.py`).
"""
