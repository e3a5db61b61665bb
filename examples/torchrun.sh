#!/usr/bin/env bash
# Train with several processes on one machine: NCCL where there are GPUs, gloo on CPUs.
#
#   examples/torchrun.sh DATA [OUT] [N] [PRESET] [KEY=VALUE...]
#   examples/torchrun.sh data/fineweb10B_sp1024 runs/eight 8 baseline_sp1024
#
# DATA is a dataset directory, N the number of processes (default 2): one per GPU, or parts of a CPU for a rehearsal.
# The batch of one step stays the preset's; each process takes its share, in micro-batches that are cut where the
# preset's do not divide among N. Takes what the preset takes. Writes below OUT (default runs/torchrun):
# checkpoint.safetensors, train.log, events.jsonl, manifest.json, ckpt/, torchrun.log. The same command resumes.
# Exit code: torchrun knows only 1 for any failure of a process; the log names pgolf's own error. On one machine
# `pgolf train --gpus N` does the same with pgolf's exit codes. This script is what to change for several machines: run
# it on each with, in place of --standalone, --nnodes=2 --node_rank=0 (1 on the second) --master_addr=HOST
# --master_port=29500, HOST being the first machine. OUT must then lie on storage they share.
set -euo pipefail

if [ $# -lt 1 ]; then
  echo "usage: torchrun.sh DATA [OUT] [N] [PRESET] [KEY=VALUE...]" >&2
  exit 2
fi
data=$1
out=${2:-runs/torchrun}
processes=${3:-2}
settings=(--preset "${4:-demo}")
for pair in "${@:5}"; do
  settings+=(--set "$pair")
done

mkdir -p "$out"
log=
failed() {
  echo "torchrun.sh: failed; from $log:"
  grep -m 1 "^error:" "$log" || tail -n 20 "$log"
}
trap '[ -z "$log" ] || failed >&2' ERR

# Tokens per forward pass of one process: the preset's, or less where the batch would not divide.
log=$out/config.log
pgolf config show "${settings[@]}" --json > "$out/config.json" 2> "$log"
micro=$(python3 - "$out/config.json" "$processes" <<'PYTHON'
import json, sys

train = json.load(open(sys.argv[1]))["config"]["train"]
share = train["batch_tokens"] // int(sys.argv[2])
print(train["micro_batch_tokens"] if share % train["micro_batch_tokens"] == 0 else share)
PYTHON
)

log=$out/torchrun.log
torchrun --standalone --nproc_per_node="$processes" -m pgolf train "$data" --out "$out" "${settings[@]}" \
  --set "train.micro_batch_tokens=$micro" > "$log" 2>&1

tail -n 1 "$log"
