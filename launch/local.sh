#!/usr/bin/env bash
# Runs a verb in several processes on this machine's CPU, as on several hosts.
#
#   bash launch/local.sh [--dry_run] [--logs=DIR] N -- python -m bidi.train --gin_file=... ...
#
# Each process gets its share of the virtual devices. Process 0 keeps the terminal; what the others
# say goes to DIR/process-I.log, by default in runs/logs/PORT/. If one fails, all are stopped, and
# its status is the script's. Ctrl-C and SIGTERM are passed on: training saves, then stops.
# --dry_run prints the commands. An accelerator needs none of this: there one process works on all
# of a machine's devices.
set -euo pipefail

fail() {
  printf 'launch/local.sh: %s\n' "$*" >&2
  exit 2
}

dry_run=false logs='' count=
while (($#)); do
  case $1 in
    --help | -h)
      sed -n '2,/^set/{s/^# \{0,1\}//;/^set/!p;}' "${BASH_SOURCE[0]}"
      exit
      ;;
    --dry_run) dry_run=true ;;
    --logs=*) logs=${1#*=} ;;
    --)
      shift
      break
      ;;
    *)
      [[ -z "$count" && "$1" =~ ^[1-9][0-9]*$ ]] ||
        fail "$1 is no number of processes and no option; see --help"
      count=$1
      ;;
  esac
  shift
done
[[ -n "$count" ]] || fail "say how many processes: launch/local.sh N -- command ..."
(($#)) || fail "say what to run: launch/local.sh $count -- command ..."

flags_of_caller=${XLA_FLAGS:-} started_in=$PWD
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$started_in"
if has_accelerator; then
  fail "this machine has an accelerator, which one process drives as a whole;" \
    "JAX_PLATFORMS=cpu is for its CPU"
fi
export JAX_PLATFORMS=cpu
if [[ -z "$flags_of_caller" ]]; then
  share=$((devices / count > 0 ? devices / count : 1))
  export XLA_FLAGS="--xla_force_host_platform_device_count=$share"
fi

port=
until [[ -n "$port" ]] && ! (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
  port=$((20000 + RANDOM % 12000)) # below those that systems give out by themselves
done

logs=${logs:-runs/logs/$port} # of its own: another may run here

command_of() { # the words of process $1, in the array `words`
  words=("${command[@]}" "--coordinator=127.0.0.1:$port" "--processes=$count" "--process=$1")
}

command=("$@") words=() pids=()
if $dry_run; then
  for ((i = 0; i < count; i++)); do
    command_of "$i"
    printf 'JAX_PLATFORMS=cpu XLA_FLAGS=%q' "$XLA_FLAGS"
    printf ' %q' "${words[@]}"
    ((i == 0)) || printf ' </dev/null >%q 2>&1' "$logs/process-$i.log"
    printf ' &\n'
  done
  exit
fi

signal_all() {
  local pid
  for pid in "${pids[@]}"; do
    kill "-$1" "$pid" 2>/dev/null || true # it may have ended
  done
}

mkdir -p "$logs"
trap 'signal_all TERM' INT TERM
exec 3<&0
for ((i = 0; i < count; i++)); do
  command_of "$i"
  if ((i == 0)); then
    "${words[@]}" <&3 &
  else
    "${words[@]}" </dev/null >"$logs/process-$i.log" 2>&1 &
  fi
  pids+=($!)
done

# Looks at each in turn: a process that waits for one that failed would wait for long.
status=0 running=$count ended=()
while ((running)); do
  sleep 0.2 || true # a signal ends it early
  for i in "${!pids[@]}"; do
    [[ -z "${ended[i]:-}" ]] || continue
    ! kill -0 "${pids[i]}" 2>/dev/null || continue
    ended[i]=yes
    running=$((running - 1))
    of_process=0
    wait "${pids[i]}" || of_process=$?
    ((of_process && !status)) || continue
    status=$of_process
    printf 'launch/local.sh: process %d ended with status %d; stopping all\n' "$i" "$status" >&2
    ((i == 0)) || tail -n 20 "$logs/process-$i.log" >&2
    signal_all TERM
    killed_at=$((SECONDS + 10))
  done
  if ((status && running && SECONDS >= killed_at)); then
    signal_all KILL
  fi
done
exit "$status"
