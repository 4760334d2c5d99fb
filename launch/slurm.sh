#!/usr/bin/env bash
#SBATCH --job-name=vgrout
#SBATCH --array=0-14
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --output=slurm-%A_%a.log
#
# A job array over arms and seeds, one GPU a task; every argument goes to every run.
#
#     VGROUT_EXTRAS=cuda ./launch/setup.sh     once, on the login node
#     sbatch launch/slurm.sh --config.data.train=problems.jsonl --config.teacher.pool=pool
#
# Submit it from the repository's root. ARMS, SEEDS and SCALE change the grid; the array must have as many tasks:
#
#     ARMS="none routeV" SEEDS="0 1" SCALE=full sbatch --array=0-3 launch/slurm.sh ...
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch from the root of the repository}"

read -ra arms <<<"${ARMS:-$(.venv/bin/python -m vgrout_jax.arms --names --preregistered | tr '\n' ' ')}"
read -ra seeds <<<"${SEEDS:-0 1 2}"
scale=${SCALE:-fast}
task=${SLURM_ARRAY_TASK_ID:?this is a job array; submit it with sbatch}
tasks=$((${#arms[@]} * ${#seeds[@]}))
if ((task >= tasks)); then
    echo "error: task $task of a grid of $tasks; submit with --array=0-$((tasks - 1))" >&2
    exit 1
fi
arm=${arms[task % ${#arms[@]}]}
seed=${seeds[task / ${#arms[@]}]}
exec ./launch/run.sh "--config=configs/$arm.py:$scale" "--config.seed=$seed" \
    "--workdir=runs/${SLURM_ARRAY_JOB_ID:-sweep}/$arm-$seed" "$@"
