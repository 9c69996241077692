# Sourced by the scripts beside it: makes .venv at the repository's root and installs rft there.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"

# Prints a Python of version 3.11 or newer; PYTHON names another one to use.
find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" python3 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python of version 3.11 or newer found → install one, or set PYTHON to its path" >&2
  return 3
}

# make_environment base|dev: skipped in a moment when nothing changed since the last time.
make_environment() {
  local extras="$1" stamp found requirement="$root"
  stamp="$(echo "$root" | cat - "$root/pyproject.toml" "$root/constraints.txt" | cksum)"
  if [[ "$(cat "$root/.venv/installed-$extras" 2>/dev/null)" == "$stamp" ]]; then
    return
  fi
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    found="$(find_python)"
    echo "making $root/.venv with $("$found" --version)" >&2
    if ! "$found" -m venv --clear "$root/.venv"; then
      echo "error: $found cannot make a virtual environment → on Debian: apt install python3-venv" >&2
      return 3
    fi
  fi
  if [[ "$extras" != base ]]; then
    requirement="$root[$extras]"
  fi
  echo "installing rft and what it needs into $root/.venv (minutes, the first time)" >&2
  "$python" -m pip install -qq --disable-pip-version-check \
    --constraint "$root/constraints.txt" --editable "$requirement"
  echo "$stamp" >"$root/.venv/installed-base"
  echo "$stamp" >"$root/.venv/installed-$extras"
}
