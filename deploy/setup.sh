#!/usr/bin/env bash
# Create .venv with everything that a run or the tests need. Usage: deploy/setup.sh [cpu|gpu]
# Re-running is cheap: the stamp file says which requirements the environment was made from.
# PYTHON=COMMAND         the interpreter (python3)
# REHEARSAL_EXTRAS=a,b   extras of pyproject.toml to install besides the variant (test)
# REHEARSAL_NO_DRIVER=1  make a gpu environment on a machine without a GPU, such as an image build
set -euo pipefail
cd "$(dirname "$0")/.."
variant="${1:-cpu}"
say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: %s\n  fix: %s\n' "$1" "$2" >&2; exit 2; }

case "$variant" in cpu | gpu) ;; *) die "unknown variant '$variant'" "use cpu or gpu" ;; esac
[ "$(uname -s)" = Linux ] || die "vLLM runs on Linux only, this is $(uname -s)" \
  "use a Linux machine, a container or WSL 2"
case "$variant-$(uname -m)" in
  cpu-x86_64 | cpu-aarch64 | gpu-x86_64 | gpu-aarch64) ;;
  *) die "no vLLM build for $(uname -m)" "use x86_64 or aarch64" ;;
esac
if [ "$variant" = gpu ] && [ "${REHEARSAL_NO_DRIVER:-0}" != 1 ] && ! command -v nvidia-smi >/dev/null; then
  die "no NVIDIA driver on this machine" \
    "install the driver, use the cpu variant, or set REHEARSAL_NO_DRIVER=1 to build an image"
fi

python="${PYTHON:-python3}"
command -v "$python" >/dev/null || die "no $python on PATH" "install Python 3.11 to 3.13, or set PYTHON"
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' ||
  die "$("$python" -V) is outside 3.11 to 3.13" "set PYTHON to a supported interpreter"

extras="${REHEARSAL_EXTRAS-test}"
stamp=".venv/ready-$variant"
wanted="$(cat pyproject.toml "requirements/$variant.txt" | cksum) $extras"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi
if [ -d .venv ] && [ ! -f "$stamp" ] && compgen -G '.venv/ready-*' >/dev/null; then
  die "this .venv was made for another variant; cpu and gpu exclude each other" "rm -r .venv"
fi

say "creating .venv ($variant)"
[ -x .venv/bin/python ] || "$python" -m venv .venv ||
  die "python -m venv failed" "install the venv package of your distribution (python3-venv)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.8

flags=()
if [ "$variant" = cpu ]; then
  # A folder of wheels given to pip serves uv as well; otherwise uv fetches PyTorch's CPU build.
  if [ -n "${PIP_FIND_LINKS:-}" ] && [ -z "${UV_FIND_LINKS:-}" ]; then
    export UV_FIND_LINKS="$PIP_FIND_LINKS"
  fi
  [ -n "${UV_FIND_LINKS:-}" ] || flags+=(--torch-backend cpu)
fi
# Byte code is compiled once here: every role is a process that imports the stack again.
UV_COMPILE_BYTECODE=1 .venv/bin/uv pip install --quiet \
  --python .venv/bin/python --constraints "requirements/$variant.txt" "${flags[@]}" \
  --editable ".[$variant${extras:+,$extras}]"
printf '%s\n' "$wanted" >"$stamp"
say "ready"
