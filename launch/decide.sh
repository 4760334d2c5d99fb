#!/usr/bin/env bash
# The decision run: every preregistered arm over seeds, one run after the other, then the report on all of them.
#
#     ./launch/decide.sh
#     ./launch/decide.sh --scale toy --seeds 3 --out runs/decision -- --config.log.gradients=true
#
# Flags are those of `python -m vgrout_jax.decide`, which --help shows; what stands after -- is given to every run. Called
# again with the same --out it goes on where it was stopped.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/launch/setup.sh"
exec "$root/.venv/bin/python" -m vgrout_jax.decide "$@"
