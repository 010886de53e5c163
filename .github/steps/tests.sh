#!/usr/bin/env bash
# Linters and fast tests with the versions of a file. VERSIONS: constraints.txt, or one of .github/{oldest,newest}.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
environment="${ENVIRONMENT:-.venv-tests}"
python -m venv "$environment"
"$environment/bin/python" -m pip install --quiet --constraint "${VERSIONS:-constraints.txt}" --editable '.[dev]'
"$environment/bin/python" -m pytest -n auto "$@"
