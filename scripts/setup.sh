# Sourced by scripts/marl and scripts/test: makes sure that an environment in the repository root is ready.
#
#   ensure_environment FOLDER KIND EXTRAS      e.g.  ensure_environment .venv base ""
#
# The quick way costs a few milliseconds: the stamp FOLDER/.marl/KIND/ holds copies of the two files that decide what is
# installed, and they are compared byte for byte. Anything else is the work of scripts/setup_venv.py, which needs Python.
# Sets nothing but $root; exits with 2 where the user has to do something, with 1 where an installation failed.
# All messages go to standard error, so that the output of `marl ... --json` stays clean.

self=$(readlink -f -- "$0" 2>/dev/null || printf '%s\n' "$0")
root=$(CDPATH='' cd -- "$(dirname -- "$self")/.." && pwd -P)

python_version() { # prints 3.11 for a Python 3.11, nothing for what is no working Python
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

constraint_name() { # prints py311.txt for 3.11; fails for a version that has no constraint file
    case $1 in
    3.11 | 3.12) printf 'py%s.txt\n' "$(printf '%s' "$1" | tr -d .)" ;;
    *) return 1 ;;
    esac
}

choose_python() { # sets $python, or explains and exits with 2
    if [ -n "${MARL_PYTHON:-}" ]; then
        found=$(python_version "$MARL_PYTHON") || found=
        if [ -z "$found" ]; then
            echo "marl: MARL_PYTHON=$MARL_PYTHON does not start; name a Python 3.11 or 3.12" >&2
            exit 2
        fi
        if ! constraint_name "$found" >/dev/null; then
            echo "marl: MARL_PYTHON=$MARL_PYTHON is Python $found; supported are 3.11 and 3.12" >&2
            exit 2
        fi
        python=$MARL_PYTHON
        return
    fi
    seen=
    for python in python3 python3.11 python3.12; do
        found=$(python_version "$python") || found=
        if constraint_name "${found:-none}" >/dev/null; then
            return
        fi
        seen="$seen$python is ${found:-missing}, "
    done
    echo "marl: ${seen}but Python 3.11 or 3.12 is needed; install one, or name it: MARL_PYTHON=/path/to/python3.12" >&2
    exit 2
}

environment_is_ready() {
    stamp=$root/$1/.marl/$2
    [ -x "$root/$1/bin/marl" ] && [ -x "$root/$1/bin/python" ] || return 1
    { IFS= read -r stamped_root && IFS= read -r constraint; } 2>/dev/null <"$stamp/about" || return 1
    [ "$stamped_root" = "$root" ] || return 1 # the folder was moved: an environment holds absolute paths
    cmp -s "$root/pyproject.toml" "$stamp/pyproject.toml" || return 1
    cmp -s "$root/constraints/$constraint" "$stamp/constraints.txt" || return 1
    if [ -n "${MARL_PYTHON:-}" ]; then
        [ "$(constraint_name "$(python_version "$MARL_PYTHON")")" = "$constraint" ] || return 1
    fi
}

ensure_environment() {
    if ! environment_is_ready "$@"; then
        choose_python
        "$python" "$root/scripts/setup_venv.py" --root "$root" --folder "$1" --kind "$2" --extras "$3" \
            --python "$python" || exit $?
    fi
}
