#!/usr/bin/env bash
# Installs and starts the Recognizer agent: a demo, the tests, the system service, or the fleet server. See usage() below.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly HERE
readonly MIN_PYTHON=3.11
readonly PLUGIN=examples/plugins/posenet_litert
export ORT_DISABLE_TELEMETRY=1 # ONNX Runtime from 1.29 on reports its use to its maker otherwise

usage() {
  cat << 'EOF'
Usage: ./install.sh COMMAND [OPTIONS]

Commands:
  demo [ARGS]      everything on this machine, no root: makes .venv, then runs `recognizer-agent demo ARGS`
  test [ARGS]      ruff, mypy and pytest in .venv; ARGS go to pytest
  service          (root) install or upgrade the systemd service; an upgrade keeps configuration and stored events
  service --uninstall [--purge]
                   (root) remove the service; --purge also removes configuration, stored events and the user
  fleet            (root) install or upgrade the fleet server, which may run on a machine of its own (docs/ota.md)
  fleet --uninstall [--purge]
                   (root) remove it; --purge also removes settings, what it knows of devices, and the user

Options:
  --cpu, --gpu     which ONNX Runtime; default: gpu where an NVIDIA driver runs (test: always cpu)
  --python EXE     the Python to use, 3.11 or newer; default: the first one found
  --pip            use pip although uv is there
  --again          (test) tests that fail run once more, by themselves; the summary tells whose verdict changed
  --coverage       (test) measure the branches that tests take, which makes half as long again
  --root DIR       (service, fleet) install below DIR, without user and systemctl; needs no root
  -h, --help       this text
EOF
}

say() { printf '==> %s\n' "$*" >&2; }
note() { printf '    %s\n' "$*" >&2; }
die() { # TEXT [EXIT_CODE]
  printf 'install.sh: %s\n' "$1" >&2
  exit "${2:-1}"
}
usage_error() {
  printf 'install.sh: %s (see ./install.sh --help)\n' "$*" >&2
  exit 2
}

# --- what this machine has ----------------------------------------------------------------------------------------------

is_jetson() {
  [ -e /etc/nv_tegra_release ] || grep -qs nvidia,tegra /proc/device-tree/compatible
}

has_nvidia_driver() { [ -e /proc/driver/nvidia/version ] || [ -e /dev/nvidiactl ]; }

pick_variant() { # -> cpu | gpu
  if [ -n "$variant" ]; then
    echo "$variant"
  elif is_jetson; then
    note "Jetson: no GPU wheel on the package index; installing the CPU runtime. For the GPU use the container image."
    echo cpu
  elif has_nvidia_driver; then
    echo gpu
  else
    echo cpu
  fi
}

python_is_new_enough() {
  "$1" -c "import sys; sys.exit(sys.version_info[:2] < tuple(map(int, '$MIN_PYTHON'.split('.'))))" 2> /dev/null
}

