#!/usr/bin/env bash
# Processor time of a whole fuse beside the commit before: fails above 1.1 in the best of five alternating runs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
environment="${ENVIRONMENT:-.venv-benchmarks}"
python -m venv "$environment"
"$environment/bin/python" -m pip install --quiet --constraint constraints.txt --editable .
before="$(mktemp -d)"
git worktree add --quiet "$before/checkout" "${BEFORE:-HEAD~1}"
trap 'git worktree remove --force "$before/checkout"' EXIT
"$environment/bin/python" benchmarks/against_commit.py "$before/bench" --before "$before/checkout" \
  --billions "${BILLIONS:-0.1}" --methods linear ties --results "$before/results" --limit 1.1
