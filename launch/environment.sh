# Sourced by every launch script: goes to the repository's root, sets the environment that bidi
# runs fast in, and defines install_bidi, make_environment and end_at_interrupt. Whatever is already
# set in the caller's environment wins.
# shellcheck shell=bash

repository=$(CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repository" || exit
export PATH="$repository/.venv/bin:$PATH"

# Compiled programs are kept: the second run of a six-layer model starts in 3 s instead of 11 s.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$repository/.venv/jax_cache}"

has_any() { # whether jax may use one of these devices, and it is there
  [[ "${JAX_PLATFORMS:-}" != cpu ]] || return 1
  local device
  for device in "$@"; do
    [[ -e "$device" ]] && return 0
  done
  return 1
}

has_gpu() { has_any /dev/nvidia[0-9]*; }

has_tpu() { has_any /dev/accel[0-9]* /dev/vfio/[0-9]*; }

has_accelerator() { has_gpu || has_tpu || has_any /dev/kfd; }

# The extra by which jax is installed for the accelerator that is here, behind a comma.
accelerator_extra() {
  if has_gpu; then
    echo ,cuda
  elif has_tpu; then
    echo ,tpu
  fi
}

# On a CPU, glibc gives a step's memory back to the system and faults it in again for the next one.
# Keeping it, and asking for huge pages, makes a small Transformer's step a quarter faster. Only the
# first arena can keep blocks of over 64 MB. Still there are as many as glibc makes: in a single one
# devices' threads wait for each other, and what compilation leaves there in pieces slows every
# allocation, which makes the step 1.6 times as long.
if ! has_accelerator; then
  export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
  export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}"
  export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-16000000000}"
  export MALLOC_TOP_PAD_="${MALLOC_TOP_PAD_:-268435456}"

  # One virtual device a core, at most eight: the small matrices of a small model keep several cores
  # busy as several devices, not as one. A power of two, so that rows can be divided. By itself nproc
  # takes OMP_NUM_THREADS, which is for other programs, for the number of cores.
  cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null ||
    getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
  devices=1
  while ((devices * 2 <= cores && devices < 8)); do
    devices=$((devices * 2))
  done
  export XLA_FLAGS="${XLA_FLAGS:---xla_force_host_platform_device_count=$devices}"
fi

# By jax's own pages on GPU performance and GPU memory; not measured here. TPUs need no flags: what
# overlaps their collectives with computation libtpu does by default.
if has_gpu; then
  # Gradients are added up over GPUs, and divided parameters gathered, while others are computed.
  if [[ "${XLA_FLAGS:-}" != *xla_gpu_enable_latency_hiding_scheduler* ]]; then
    export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_gpu_enable_latency_hiding_scheduler=true"
  fi
  # jax takes three quarters of the memory at its start, and no more later.
  if [[ -z "${XLA_CLIENT_MEM_FRACTION:-}${XLA_PYTHON_CLIENT_MEM_FRACTION:-}" ]]; then
    export XLA_CLIENT_MEM_FRACTION=0.9
  fi
fi

# Ctrl-C ends the script that calls this. bidi.train takes it as a wish to save and stop, which is a
# success, so bash would go on and score a model that is half trained. By the signal itself, since
# bash ends a loop around the script for nothing less.
end_at_interrupt() { trap 'trap - INT; kill -INT $$' INT; }

# Prints a Python that is new enough and can make virtual environments. The oldest comes first:
# new releases of Python are the ones that packages have no wheels for yet.
find_python() {
  local candidate
  for candidate in python3.11 python3.12 python3.13 python3.14 python3; do
    if "$candidate" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  echo "No Python 3.11 or newer that can make virtual environments was found (tried python3.11 to" \
    "python3.14 and python3). Install one, on Debian or Ubuntu by: apt-get install python3" \
    "python3-venv; on Ubuntu 22.04, whose python3 is older: python3.11 python3.11-venv" >&2
  return 1
}

# What an installation depends on: these words, and what is in those that are files.
asked_for() {
  local word
  printf '%s\n' "$@"
  for word in "$@"; do
    [[ ! -f "$word" ]] || cat "$word"
  done
}

# install_bidi EXTRAS: installs this checkout with the extras (comma-separated) in .venv, unless
# that was done before with the same pyproject.toml in the same place.
install_bidi() {
  local extras=$1 python log=.venv/install.log
  local stamp=".venv/installed-$extras"
  if ! .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$(find_python)
    echo "Making .venv with $python"
    rm -f .venv/installed-*
    "$python" -m venv .venv
  fi
  if asked_for "$repository" pyproject.toml | cmp -s - "$stamp"; then
    return
  fi
  echo "Installing bidi[$extras] in .venv (a few minutes the first time)"
  if ! .venv/bin/python -m pip install --disable-pip-version-check --no-input -e ".[$extras]" \
    >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    echo "The installation failed: see above, or $repository/$log" >&2
    return 1
  fi
  asked_for "$repository" pyproject.toml >"$stamp"
}

# make_environment DIRECTORY OPTIONS: a virtual environment with what `pip install OPTIONS` installs
# for another library, unless that was done before with the same options and requirements files. Its
# stamp is there from the start, though empty: an environment without one is somebody else's.
make_environment() {
  local directory=$1 python stamp="$1/installed"
  shift
  if [[ -e "$directory" && ! -f "$stamp" ]]; then
    echo "$directory is there already, and was not made here: name a directory that is not there," \
      "or allow that packages are installed in this one, by: touch $stamp" >&2
    return 1
  fi
  if asked_for "$@" | cmp -s - "$stamp"; then
    return
  fi
  python=$(find_python)
  mkdir -p "$directory"
  : >"$stamp"
  "$python" -m venv "$directory"
  "$directory/bin/python" -m pip install --disable-pip-version-check --no-input "$@"
  asked_for "$@" >"$stamp"
}
