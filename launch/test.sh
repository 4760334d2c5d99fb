#!/usr/bin/env bash
# Runs the tests: installs what they need into .venv the first time, then the tiers fast and slow.
#
#     ./launch/test.sh                              fast and slow
#     ./launch/test.sh -m "not slow and not long and not gpu"      fast alone
#     ./launch/test.sh tests/rl -k ratio            arguments go to pytest
#
# PyTorch is what numbers are compared with. Only a build for the CPU is ever installed: where the configured package
# index would bring CUDA packages, the script stops and asks for TORCH_INDEX_URL (docs/tests.md).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/launch/setup.sh" test
cd "$root"
# The tests compare on the CPU, also where there is an accelerator; JAX_PLATFORMS= takes it, for those marked gpu.
export JAX_PLATFORMS=${JAX_PLATFORMS-cpu}
# Two files at a time on two cores, in the order of tests/conftest.py: most of the time is tracing and compiling, one
# thread each.
exec .venv/bin/python -m pytest -n "${PYTEST_WORKERS:-auto}" --dist loadfile --no-loadscope-reorder -m "not long and not gpu" "$@"
