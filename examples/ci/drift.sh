#!/bin/sh
# A step of a CI job: fuse a recipe, measure drift, and fail if a modality lost more than its limit.
#
#   sh drift.sh recipe.yaml [more options of `taskmerge run`]
#
# Exit codes: 0 no drift beyond the limit; 3 drift; 4 cannot tell (0 with CANNOT_TELL=pass); others as for `taskmerge`.
# The complete result is in $DRIFT_JSON (drift.json).
set -u
recipe=${1:?usage: drift.sh RECIPE [options of taskmerge run]}
shift
result=${DRIFT_JSON:-drift.json}

taskmerge run "$recipe" --until diagnose --json "$@" > "$result"
code=$?

"${PYTHON:-python3}" - "$result" <<'END'
import json, sys

table = json.load(open(sys.argv[1], encoding="utf-8"))
if "error" in table:
    lines = [f"no result: {one['what']}" for one in table["error"]["problems"]]
else:
    found = table["stages"].get("diagnose", {"modalities": {}})["modalities"]
    lines = [f"{name}: {' '.join(one['verdict']['sentences'])}" for name, one in found.items()]
    lines = lines or ["the recipe has no `drift` section: nothing was measured"]
for line in lines:
    print("drift:", " ".join(line.split()))
END
[ $? -eq 0 ] || [ "$code" -ne 0 ] || code=70

if [ "$code" -eq 4 ] && [ "${CANNOT_TELL:-fail}" = pass ]; then
    echo "drift: cannot tell, which passes here (CANNOT_TELL=pass)"
    code=0
fi
if [ "$code" -eq 0 ] && ! grep -q '"diagnose"' "$result"; then
    code=2
fi
exit "$code"
