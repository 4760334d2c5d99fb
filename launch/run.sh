#!/usr/bin/env bash
# Trains one arm: installs what it needs into .venv the first time, then starts the run.
#
#     ./launch/run.sh --config=configs/routeV.py:smoke
#     ./launch/run.sh --config=configs/routeV.py:smoke --workdir=runs/a --config.optim.lr=1e-4
#
# Flags are those of `python -m vgrout_jax.main`. It can be called from any folder: paths in flags, and the default
# workdir runs/..., are relative to that folder; a --config file that is not there is taken from this repository.
# launch/setup.sh tells what the environment variables PYTHON and VGROUT_EXTRAS do.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/launch/setup.sh"

arguments=()
previous=
for argument in "$@"; do
    if [[ $argument =~ ^(--?config=)([^/:][^:]*)(:.*)?$ || $previous =~ ^(--?config)$ && $argument =~ ^()([^/:][^:]*)(:.*)?$ ]]; then
        flag=${BASH_REMATCH[1]} file=${BASH_REMATCH[2]} scale=${BASH_REMATCH[3]}
        [[ -e $file || ! -e $root/$file ]] || argument=$flag$root/$file$scale
    fi
    arguments+=("$argument")
    previous=$argument
done
exec "$root/.venv/bin/python" -m vgrout_jax.main ${arguments[@]+"${arguments[@]}"}
