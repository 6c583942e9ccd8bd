# Sourced by the other scripts: leaves $python pointing into an environment that holds imgrl and the extras asked for.
#   IMGRL_VENV    where the environment is (default: .venv beside this folder)
#   IMGRL_PYTHON  the Python that creates it (default: python3)
# On a machine with an NVIDIA GPU pip chooses torch; elsewhere constraints-cpu.txt does.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${IMGRL_VENV:-$root/.venv}"
python="$venv/bin/python"

ensure_environment() {
    local extras="$1" stamp="$venv/.imgrl-$1"
    if [ ! -x "$python" ]; then
        "${IMGRL_PYTHON:-python3}" -c 'import sys; sys.exit("imgrl needs Python 3.11 or newer") if sys.version_info < (3, 11) else 0'
        "${IMGRL_PYTHON:-python3}" -m venv "$venv"
    fi
    if [ ! -e "$stamp" ] || [ "$root/pyproject.toml" -nt "$stamp" ]; then
        local constraints=(-c "$root/constraints-cpu.txt")
        if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then constraints=(); fi
        "$python" -m pip install -q "${constraints[@]}" -e "$root[$extras]"
        touch "$stamp"
    fi
}
