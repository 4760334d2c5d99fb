#!/usr/bin/env bash
# Checks an accelerator: numbers against the CPU's, determinism, and every benchmark, in under eight minutes.
#
#     ./launch/gpu_check.sh --out=DIR                                  Qwen3-4B's shapes, random weights
#     ./launch/gpu_check.sh --shape=tiny --platform=cpu --out=DIR      the same in small, to try the command
#
# It installs nothing and asks no network: PYTHON names the interpreter, by default .venv's where launch/setup.sh has
# made one, else python3. That needs jax for the device, flax, optax, jaxtyping and numpy. --help shows the options.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

python=${PYTHON:-}
if [[ -z $python ]]; then
    python=$root/.venv/bin/python
    [[ -x $python ]] || python=python3
fi
missing=$("$python" -c '
import importlib.util
names = ("jax", "flax", "optax", "jaxtyping", "numpy")
print(" ".join(name for name in names if importlib.util.find_spec(name) is None))') || {
    echo "error: $python does not start; PYTHON=/path/to/python3 names another" >&2
    exit 1
}
[[ -z $missing ]] || {
    echo "error: $python has no $missing; PYTHON=/path/to/python3 names one that does" >&2
    exit 1
}
# The largest program, the decode loop of a whole step, needs more than the three quarters that JAX takes by itself.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.93}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m benchmarks.gpu_check "$@"
