#!/usr/bin/env bash
# The built wheel, without extras, outside the checkout: what needs no training works, what does names its extra.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
work="$(mktemp -d)"
python -m pip wheel --quiet --no-deps --wheel-dir "$work" .
python -m venv "$work/bare"
"$work/bare/bin/python" -m pip install --quiet --constraint constraints.txt "$work"/taskmerge-*.whl
cp .github/steps/bare.py "$work"
cd "$work"
bare/bin/python bare.py