find_python() { # [FORBIDDEN_PREFIX...] -> path
  local name path real prefix
  for name in ${python:+"$python"} python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
    path=$(command -v "$name") || continue
    python_is_new_enough "$path" || continue
    real=$("$path" -c 'import os, sys; print(os.path.realpath(sys.executable))')
    for prefix in "$@"; do
      case $real in "$prefix"/*) continue 2 ;; esac
    done
    if ! have_uv && ! "$path" -c 'import ensurepip' 2> /dev/null; then
      note "$path lacks the venv module (Debian: apt install python3-venv)"
      continue
    fi
    echo "$real"
    return
  done
  if [ $# -gt 0 ]; then
    die "no Python $MIN_PYTHON or newer outside $* (the service cannot read those): apt install python3 python3-venv"
  fi
  die "no Python $MIN_PYTHON or newer: install one (Debian: apt install python3 python3-venv) or name it with --python"
}

have_uv() { [ -z "$force_pip" ] && command -v uv > /dev/null; }

# --- environments -------------------------------------------------------------------------------------------------------

make_venv() { # DIR PYTHON
  if have_uv; then
    uv venv --quiet --python "$2" "$1"
  else
    "$2" -m venv "$1"
  fi
  echo '*' > "$1/.gitignore"
}

pip_install() { # VENV ARGS...: with locked versions, so never with dependencies of its own choosing
  local venv=$1
  shift
  if have_uv; then
    uv pip install --quiet --python "$venv/bin/python" --no-deps ${link_mode:+"--link-mode=$link_mode"} "$@"
  else
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --retries 5 --no-deps "$@"
  fi
}

install_locked() { # VENV LOCK...
  local venv=$1 lock
  local -a files=()
  shift
  for lock in "$@"; do files+=(-r "$HERE/requirements/$lock.txt"); done
  pip_install "$venv" --require-hashes "${files[@]}"
}

fingerprint() { # FILE...: of contents, of the Python in use, and of the place: a copy would run the code that it was copied from
  { cat "$@" && "$venv/bin/python" --version && echo "$venv"; } | sha256sum | cut -d' ' -f1
}

sync_checkout_venv() { # PURPOSE LOCK...: $venv holds the locked packages and this checkout, editable
  local purpose=$1 stamp wanted lock
  shift
  local -a inputs=("$HERE/pyproject.toml") projects=(-e "$HERE")
  for lock in "$@"; do inputs+=("$HERE/requirements/$lock.txt"); done
  if [ -f "$HERE/$PLUGIN/pyproject.toml" ]; then
    inputs+=("$HERE/$PLUGIN/pyproject.toml")
    projects+=(-e "$HERE/$PLUGIN")
  fi
  if [ ! -x "$venv/bin/python" ]; then
    local exe
    exe=$(find_python)
    say "making $venv with $("$exe" --version)"
    make_venv "$venv" "$exe"
  fi
  python_is_new_enough "$venv/bin/python" || die "$venv has a Python older than $MIN_PYTHON: remove that folder"
  stamp=$venv/.recognizer-$purpose
  wanted=$(fingerprint "${inputs[@]}")
  if [ "$(cat "$stamp" 2> /dev/null)" = "$wanted" ]; then return; fi
  say "installing packages for '$purpose' ($(have_uv && echo uv || echo pip))"
  rm -f "$stamp"
  if ! have_uv && ! "$venv/bin/python" -m pip --version > /dev/null 2>&1; then
    # A venv that uv made has no pip, and one that was cut off perhaps half of it, which counts as installed.
    rm -rf "$venv"/lib/python*/site-packages/pip "$venv"/lib/python*/site-packages/pip-*.dist-info
    "$venv/bin/python" -m ensurepip > /dev/null
  fi
  install_locked "$venv" build "$@"
  pip_install "$venv" --no-build-isolation "${projects[@]}"
  echo "$wanted" > "$stamp"
}

# --- demo and test ------------------------------------------------------------------------------------------------------

cmd_demo() {
  local chosen
  chosen=$(pick_variant)
  venv=$HERE/.venv
  if [ "$chosen" = gpu ]; then venv=$HERE/.venv-gpu; fi # both runtimes provide the same module
  sync_checkout_venv demo "$chosen" tools posenet_litert
  exec "$venv/bin/recognizer-agent" demo "$@"
}

run_step() { # NAME COMMAND...
  local name=$1 started=$SECONDS
  shift
  say "$name"
  code=0
  "$@" || code=$?
  if [ "$code" = 0 ]; then
    summary+=("ok      $name ($((SECONDS - started)) s)")
  else
    summary+=("FAILED  $name ($((SECONDS - started)) s)")
    failed=1
  fi
}

run_tests() { # NAME ARGS...: of pytest; with --again what failed gets a second chance without neighbours
  local name=$1 before=$failed
  shift
  run_step "$name" "${pytest[@]}" "$@"
  if [ -z "$again" ] || [ "$code" != 1 ]; then return; fi # 1: tests failed; more: not all of them ran
  failed=$before
  summary[-1]=${summary[-1]/FAILED /shaky  }
  run_step "$name, what failed once more" "${pytest[@]}" "$@" ${coverage:+--cov-append} -n 0 --last-failed --last-failed-no-failures none
}

