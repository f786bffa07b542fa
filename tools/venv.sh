# Sourced by tools/demo and tools/test: a virtual environment in the repository root.

# quietly LOG COMMAND...: runs COMMAND into LOG; shows the seconds on a terminal, the end of LOG on failure.
quietly() {
    local log=$1 start=$SECONDS status=0
    shift
    "$@" >"$log" 2>&1 &
    local pid=$!
    trap 'kill "$pid" 2>/dev/null; exit 130' INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        if [ -t 1 ]; then printf '\r   %d s ' $((SECONDS - start)); fi
        sleep 1
    done
    wait "$pid" || status=$?
    trap - INT TERM
    if [ -t 1 ]; then printf '\r'; fi
    if [ "$status" -ne 0 ]; then
        tail -n 30 "$log" >&2
        printf 'failed: %s\n' "$*" >&2
        return "$status"
    fi
    printf '   done in %d s\n' $((SECONDS - start))
}

# ensure_venv FOLDER EXTRAS [REQUIREMENT...]: makes FOLDER if it is missing, and installs the package with EXTRAS
# and the further requirements. Installs again only after a change of pyproject.toml or of what is asked for.
ensure_venv() {
    local folder=$1 extras=$2
    shift 2
    local python=${PYTHON:-python3} asked stamp
    asked=$(printf '%s\n' "$extras" "$@" | cat - pyproject.toml | cksum)
    stamp="$folder/.fxenorm-${extras//,/-}"
    if [ ! -x "$folder/bin/python" ]; then
        "$python" -c 'import sys; sys.exit("fxenorm needs Python 3.10 or newer, this is " + sys.version if sys.version_info < (3, 10) else 0)'
        printf '== Making %s with %s\n' "$folder" "$("$python" --version)"
        rm -rf "$folder"
        "$python" -m venv "$folder"
    fi
    if [ "$(cat "$stamp" 2>/dev/null || true)" != "$asked" ]; then
        printf '== Installing fxenorm[%s] into %s: up to 5 minutes, and 6 GB where PyTorch comes with CUDA\n' "$extras" "$folder"
        quietly "$folder/install.log" "$folder/bin/python" -m pip install --disable-pip-version-check --editable ".[$extras]" "$@"
        printf '%s' "$asked" >"$stamp"
    fi
}

# lowest_requirements: what fxenorm requires, "name==version" a line, each at the lowest version that pyproject.toml allows.
lowest_requirements() {
    sed -n 's/^dependencies = \[\(.*\)\]$/\1/p' pyproject.toml | tr -d '" ' | tr ',' '\n' | sed 's/>=/==/'
}
