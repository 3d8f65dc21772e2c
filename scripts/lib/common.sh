# Shared by scripts/run and scripts/test: installs what is missing and fetches the runtime and the weights.
# Sourced, never run. Asks a package registry only when something is missing, so that a second call needs no
# network; changes nothing outside the checkout except by apt-get.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the packages are named here and installed by the scripts

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
runtime_dir=$root/.vigia/runtime
state_dir=$root/.vigia/state
export PYTHONDONTWRITEBYTECODE=1 DEBIAN_FRONTEND=noninteractive
# rustup puts cargo here, and a shell opened before its installation does not know.
[ ! -d "${CARGO_HOME:-$HOME/.cargo}/bin" ] || PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

build_packages="build-essential pkg-config libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev"
# opusparse and webpdec are in -bad; AAC and ALAC need -libav.
run_packages="gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-tools
  gstreamer1.0-libav espeak-ng"
test_packages="mosquitto mosquitto-clients"

onnxruntime_version=1.31.1
# Of the wheel onnxruntime-gpu for Python 3.12.
onnxruntime_gpu_sha256=05d548956197b9d01f59b625de740e0d6be3593f874e241a12dc0362650ecdf7
silero_version=6.2.3
silero_sha256=1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3

say() { printf '%s\n' "$*"; }
step() { printf '\n== %s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

need_tools() {
  local version
  command -v python3 >/dev/null || die "Python 3 is missing: apt-get install python3"
  command -v cargo >/dev/null || die "Rust is missing: see https://rustup.rs"
  version=$(cargo --version | cut -d' ' -f2)
  [ "$(printf '1.95.0\n%s\n' "$version" | sort -V | head -n 1)" = 1.95.0 ] ||
    die "Rust $version is too old, 1.95 is needed: rustup update stable"
}

# Prints those of the named Debian packages that are not installed.
missing_packages() {
  local installed package
  installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null)
  for package in "$@"; do
    grep -qx "installed $package" <<<"$installed" || printf '%s ' "$package"
  done
}

install_packages() {
  # A fresh machine runs upgrades of its own in its first minutes: wait for apt's lock.
  local missing as_root=() log=$root/.vigia/apt.log wait_for_lock=DPkg::Lock::Timeout=300
  if ! command -v dpkg-query >/dev/null; then
    warn "this is neither Debian nor Ubuntu; these packages, or what they are called here, are needed: $*"
    return
  fi
  missing=$(missing_packages "$@")
  [ -n "$missing" ] || return 0
  step "Debian packages: $missing"
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "neither root nor sudo here; ask an administrator for: apt-get install $missing"
    # sudo drops the environment.
    as_root=(sudo env DEBIAN_FRONTEND=noninteractive)
  fi
  mkdir -p "$root/.vigia"
  if [ -z "${apt_updated:-}" ]; then
    "${as_root[@]}" apt-get -o $wait_for_lock update -qq </dev/null >"$log" 2>&1 ||
      warn "apt-get update failed (see $log); trying with the lists there are"
    apt_updated=1
  fi
  # shellcheck disable=SC2086 # a list of words
  if ! "${as_root[@]}" apt-get -o $wait_for_lock install -y --no-install-recommends $missing </dev/null >>"$log" 2>&1; then
    tail -n 20 "$log" >&2
    die "could not install: $missing(all of apt's words: $log)"
  fi
  # Its package starts a broker on port 1883, where the one inside the daemon listens. Nobody had it a minute ago.
  if [ -d /run/systemd/system ] && grep -qw mosquitto <<<"${missing//mosquitto-clients/}"; then
    "${as_root[@]}" systemctl disable -q --now mosquitto.service &&
      say "The mosquitto service that came with its package is switched off; the tests start their own."
  fi
}

has_sha256() { # FILE SHA256
  [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$2" ]
}

# Takes one file out of a wheel on PyPI; what comes is checked against the pinned sum before it gets its name.
# Returns 1 when PyPI cannot be reached. The platform is named in full, so that the machine's Python does not matter.
fetch_from_wheel() { # REQUIREMENT PLATFORM MEMBER DESTINATION SHA256
  local folder
  if has_sha256 "$4" "$5"; then return 0; fi
  python3 -m pip --version >/dev/null 2>&1 || install_packages python3-pip
  step "Fetching $(basename "$4") ($1 from PyPI)"
  mkdir -p "$(dirname "$4")"
  folder=$(mktemp -d "$(dirname "$4")/.fetch.XXXXXX")
  if ! python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
    --python-version 311 --platform "$2" --dest "$folder" "$1" </dev/null; then
    rm -r "$folder"
    return 1
  fi
  python3 -c '
import glob, shutil, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0])
with wheel.open(sys.argv[2]) as member, open(sys.argv[1] + "/member", "wb") as out:
    shutil.copyfileobj(member, out)' "$folder" "$3" || die "$1 holds no $3"
  if ! has_sha256 "$folder/member" "$5"; then
    rm -r "$folder"
    die "$3 of $1 has not the sum $5: nothing was installed. Something between here and PyPI changes files"
  fi
  mv "$folder/member" "$4"
  rm -r "$folder"
}

fetch_runtime() {
  local processor sha256 library=libonnxruntime.so.$onnxruntime_version
  processor=$(uname -m)
  case $processor in
    x86_64) sha256=fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3 ;;
    aarch64) sha256=8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467 ;;
    *) die "no ONNX Runtime for this processor ($processor): x86_64 and aarch64 only" ;;
  esac
  fetch_from_wheel "onnxruntime==$onnxruntime_version" "manylinux_2_28_$processor" "onnxruntime/capi/$library" \
    "$runtime_dir/$library" "$sha256" || return 1
  ln -sfn "$library" "$runtime_dir/libonnxruntime.so"
}

fetch_silero() {
  fetch_from_wheel "silero-vad==$silero_version" any silero_vad/data/silero_vad.onnx \
    "$state_dir/models/silero-vad/silero_vad.onnx" "$silero_sha256"
}

# Everything the daemon loads, and the variable by which it finds the library. One that is set already stays: a
# machine with a GPU has its own build of ONNX Runtime.
fetch_all() {
  local fetched=0
  if [ -n "${ORT_DYLIB_PATH:-}" ]; then
    say "ONNX Runtime: $ORT_DYLIB_PATH (from ORT_DYLIB_PATH)"
  else
    if fetch_runtime; then export ORT_DYLIB_PATH=$runtime_dir/libonnxruntime.so; else fetched=1; fi
  fi
  fetch_silero || fetched=1
  return $fetched
}
