#!/usr/bin/env bash
# Trains and scores systems of RESULTS.md, each by its name there.
#
#   bash experiments/cmudict/run.sh NAME...
#
# A name is that of a gin file of this folder but base and quickstart; _30k is one that has 30,000
# updates instead of 7,000, _seed2 one of another seed. Two names with a + between are two models
# that agree:
#
#   bash experiments/cmudict/run.sh gold own_decoders_30k_seed2 l2r_75k+r2l_75k
#
# A run is runs/cmudict/NAME; what is there already is resumed, or only scored. Ctrl-C saves what is
# being trained and ends all. Reports and outputs are in its eval/, of the validation and the test
# split: by the better score and by agreement, whose scorers read the other stream or not, where a
# system has them; and the leak on validation.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../launch/environment.sh"

runs=runs/cmudict

train() { # NAME: sets `file`, the gin file that it comes from
  local name=$1 verb=train options=()
  file=$name
  if [[ $file =~ ^(.+)_seed([0-9]+)$ ]]; then
    file=${BASH_REMATCH[1]}
    options+=("--gin.Training.seed=${BASH_REMATCH[2]}")
  fi
  if [[ $file =~ ^(.+)_([0-9]+)k$ ]]; then
    file=${BASH_REMATCH[1]}
    options+=("--gin.STEPS=${BASH_REMATCH[2]}000")
    [[ $file != pseudo ]] ||
      options+=("--gin.Pseudo.labeller_bindings=('STEPS = ${BASH_REMATCH[2]}000',)")
  fi
  if [[ $file == pseudo ]]; then
    verb=pseudo
    options+=("--gin.Partner.directory=data/cmudict-$name")
  fi
  python -m bidi.prepare --gin_file="experiments/cmudict/$file.gin"
  python -m "bidi.$verb" --gin_file="experiments/cmudict/$file.gin" --workdir="$runs/$name" \
    ${options[@]+"${options[@]}"}
}

score() { # NAME OPTIONS...: on validation first, where agreement's weights are chosen
  local name=$1 split
  shift
  for split in validation test; do
    python -m bidi.evaluate --workdir="$runs/$name" --split=$split "$@"
  done
}

leak() { # NAME
  python -m bidi.evaluate --workdir="$runs/$1" --split=validation --leak
}

better=--gin.Agreement.rescore=False
agree=--gin.Agreement.rescore=True
interacting=--gin.Agreement.interact=True

install_bidi cmudict,plot
end_at_interrupt
for name in "$@"; do
  train "${name%%+*}"
  if [[ $name == *+* ]]; then
    train "${name#*+}"
    score "${name%%+*}" --partner_workdir="$runs/${name#*+}"
    continue
  fi
  case $file in
    l2r* | r2l) score "$name" ;;
    both | own_decoders)
      score "$name" $better
      score "$name" $agree
      ;;
    halves)
      score "$name"
      leak "$name"
      ;;
    *) # streams that read each other
      score "$name" $better
      score "$name" $agree
      score "$name" $agree $interacting
      leak "$name"
      ;;
  esac
done
