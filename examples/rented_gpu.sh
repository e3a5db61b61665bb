#!/usr/bin/env bash
# A bare rented GPU machine: check it, install pgolf without touching its torch, run the naive baseline.
#
#   examples/rented_gpu.sh --data SHARDS [--tokenizer FILE] [--out DIR] [--python PYTHON] [--venv DIR]
#                          [--require TEXT] [KEY=VALUE...]
#   examples/rented_gpu.sh --data SHARDS --rehearse      here and now: no GPU, nothing installed, preset tiny
#
# SHARDS is a directory of published shards (fineweb_train_*.bin, fineweb_val_*.bin) that is on the machine already, or
# made by pgolf tokenize; --tokenizer names their SentencePiece model if it does not lie beside them. PYTHON (default
# python3) must have a CUDA torch: the virtual environment sees it and pip is told to keep its version.
# One GPU trains for the baseline's ten minutes; with setup, quantizing and scoring count on half an hour. For several
# GPUs install with this script, then train with torchrun.sh. --require (default train.bpb<=1.40, a sign of health, no
# record) ends the run with exit code 4 right after the stage it names, before more paid minutes are spent.
# The rehearsal takes a minute: the same checks and the same command, with `pgolf` as it is found on PATH.
# Writes below OUT (default runs/rented): what `pgolf run` writes, result.json, logs/. The environment goes to VENV
# (default OUT/venv). Copy OUT/submission and OUT/train home before the machine goes back.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
data= tokenizer= out=runs/rented python=python3 venv= require= rehearse=no
usage="usage: rented_gpu.sh --data SHARDS [--tokenizer FILE] [--out DIR] [--python PYTHON] [--venv DIR] [--require TEXT]
       [--rehearse] [KEY=VALUE...]"
settings=()
while [ $# -gt 0 ]; do
  case $1 in
    --rehearse) rehearse=yes; shift; continue ;;
    *=*) settings+=(--set "$1"); shift; continue ;;
  esac
  if [ $# -lt 2 ]; then
    echo "$usage" >&2
    exit 2
  fi
  case $1 in
    --data) data=$2 ;;
    --tokenizer) tokenizer=$2 ;;
    --out) out=$2 ;;
    --python) python=$2 ;;
    --venv) venv=$2 ;;
    --require) require=$2 ;;
    *) echo "$usage" >&2; exit 2 ;;
  esac
  shift 2
done
if [ -z "$data" ]; then
  echo "$usage" >&2
  exit 2
fi
venv=${venv:-$out/venv}

mkdir -p "$out/logs"
log=
trap '[ -z "$log" ] || { echo "rented_gpu.sh: failed; the end of $log:"; tail -n 5 "$log"; } >&2' ERR

torch_of() {
  "$1" - <<'PYTHON'
import torch

assert torch.version.cuda, f"torch {torch.__version__} is not a CUDA build"
print(torch.__version__, torch.__file__)
PYTHON
}

if [ "$rehearse" = no ]; then
  preset=baseline_sp1024
  require=${require:-train.bpb<=1.40}
  if ! command -v nvidia-smi > "$out/logs/gpu.log"; then
    echo "rented_gpu.sh: there is no nvidia-smi, so no NVIDIA driver; --rehearse does without" >&2
    exit 5
  fi
  echo "GPU and torch"
  log=$out/logs/gpu.log
  nvidia-smi > "$log" 2>&1
  log=$out/logs/torch.log
  torch_of "$python" > "$log" 2>&1
  before=$(cat "$log")

  echo "install into $venv"
  log=$out/logs/install.log
  "$python" -m venv --system-site-packages "$venv" > "$log" 2>&1
  # If PYTHON is itself in a virtual environment, --system-site-packages looks past it; a .pth file shows the way.
  packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "$packages" > "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/parent.pth"
  echo "torch==${before%% *}" > "$out/logs/torch-pin.txt"
  "$venv/bin/python" -m pip install -c "$out/logs/torch-pin.txt" "$here" >> "$log" 2>&1
  PATH=$(cd "$venv/bin" && pwd):$PATH
  log=$out/logs/torch-after.log
  torch_of "$venv/bin/python" > "$log" 2>&1
  if [ "$before" != "$(cat "$log")" ]; then
    echo "rented_gpu.sh: torch was $before and is now $(cat "$log")" >&2
    exit 5
  fi
else
  preset=tiny
  require=${require:-train.bpb<=16}
  echo "rehearsal: would check nvidia-smi, then install $here into $venv beside the torch of $python"
fi

echo "doctor"
log=$out/logs/doctor.log
pgolf doctor > "$log" 2>&1

command=(run --preset "$preset" --data "$data" --out "$out" --require "$require")
command+=(${tokenizer:+--tokenizer "$tokenizer"} ${settings[@]+"${settings[@]}"})

echo "plan"
log=$out/logs/plan.log
pgolf "${command[@]}" --dry-run > "$log" 2>&1
cat "$log"

echo "run"
log=$out/logs/run.log
pgolf "${command[@]}" --json > "$out/result.json" 2> "$log"
tail -n 1 "$log"
