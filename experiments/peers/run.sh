#!/usr/bin/env bash
# Compares bidi with its peers on Multi30k: the same model, the same sentences, the same machine.
#
#   bash experiments/peers/run.sh            two CPU cores; half an hour of training, an hour in all
#   bash experiments/peers/run.sh tiny       whether it works: a few sentences and updates
#
# Needs BIDI_DATA, the folder that holds multi30k/, unless data/multi30k is prepared already. Tables
# go to the terminal and to runs/peers/*.md, of tiny to runs/peers_tiny. The peers are installed in
# .venv-peers, Sockeye, which needs an old torch, in .venv-sockeye (PEERS and SOCKEYE name other
# environments). Nothing else should run on the machine meanwhile.
set -euo pipefail

export JAX_PLATFORMS=cpu # before the next line, which sets what this is fast with
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../launch/environment.sh"

gin=experiments/peers/multi30k.gin
peers=${PEERS:-.venv-peers}
sockeye=${SOCKEYE:-.venv-sockeye}
export TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1

if [[ "${1:-}" == tiny ]]; then
  run=runs/peers_tiny verified=8 search=(16 4 2) training=(5 2)
  train_options=(--gin.Training.{steps=20,evaluate_every=10,checkpoint_every=10})
else
  run=runs/peers verified=200 search=(1000 100 3) training=(100 3)
  train_options=()
fi
workdir=$run/multi30k

install_bidi export
make_environment "$peers" -r experiments/peers/requirements.txt
make_environment "$sockeye" -r experiments/peers/requirements-sockeye.txt

[[ -f data/multi30k/manifest.json ]] || python -m bidi.prepare --gin_file="$gin"
end_at_interrupt
python -m bidi.train --gin_file="$gin" --workdir="$workdir" \
  ${train_options[@]+"${train_options[@]}"}

rm -rf "$run/huggingface" "$run/ctranslate2"
python -m bidi.export --workdir="$workdir" --output="$run/huggingface"
python experiments/peers/dump.py "$workdir" "$run"
"$peers/bin/python" experiments/peers/convert_ctranslate2.py "$run/huggingface" "$run/ctranslate2"

measure() {
  local name=$1
  shift
  "$peers/bin/python" "experiments/peers/$name.py" "$@" | tee "$run/$name.md"
}
measure verify "$workdir" "$run" "$verified"
measure search_speed "$workdir" "$run" "${search[@]}"
measure training_speed "$run" "$sockeye" "${training[@]}"
