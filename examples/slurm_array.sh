#!/usr/bin/env bash
#SBATCH --job-name=pgolf-seeds
#SBATCH --array=0-2
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=01:00:00
#SBATCH --output=pgolf-%A_%a.out
# A Slurm job array over seeds: every job takes one seed from text to scored artifact.
#
#   sbatch examples/slurm_array.sh DATA [OUT] [PRESET] [KEY=VALUE...]
#   examples/slurm_array.sh --index 0 DATA [OUT] [PRESET] [KEY=VALUE...]     the same job without Slurm
#
# DATA is a dataset directory on a disk that every node sees. Job i takes the i-th of the seeds below. Takes what the
# preset takes for training, and scoring on top. Writes below OUT/seed_S (default runs/seeds): what `pgolf run` writes
# up to eval, run.log, and result.json with every figure. A job that was killed goes on from its last checkpoint when
# it is started again. Partition, account and time limit of your cluster belong in the header or on sbatch's line.
#
# Afterwards all seeds go into one folder; package-submission takes one artifact per seed, finds each one's score and
# training log beside it, and refuses equal seeds or different settings:
#
#   pgolf package-submission OUT/seed_*/compress/model.pgz --out OUT/submission --name "Title" --author "Me"
#
# Or let Slurm start it when every job of the array has succeeded:
#
#   sbatch --dependency=afterok:ARRAY_JOB_ID --wrap 'pgolf package-submission ...'
set -euo pipefail

seeds=(1337 42 2024)

index=${SLURM_ARRAY_TASK_ID:-}
if [ "${1:-}" = --index ]; then
  index=${2:-}
  shift $(($# < 2 ? $# : 2))
fi
if [ $# -lt 1 ] || [ -z "$index" ]; then
  echo "usage: sbatch slurm_array.sh DATA [OUT] [PRESET] [KEY=VALUE...], or slurm_array.sh --index I DATA ..." >&2
  exit 2
fi
if ! [[ $index =~ ^[0-9]+$ ]] || [ "$index" -ge "${#seeds[@]}" ]; then
  echo "slurm_array.sh: index $index, but there are ${#seeds[@]} seeds: ${seeds[*]}" >&2
  exit 2
fi
seed=${seeds[$index]}
data=$1
out=${2:-runs/seeds}/seed_$seed
settings=(--preset "${3:-baseline_sp1024}" --seed "$seed")
for pair in "${@:4}"; do
  settings+=(--set "$pair")
done

mkdir -p "$out"
log=$out/run.log
trap 'echo "slurm_array.sh: seed $seed failed; the end of $log:" >&2; tail -n 5 "$log" >&2' ERR

echo "seed $seed into $out"
pgolf run --data "$data" --out "$out" --until eval "${settings[@]}" --json > "$out/result.json" 2> "$log"
tail -n 1 "$log"
