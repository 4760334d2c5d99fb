#!/usr/bin/env bash
# Writes requirements.lock and requirements-test.lock from pyproject.toml, for Python 3.11 to 3.13 on every platform.
#
#     ./launch/lock.sh            needs uv on the PATH (or UV=path); keeps the versions of the present locks
#     ./launch/lock.sh --upgrade  takes the newest ones
#
# Python 3.11 ends at jax 0.10; from 3.12 on the locks stay on jax 0.11, the newest release series that the project
# is written for. torch is left out: launch/test.sh installs a build of it for the CPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv=${UV:-uv}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
printf 'jax<0.12\njaxlib<0.12\n' >"$scratch/series.txt"
printf 'torch\n' >"$scratch/excluded.txt"
options=(--universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header --quiet
    --constraints "$scratch/series.txt" --excludes "$scratch/excluded.txt")

"$uv" pip compile pyproject.toml "${options[@]}" "$@" --output-file requirements.lock >/dev/null
"$uv" pip compile pyproject.toml --extra test "${options[@]}" "$@" --constraints requirements.lock \
    --output-file requirements-test.lock >/dev/null
