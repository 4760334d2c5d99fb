#!/usr/bin/env bash
# Downloads a model into the Hugging Face cache, so that runs find it there and need no network afterwards.
#
#     ./launch/download_model.sh                       the default, Qwen/Qwen3-4B (8 GB)
#     ./launch/download_model.sh Qwen/Qwen3-0.6B       another one
#
# HF_HOME names another place for the cache; runs must see the same one. HF_HUB_OFFLINE=1 keeps them from asking the
# network at all. A model that is complete in the cache is not asked for again, and an interrupted download goes on
# where it stopped. A folder of the model's files needs none of this: --config.model.path=FOLDER.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
(($# <= 1)) || {
    echo "error: one model at a time, got $#: $*" >&2
    exit 1
}
"$root/launch/setup.sh"
exec "$root/.venv/bin/python" -m vgrout_jax.download "$@"