cmd_test() {
  [ "$variant" != gpu ] || usage_error "test runs on the CPU"
  venv=$HERE/.venv
  local failed=0 code=0
  local -a summary=()
  sync_checkout_venv test dev posenet_litert
  cd "$HERE"
  if ! PATH=$PATH:/usr/sbin command -v mosquitto > /dev/null; then
    note "Mosquitto is not installed: the embedded broker (MQTT 3.1.1) stands in; tests that need MQTT 5 are skipped below."
  fi
  run_step "ruff check" "$venv/bin/ruff" check .
  run_step "ruff format" "$venv/bin/ruff" format --check .
  run_step "mypy" "$venv/bin/python" -m mypy # its program names the place where it was installed
  local -a pytest=(env "PATH=$PATH:/usr/sbin" "$venv/bin/python" -m pytest -rs --max-worker-restart 2 ${coverage:+--cov})
  if [ $# -gt 0 ]; then
    run_tests "pytest" ${coverage:+--cov-report=term} "$@"
  else # a process per core where nobody watches the clock, then, two at a time, what works with cameras, brokers and processes: it mostly waits
    local -a together=(tests/unit tests/property examples tests/integration/fleet tests/integration/test_{release,trust,update}_*.py
      tests/integration/test_{analyze,cli,evaluate,model_probe,models_pull,posenet_plugin,rtmo,self_test,shipped_models,tracking_mot}.py
      tests/system/test_{models_command,reports}.py)
    run_tests "pytest: together" ${coverage:+--cov-report=} -n auto --maxprocesses 4 --dist loadfile "${together[@]}"
    run_tests "pytest: two at a time" ${coverage:+--cov-append --cov-report=term} -n 2 --dist loadfile tests/integration tests/system \
      "${together[@]/#/--ignore=}"
  fi
  say "summary"
  printf '    %s\n' "${summary[@]}" >&2
  return "$failed"
}

# --- service ------------------------------------------------------------------------------------------------------------

systemctl_if_running() {
  if [ -z "$root" ] && [ -d /run/systemd/system ]; then systemctl "$@"; fi
}

need_root() {
  [ -n "$root" ] || [ "$(id -u)" = 0 ] || die "this needs root: sudo ./install.sh $command"
}

owned() { # INSTALL_ARGS...: `install` that sets owners only on a real system
  local owner=$1
  shift
  if [ -n "$root" ]; then install "$@"; else install -o root -g "$owner" "$@"; fi
}

as_service() { # COMMAND...: as the service's user, who owns its tokens and keys, on a real system
  if [ -n "$root" ]; then "$@"; else runuser -u "$account" -- "$@"; fi
}

version_of_checkout() { sed -n 's/^version = "\(.*\)"$/\1/p' "$HERE/pyproject.toml" | head -n 1; }

build_version() { # DIR: a complete environment with $program; nothing outside DIR changes
  local dir=$1 chosen exe link_mode=copy # not tied to the package cache of whoever runs this
  if [ "$kind" = fleet ]; then chosen=fleet; else chosen=$(pick_variant); fi
  # The sandbox hides home folders, so a Python from pyenv or uv below one would not start.
  if [ -n "$root" ]; then exe=$(find_python); else exe=$(find_python /home /root /run/user); fi
  say "building $dir ($chosen, $("$exe" --version))"
  make_venv "$dir" "$exe"
  install_locked "$dir" build
  scratch=$(mktemp -d)
  # Built from a copy: setuptools leaves files beside the sources, which would belong to root.
  tar -C "$HERE" --exclude='.venv*' --exclude='.git' --exclude='__pycache__' --exclude='./state' -cf - . | tar -C "$scratch" -xf -
  rm -rf "$scratch/build"
  pip_install "$dir" --no-build-isolation "$scratch"
  install_locked "$dir" "$chosen"
  copy_share "$dir"
}

finish_version() { # DIR: readable by the service whatever the umask of the checkout was, and compiled, as it cannot write
  chmod -R a+rX "$1"
  # Third-party files for other Pythons do not compile; they are not needed either.
  "$1/bin/python" -m compileall -q -j 0 "$1/lib" > /dev/null || true
}

copy_share() { # DIR: what is not Python: shipped models, example configurations, the guides
  local dir=$1 folder
  mkdir -p "$dir/share/recognizer-agent" "$dir/share/doc/$program"
  for folder in models configs; do
    if [ -d "$HERE/$folder" ]; then cp -R "$HERE/$folder" "$dir/share/recognizer-agent/"; fi
  done
  rm -rf "$dir/share/recognizer-agent/models/training"
  cp "$HERE"/docs/*.md "$dir/share/doc/$program/"
}

install_configuration() {
  owned "$account" -d -m 0750 "$etc"
  if [ "$kind" = agent ]; then
    owned root -d -m 0700 "$etc/credentials"
    if [ ! -e "$etc/credentials/mqtt-password" ]; then owned root -m 0600 /dev/null "$etc/credentials/mqtt-password"; fi
  fi
  rm -f "$etc/$kind.yaml.new"
  if [ ! -e "$etc/$kind.yaml" ]; then
    owned "$account" -m 0640 "$HERE/systemd/$kind.yaml" "$etc/$kind.yaml"
  elif ! cmp -s "$HERE/systemd/$kind.yaml" "$etc/$kind.yaml"; then
    owned "$account" -m 0640 "$HERE/systemd/$kind.yaml" "$etc/$kind.yaml.new"
    note "$etc/$kind.yaml is kept; the defaults of this version are beside it as $kind.yaml.new"
  fi
}

trim() { # TEXT -> without white space at its ends
  local text=$1
  text=${text#"${text%%[![:space:]]*}"}
  printf '%s' "${text%"${text##*[![:space:]]}"}"
}

export_variables() { # FILE: as EnvironmentFile= reads it, but for backslashes and values of several lines
  local line name value
  [ -f "$1" ] || return 0
  while IFS= read -r line || [ -n "$line" ]; do # the last line may have no end
    name=$(trim "${line%%=*}")
    if [[ $line != *=* || ! $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]]; then continue; fi # comments among them
    value=$(trim "${line#*=}")
    if [[ $value =~ ^\"(.*)\"$ || $value =~ ^\'(.*)\'$ ]]; then value=${BASH_REMATCH[1]}; fi
    declare -gx "$name=$value" # not the `name` of this function, if that is what it is called
  done < "$1"
}

check_configuration() ( # DIR: with the variables that the service will have; a subshell, so that they end here
  export_variables "$etc/$kind.env"
  if [ "$kind" = fleet ]; then
    if [ -d "/run/credentials/$unit" ]; then export CREDENTIALS_DIRECTORY="/run/credentials/$unit"; fi # while it runs
    as_service "$1/bin/recognizer-fleet" serve --config "$etc/fleet.yaml" --check >&2
  else
    "$1/bin/recognizer-agent" check-config "$etc/agent.yaml" >&2
  fi
)

copy_unit() { # FROM TO: the unit and the drop-ins of this script, in the place of those that are there; yours stay
  local file
  mkdir -p "$2/$unit.d"
  for file in "$unit" "$unit.d/10-dgpu.conf" "$unit.d/10-jetson.conf"; do
    if [ -e "$1/$file" ]; then install -m 0644 "$1/$file" "$2/$file"; else rm -f "$2/$file"; fi
  done
}

keep_unit() { # into the folder of the version that it starts, once: what an upgrade that was cut off has left is not that version's
  if [ ! -e "$opt/current" ] || [ -e "$opt/current/unit" ]; then return; fi
  rm -rf "$opt/current/unit.new"
  copy_unit "$units" "$opt/current/unit.new"
  mv -T "$opt/current/unit.new" "$opt/current/unit"
}

restore_unit() { # of the current version, where it was kept
  if [ -e "$opt/current/unit" ]; then copy_unit "$opt/current/unit" "$units"; fi
}

install_unit() {
  local dropin=
  keep_unit
  mkdir -p "$units/$unit.d"
  install -m 0644 "$HERE/systemd/$unit" "$units/$unit"
  if [ "$kind" = fleet ]; then return; fi
  rm -f "$units/$unit.d/10-dgpu.conf" "$units/$unit.d/10-jetson.conf"
  if is_jetson; then dropin=10-jetson.conf; elif has_nvidia_driver || [ "$variant" = gpu ]; then dropin=10-dgpu.conf; fi
  if [ -n "$dropin" ]; then install -m 0644 "$HERE/systemd/$unit.d/$dropin" "$units/$unit.d/$dropin"; fi
}

switch_to() { # NAME: the one moment at which the version changes
  ln -sfn "versions/$1" "$opt/current.new"
  mv -T "$opt/current.new" "$opt/current"
}

remove_old_versions() { # keeps the current one and the one before
  local name
  for name in "$opt/versions"/*/; do
    name=$(basename "$name")
    case $name in "$1" | "$2") ;; *) rm -rf "${opt:?}/versions/$name" ;; esac
  done
}

