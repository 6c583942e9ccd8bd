#!/usr/bin/env bash
# The tests on a fresh machine: creates the environment if needed, then runs pytest with any arguments given.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ensure_environment rewards,serve,lm,plots,test
cd "$root"
exec "$python" -m pytest "$@"
