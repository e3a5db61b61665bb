#!/usr/bin/env bash
# The naive baseline and the best record at a size that a CPU can train: the same tokens, the same steps, several seeds.
#
#   examples/baseline_and_leader.sh DATA [OUT] [SEEDS] [KEY=VALUE...]
#   examples/baseline_and_leader.sh data/fineweb runs/pair 1,2,3
#
# DATA is a dataset under a tokenizer of 1,024 pieces, of 4 million training tokens or more. Both models are 208 wide with
# four heads and two KV heads, 5.46 million parameters the leader: OUT/leader-SEED/checkpoint.safetensors is a float
# checkpoint to quantize. 900 steps of 4,096 tokens, and what the records count in steps is scaled to that. On one idle
# core 14 minutes each for the baseline, 18 for the leader; killed, the same command goes on.
# Writes below OUT (default runs/pair): baseline-SEED/ and leader-SEED/, curves.png, and logs/.
set -euo pipefail
set -o errtrace

if [ $# -lt 1 ]; then
  echo "usage: baseline_and_leader.sh DATA [OUT] [SEEDS] [KEY=VALUE...]" >&2
  exit 2
fi
data=$1
out=${2:-runs/pair}
IFS=, read -ra seeds <<< "${3:-1,2,3}"

both=(
  model.vocab_size=1024 model.model_dim=208 model.num_heads=4 model.num_kv_heads=2
  train.iterations=900 train.max_wallclock_seconds=0 train.reserve_seconds=0 train.warmup_steps=1
  train.seq_len=512 train.batch_tokens=4096 train.micro_batch_tokens=4096 train.loader=shuffled
  train.val_every=100 train.val_max_tokens=131072 train.log_every=50 train.checkpoint_every=200
  train.precision=bfloat16 train.compile=on
)
baseline=(optim.matrix.momentum_warmup_steps=33 optim.warmdown.iters=78)
leader=(optim.matrix.momentum_warmup_steps=274 train.average.decay=0.981 model.documents.max_tokens=512)

mkdir -p "$out/logs"
log=
trap '[ -z "$log" ] || { echo "baseline_and_leader.sh: failed; the end of $log:"; tail -n 5 "$log"; } >&2' ERR

one() {
  local name=$1 preset=$2 seed=$3 settings=() pair
  shift 3
  for pair in "${both[@]}" "$@"; do
    settings+=(--set "$pair")
  done
  echo "$name-$seed"
  log=$out/logs/$name-$seed.log
  pgolf train "$data" --out "$out/$name-$seed" --preset "$preset" --seed "$seed" --device cpu "${settings[@]}" > "$log" 2>&1
}

for seed in "${seeds[@]}"; do
  one baseline baseline_sp1024 "$seed" "${baseline[@]}" "${@:4}"
  one leader leader "$seed" "${leader[@]}" "${@:4}"
done

log=$out/logs/plot.log
pgolf plot "$out"/baseline-* "$out"/leader-* --group --out "$out/curves.png" > "$log" 2>&1
cat "$log"
