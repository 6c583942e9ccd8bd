#!/usr/bin/env bash
# The tests on a fresh machine: creates the environment if needed, then runs pytest with any arguments given.
#   IMGRL_TEST_WORKERS  processes that share the files (default: 2; 0 for one that a debugger can stop)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ensure_environment rewards,serve,lm,plots,test
cd "$root"
exec "$python" -m pytest -n "${IMGRL_TEST_WORKERS:-2}" --dist loadfile "$@"
