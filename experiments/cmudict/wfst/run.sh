#!/usr/bin/env bash
# Trains and scores the WFST baseline, Phonetisaurus, on the CMUdict split of the other experiments.
#
#   bash experiments/cmudict/wfst/run.sh
#
# Paper     Novak, Minematsu and Hirose 2016, "Phonetisaurus: exploring grapheme-to-phoneme
#           conversion with joint n-gram models in the WFST framework": joint n-grams of order 8
# Data      CMUdict without stress: see base.gin; data/cmudict is prepared first, if it is not there
# Expected  test WER 25.75, PER 6.24 (RESULTS.md)
# Time      2.5 CPU minutes
# Hardware  one CPU core, x86-64 or ARM, Linux
#
# Results go to runs/cmudict/wfst. Phonetisaurus is installed in .venv-wfst (WFST names another
# environment).
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../../launch/environment.sh"

wfst=${WFST:-.venv-wfst}
install_bidi cmudict
make_environment "$wfst" -r experiments/cmudict/wfst/requirements.txt

[[ -f data/cmudict/manifest.json ]] ||
  python -m bidi.prepare --gin_file=experiments/cmudict/l2r.gin
# What launch/environment.sh sets for bidi: Phonetisaurus is timed with the malloc of its users.
unset GLIBC_TUNABLES "${!MALLOC_@}"
python experiments/cmudict/wfst/baseline.py data/cmudict runs/cmudict/wfst "$wfst/bin/phonetisaurus"
