#!/usr/bin/env bash
# Makes .venv in the repository's root and installs the locked versions into it, once. run.sh and test.sh begin
# with it; an interrupted installation is done again, a finished one costs nothing.
#
#     ./launch/setup.sh          what a run needs
#     ./launch/setup.sh test     what the tests need as well
#
# Read from the environment:
#     PYTHON             interpreter for a new .venv; default: the newest of Python 3.13, 3.12 and 3.11 on the PATH
#     VGROUT_EXTRAS      extras of pyproject.toml, such as cuda or tpu,wandb; remembered for the next time
#     TORCH_INDEX_URL    package index with builds of torch for the CPU (tests only)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec >&2 </dev/null # standard output belongs to the program that is started afterwards

root=$PWD
venv=.venv
pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check)

fail() {
    echo "error: $*"
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

make_venv() {
    local python
    if [[ -f $venv/unfinished ]]; then # only ever there in a .venv that this script began
        echo "The last installation was interrupted; starting again."
        find "$venv" -mindepth 1 ! -name lock -delete
    fi
    [[ ! -x $venv/bin/python ]] || return 0
    python=$(find_python) || fail "Python 3.11, 3.12 or 3.13 is needed and not found (tried" \
        "${PYTHON:-python3.13 python3.12 python3.11 python3}); install one, or name it: PYTHON=/path/to/python3.12 $0"
    echo "Making $venv with $("$python" --version) ..."
    touch "$venv/unfinished"
    "$python" -m venv "$venv" || fail "$python cannot make virtual environments;" \
        "on Debian and Ubuntu: apt-get install python3-venv"
}

# install NAME CONTENT ARGUMENT...: pip install ARGUMENT..., unless the stamp NAME says that CONTENT is installed
install() {
    local stamp=$venv/$1.stamp begun=$venv/$1.begun content=$2 force=()
    shift 2
    [[ ! -f $stamp || $(<"$stamp") != "$content" ]] || return 0
    [[ ! -f $begun ]] || force=(--force-reinstall)
    rm -f "$stamp"
    touch "$begun"
    echo "Installing (${stamp##*/}) ..."
    "${pip[@]}" install ${force[@]+"${force[@]}"} "$@" ||
        fail "the installation failed (see above); run the command again once the cause is mended"
    echo "$content" >"$stamp"
    rm -f "$begun"
}

torch_is_installed() {
    "$venv/bin/python" - "$1" 2>/dev/null <<'PYTHON'
import sys
from importlib.metadata import version

sys.exit(version("torch").partition("+")[0] != sys.argv[1].partition("==")[2])
PYTHON
}

# Names of the CUDA packages in pip's report on what it would install.
cuda_packages() {
    "$venv/bin/python" -c '
import json, sys

names = [item["metadata"]["name"].lower() for item in json.load(sys.stdin)["install"]]
print(" ".join(name for name in names if name.startswith(("nvidia", "cuda", "triton"))))' <<<"$1"
}

# A build with CUDA would bring gigabytes that no test uses, beside jax's own copy of the same libraries.
install_torch() {
    local torch report found origin=${TORCH_INDEX_URL:-the configured package index} source=()
    torch=$(sed -n 's/.*"\(torch==[0-9.]*\)".*/\1/p' pyproject.toml)
    ! torch_is_installed "$torch" || return 0
    [[ -z ${TORCH_INDEX_URL:-} ]] || source=(--index-url "$TORCH_INDEX_URL")
    set -- ${source[@]+"${source[@]}"} --constraint requirements-test.lock "$torch"
    "${pip[@]}" install --upgrade "pip>=26" || fail "pip could not be upgraded" # older dry runs download everything
    report=$("${pip[@]}" install --dry-run --report - "$@") || fail "$torch cannot be had from $origin"
    found=$(cuda_packages "$report")
    [[ -z $found ]] || fail "$torch from $origin would bring CUDA packages (${found%% *} and others); set" \
        "TORCH_INDEX_URL to an index with builds for the CPU (docs/tests.md) and run this again"
    install torch "$torch" "$@"
}

# One installation at a time, where the system has flock: the tasks of a cluster's job array start together.
mkdir -p "$venv"
if command -v flock >/dev/null; then
    exec 9>"$venv/lock"
    flock 9
fi
make_venv
extras=${VGROUT_EXTRAS-$(cat "$venv/extras" 2>/dev/null || true)}
key="$(cat pyproject.toml requirements.lock | cksum) $root [$extras]"
install run "$key" --constraint requirements.lock --requirement requirements.lock --editable ".${extras:+[$extras]}"
rm -f "$venv/unfinished"
echo "$extras" >"$venv/extras"
if [[ ${1:-run} == test ]]; then
    install test "$(cksum <requirements-test.lock)" --requirement requirements-test.lock
    install_torch
fi