create_user() {
  if [ -n "$root" ] || id -u "$account" > /dev/null 2>&1; then return; fi
  say "creating the user $account"
  useradd --system --user-group --home-dir "/var/lib/$account" --no-create-home --shell /usr/sbin/nologin "$account"
}

start_or_roll_back() { # NEW OLD
  if [ -n "$root" ] || [ ! -d /run/systemd/system ]; then
    note "systemd is not running here: the unit is installed and not started"
    return
  fi
  systemctl daemon-reload
  systemctl enable --quiet "$unit"
  systemctl reset-failed "$unit" 2> /dev/null || true
  if systemctl restart "$unit"; then
    say "running: systemctl status $program"
    return
  fi
  journalctl --unit "$unit" --lines 20 --no-pager >&2 || true
  if [ -n "$2" ]; then
    say "$1 does not start: going back to $2"
    switch_to "$2"
    restore_unit
    systemctl daemon-reload
    rm -rf "${opt:?}/versions/$1"
    systemctl restart "$unit" || note "$2 does not start any more: journalctl --unit $unit; docs/operations.md, Upgrade"
  fi
  die "$1 did not start; its last log lines are above"
}

undo_install() { # what a failed or cut off upgrade has left; once `current` is the new version, that is what is installed
  if [ "$opt/current" -ef "$partial" ]; then return; fi
  restore_unit || true
  rm -rf "$partial"
  note "not installed; what was installed before is as it was"
}

