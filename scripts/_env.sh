# Sourced by scripts/test, scripts/lint, scripts/demo and .ci/run: makes and fills the environment they run in.
#
#   PYTHON unset      python3, or the newest supported one found        .venv
#   PYTHON=python3.12 that one                                          .venv-3.12
#
# `environment` sets $venv and $py; `install NAME PIP-ARGUMENT …` runs pip unless NAME was installed from this very
# pyproject.toml before. Nothing here reads standard input.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '%s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
in_ci() { case "${CI:-}" in 1 | true | True | TRUE | yes) return 0 ;; *) return 1 ;; esac; }

minor_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null </dev/null; }

supported() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 </dev/null; }

# find_python 3.12: prints the path of an interpreter that really starts (a version manager's shim may not).
find_python() {
    local candidate
    for candidate in "$(command -v "python$1" || true)" \
        $(ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/"python$1" 2>/dev/null | sort -rV); do
        if [ -n "$candidate" ] && [ "$(minor_of "$candidate")" = "$1" ]; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

default_python() {
    local version
    if supported python3; then command -v python3; return 0; fi
    for version in 3.13 3.12 3.11; do find_python "$version" && return 0; done
    return 1
}

environment() {
    local python version
    if [ -n "${PYTHON:-}" ]; then
        python=$PYTHON
        version=$(minor_of "$python") || die "PYTHON=$python does not start."
        supported "$python" || die "PYTHON=$python is Python $version; this project needs 3.11 or newer."
        venv=$root/.venv-$version
    else
        python=$(default_python) || die "Python 3.11 or newer is needed: install it, or name it: PYTHON=/path/to/python3.11 $0"
        version=$(minor_of "$python")
        venv=$root/.venv
    fi
    py=$venv/bin/python

    # Made by another version, or in a folder that was moved since: make it again.
    if [ "$(cat "$venv/.made-for" 2>/dev/null)" != "$version $venv" ] || [ "$(minor_of "$py")" != "$version" ]; then
        "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 </dev/null || die \
            "$python has no venv module. Debian, Ubuntu: apt-get install python$version-venv" \
            "(elsewhere: a Python $version that comes with ensurepip), then run this again."
        say "== ${venv##*/}: a new environment, Python $version"
        "$python" -m venv --clear "$venv" </dev/null || die "$python -m venv failed; see above."
        printf '%s\n' "$version $venv" >"$venv/.made-for"
    fi
}

install() {
    local stamp=$venv/.installed-$1 wanted
    shift
    wanted="$("$py" -c 'import hashlib, sys; print(hashlib.sha256(open("pyproject.toml", "rb").read()).hexdigest())') $*"
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return 0
    say "== ${venv##*/}: pip install $*"
    # --group (PEP 735) came with pip 25.1
    "$py" -c 'import pip, sys; sys.exit(tuple(map(int, pip.__version__.split(".")[:2])) < (25, 1))' ||
        "$py" -m pip install --quiet --upgrade 'pip>=25.1' </dev/null || die "pip could not be upgraded; see above."
    "$py" -m pip install --quiet "$@" </dev/null || die "pip install $* failed; see above."
    printf '%s\n' "$wanted" >"$stamp"
}
