"""Run as an agent's server on a microserver of the lab: tries what a hostile one would, and says in one line of JSON what came of each try.

Where things are is told by the environment (`WHERE`, JSON). `up` is printed when all was tried; then it stays.
"""

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
import time

WHERE = json.loads(os.environ["WHERE"])
SECONDS = 3
PATIENCE = 60  # for what must be reached, however slow the machine is


CAME = {}


def tell(what, came):
    CAME[what] = came


def attempt(what, do, *how):
    try:
        tell(what, str(do(*how)))
    except (OSError, subprocess.SubprocessError) as error:
        tell(what, type(error).__name__)


def read(path):
    if os.path.isdir(path):
        os.listdir(path)
    else:
        with open(path, "rb") as source:
            source.read(1)
    return "reached"


def write(path):
    with open(path, "w"):
        return "reached"


def connect(host, port, seconds):
    with socket.create_connection((host, port), seconds):
        return "reached"


def unix(path):
    wire = socket.socket(socket.AF_UNIX)
    wire.settimeout(SECONDS)
    wire.connect(path)
    return "reached"


def datagram(host, port):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (host, port))
    return "reached"


def command(*words):
    done = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, timeout=20)
    return "reached" if done.returncode == 0 else "refused"


def own_loopback():
    listening = socket.create_server(("127.0.0.1", 0))
    with socket.create_connection(listening.getsockname(), PATIENCE) as wire:
        listening.accept()[0].sendall(b"own")
        return wire.recv(10).decode()


def own_loopback_6():
    listening = socket.create_server(("::1", 0), family=socket.AF_INET6)
    with socket.create_connection(listening.getsockname()[:2], PATIENCE):
        return "own"


def trace():
    if ctypes.CDLL(None, use_errno=True).ptrace(16, WHERE["pid"], 0, 0) == 0:  # PTRACE_ATTACH
        return "reached"
    raise PermissionError


def eats():
    """A process of its own, as a kernel is, takes more memory than the whole unit may."""
    done = subprocess.run([sys.executable, "-c", "x = bytearray(400 << 20)"], capture_output=True, timeout=60)
    return f"killed {done.returncode}" if done.returncode < 0 else "reached"


def forks():
    children = []
    try:
        for _ in range(200):
            children.append(subprocess.Popen(["/bin/sleep", "60"]))
        return "reached"
    except OSError as error:
        return f"refused {error.errno}"
    finally:
        for child in children:
            child.kill()
            child.wait()


def outlive():
    """Leave behind what is no child of the server's any more."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            os.execv("/bin/sleep", ["/bin/sleep", "7777"])
        os._exit(0)
    os.wait()
    return "left"


def strangers():
    """Count the processes of others that can be seen."""
    found = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            found += os.stat(f"/proc/{entry}").st_uid != os.getuid()
    return found


for path in WHERE["files"]:
    attempt(path, read, path)
for name in ("environ", "cmdline", "mem", "fd"):
    attempt(f"proc {name}", read, f"/proc/{WHERE['pid']}/{name}")
attempt("strangers", strangers)
attempt("kill", os.kill, WHERE["pid"], 9)
attempt("trace", trace)
for path in WHERE["sockets"]:
    attempt(path, unix, path)
tries = [
    threading.Thread(target=attempt, args=(what, connect, *where, PATIENCE if what in WHERE["there"] else SECONDS))
    for what, where in WHERE["ports"].items()
]
for one in tries:
    one.start()
for one in tries:
    one.join()
attempt("datagram", datagram, *WHERE["ports"]["another agent"])
attempt("raw", socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)
attempt("packet", socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 3)
attempt("own loopback", own_loopback)
attempt("own loopback 6", own_loopback_6)
for words in WHERE["commands"]:
    attempt(words[0] + " " + words[1], command, *words)
for path in (
    "/etc/x",
    "/opt/agentfarm/x",
    "/var/spool/cron/x",
    "/proc/sys/kernel/hostname",
    "/sys/kernel/mm/ksm/run",
    "/sys/fs/cgroup/x",
):
    attempt(f"write {path}", write, path)
attempt("eats", eats)
attempt("forks", forks)
attempt("outlive", outlive)
open_to_all = socket.create_server(("0.0.0.0", WHERE["listen"]))
squat = socket.create_server(("127.0.0.1", 8812))
print(json.dumps(CAME), "up", sep="\n", flush=True)
time.sleep(600)