cmd_service() {
  need_root
  local new old
  [ -n "$(version_of_checkout)" ] || die "$HERE/pyproject.toml names no version"
  new=$(version_of_checkout)-$(date -u +%Y%m%dT%H%M%SZ)-$$
  old=$(readlink "$opt/current" 2> /dev/null || true)
  old=${old#versions/}
  umask 022 # sudo may bring a stricter one, and the service has to read what is installed
  create_user
  mkdir -p "$opt/versions"
  exec 9> "$opt/.install.lock"
  flock --nonblock 9 || die "another install.sh is at work on $opt"
  partial=$opt/versions/$new
  trap 'rm -rf "$partial" ${scratch:+"$scratch"}; note "not installed; what was installed before is untouched"' EXIT
  build_version "$partial"
  finish_version "$partial"
  install_configuration
  say "checking $etc/$kind.yaml against this version"
  check_configuration "$partial" \
    || die "the configuration does not fit this version; ${old:-nothing} stays installed. Mend the lines above and run again." 78
  if [ -n "$root" ]; then mkdir -p "$state"; else
    install -d -o "$account" -g "$account" -m "$state_mode" "$state"
  fi
  trap 'undo_install; rm -rf ${scratch:+"$scratch"}' EXIT
  install_unit
  switch_to "$new"
  trap 'rm -rf ${scratch:+"$scratch"}' EXIT
  mkdir -p "$root/usr/local/bin"
  ln -sfn "/opt/$program/current/bin/$program" "$root/usr/local/bin/$program"
  start_or_roll_back "$new" "$old"
  remove_old_versions "$new" "$old"
  say "installed $new; configuration: $etc/$kind.yaml"
}

cmd_uninstall() {
  need_root
  systemctl_if_running disable --quiet --now "$unit" 2> /dev/null || true
  rm -f "$units/$unit" "$units/$unit.d/10-dgpu.conf" "$units/$unit.d/10-jetson.conf"
  rmdir "$units/$unit.d" 2> /dev/null || true # drop-ins of the operator stay
  if [ -L "$root/usr/local/bin/$program" ]; then rm -f "$root/usr/local/bin/$program"; fi
  rm -rf "${opt:?}"
  systemctl_if_running daemon-reload
  if [ -n "$purge" ]; then
    rm -rf "$etc" "$state" "${units:?}/$unit.d"
    if [ -z "$root" ] && id -u "$account" > /dev/null 2>&1; then userdel "$account"; fi
    say "removed everything"
  else
    say "removed; kept $etc and $state (--purge removes them)"
  fi
}

# --- command line -------------------------------------------------------------------------------------------------------

variant='' python='' force_pip='' again='' coverage='' root='' uninstall='' purge='' venv='' link_mode='' scratch=''
command=${1:-}
[ $# -eq 0 ] || shift
args=()
while [ $# -gt 0 ]; do
  case $1 in
    --cpu | --gpu) variant=${1#--} ;;
    --pip) force_pip=1 ;;
    --again) again=1 ;;
    --coverage) coverage=1 ;;
    --python)
      [ $# -ge 2 ] || usage_error "--python needs a program"
      python=$2
      shift
      command -v "$python" > /dev/null || usage_error "--python: $python is not there"
      python_is_new_enough "$python" || die "--python: $python is older than $MIN_PYTHON"
      ;;
    --root)
      [ $# -ge 2 ] || usage_error "--root needs a folder"
      case $command in service | fleet) ;; *) usage_error "--root goes with 'service' and 'fleet'" ;; esac
      mkdir -p "$2"
      root=$(cd "$2" && pwd)
      shift
      ;;
    --uninstall) uninstall=1 ;;
    --purge) purge=1 ;;
    *) args+=("$1") ;;
  esac
  shift
done
# What is installed: `kind` names its settings, `account` its user and folders.
if [ "$command" = fleet ]; then
  kind=fleet program=recognizer-fleet account=recognizer-fleet state_mode=0700 # tokens are in there
else
  kind=agent program=recognizer-agent account=recognizer state_mode=0750
fi
unit=$program.service
opt=$root/opt/$program
etc=$root/etc/$account
state=$root/var/lib/$account
units=$root/etc/systemd/system

case $command in
  demo) cmd_demo "${args[@]}" ;;
  test) cmd_test "${args[@]}" ;;
  service | fleet)
    case ${args[0]:-} in -h | --help)
      usage
      exit
      ;;
    esac
    [ ${#args[@]} -eq 0 ] || usage_error "$command: unknown option ${args[0]}"
    [ "$kind" = agent ] || [ -z "$variant" ] || usage_error "fleet runs on the CPU"
    [ -z "$purge" ] || [ -n "$uninstall" ] || usage_error "--purge goes with --uninstall"
    if [ -n "$uninstall" ]; then cmd_uninstall; else cmd_service; fi
    ;;
  -h | --help | help) usage ;;
  '')
    usage >&2
    exit 2
    ;;
  *) usage_error "unknown command '$command'" ;;
esac
