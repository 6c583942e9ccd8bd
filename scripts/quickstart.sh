#!/usr/bin/env bash
# The main job on a fresh machine: creates the environment if needed, then runs `imgrl train` with any arguments given.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ensure_environment rewards
exec "$venv/bin/imgrl" train "$@"
