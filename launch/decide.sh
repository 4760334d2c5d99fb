#!/usr/bin/env bash
# The decision run: every arm over seeds, one run after the other, then the report on all of them.
#
#     ./launch/decide.sh
#     ./launch/decide.sh --scale toy --seeds 3 --out runs/decision -- --config.log.gradients=true
#
#     --scale SCALE    of configs/*.py (toy)
#     --seeds COUNT    seeds an arm (8)
#     --first SEED     the first of them (100: none that was used while settings were chosen)
#     --out DIR        workdirs in DIR/runs, terminal output in DIR/logs, the report in DIR/report (runs/decision-SCALE)
#     -- FLAG...       given to every run
#
# All arms of a seed come before the next seed, so that a queue that is stopped early has whole seeds. Called again
# with the same --out it goes on: finished runs are skipped, an unfinished one continues. A run that fails does not
# stop the others; it is named at the end, and the exit status is then 1.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
    echo "error: $*" >&2
    exit 1
}

scale=toy seeds=8 first=100 out=
while (($#)); do
    case $1 in
    --scale | --seeds | --first | --out)
        (($# >= 2)) || fail "$1 needs a value"
        printf -v "${1#--}" %s "$2"
        shift 2
        ;;
    --scale=* | --seeds=* | --first=* | --out=*)
        name=${1%%=*}
        printf -v "${name#--}" %s "${1#*=}"
        shift
        ;;
    --help | -h)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
        exit
        ;;
    --)
        shift
        break
        ;;
    *) fail "unknown argument $1; flags of the runs stand after --, and --help shows the others" ;;
    esac
done
[[ $seeds =~ ^[1-9][0-9]*$ ]] || fail "--seeds must be a whole number >= 1, got $seeds"
[[ $first =~ ^[0-9]+$ ]] || fail "--first must be a whole number >= 0, got $first"
out=${out:-runs/decision-$scale}
mkdir -p "$out/runs" "$out/logs"
if command -v flock >/dev/null; then
    exec 8>"$out/.lock"
    flock -n 8 || fail "--out=$out is in use by another decision run"
fi

# The arms share most of their programs; what one has compiled the others load.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$(cd "$out" && pwd)/compilation-cache}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.3}

arms=(none absorb routeV routeV_literal)
for kind in direction direction_matched labels lazy_pairs; do arms+=("placebo $kind"); done
total=$((seeds * ${#arms[@]}))

# A run that is asked to end keeps its state; a background process does not hear Ctrl-C, so it is told by SIGTERM.
child=
stop() {
    trap '' INT TERM
    echo "stopping; the same command goes on from here" >&2
    [[ -z $child ]] || { kill -TERM "$child" 2>/dev/null && wait "$child"; } || true
    exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM

duration() {
    if (($1 >= 3600)); then printf '%d h %02d min' $(($1 / 3600)) $(($1 % 3600 / 60)); else printf '%d min %02d s' $(($1 / 60)) $(($1 % 60)); fi
}

failed=() number=0 made=0 spent=0
for ((seed = first; seed < first + seeds; seed++)); do
    for arm in "${arms[@]}"; do
        read -r config kind <<<"$arm"
        name=$config${kind:+-$kind}-$seed
        number=$((number + 1))
        if [[ -f $out/runs/$name/summary.json ]]; then
            echo "[$number/$total] $name: finished before"
            continue
        fi
        left=
        ((made == 0)) || left=", about $(duration $((spent / made * (total - number + 1)))) left"
        echo "[$number/$total] $name: running$left"
        began=$SECONDS
        "$root/launch/run.sh" "--config=$root/configs/$config.py:$scale" "--workdir=$out/runs/$name" \
            "--config.seed=$seed" "--config.adapter.seed=$seed" "--config.eval.seed=$seed" "--config.placebo.seed=$seed" \
            ${kind:+"--config.placebo.kind=$kind"} "$@" >>"$out/logs/$name.log" 2>&1 &
        child=$!
        status=0
        wait "$child" || status=$?
        child=
        took=$((SECONDS - began))
        if ((status == 0)); then
            made=$((made + 1)) spent=$((spent + took))
            echo "[$number/$total] $name: done in $(duration $took)"
        else
            failed+=("$name")
            echo "[$number/$total] $name: FAILED with status $status: $(tail -n 1 "$out/logs/$name.log")" >&2
        fi
    done
done

status=0
if ((${#failed[@]})); then
    status=1
    echo "failed: ${failed[*]}; what they said stands in $out/logs" >&2
fi
"$root/.venv/bin/python" -m vgrout_jax.report "$out/runs" "--out=$out/report" || status=1
exit "$status"
