#!/usr/bin/env bash
# Write pins with hashes for a release: every package that "pip install .[rl]" installs, at the versions of constraints.txt, for this Python and platform.
#   tools/lock_hashes.sh requirements.lock
#   pip install --require-hashes -r requirements.lock && pip install --no-deps .
# The index is trusted when this runs, so that later installations need not trust it. PYTHON names the interpreter (python3 by default).
set -euo pipefail
out=$(realpath -m "${1:?usage: tools/lock_hashes.sh FILE}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m pip install --quiet --dry-run --ignore-installed --constraint constraints.txt --report "$scratch/report.json" ".[rl]"

"${PYTHON:-python3}" - "$scratch/report.json" "$out" <<'PYTHON'
import json
import sys

report, out = sys.argv[1:]
with open(report, encoding="utf-8") as file:
    found = json.load(file)["install"]
lines = []
for item in found:
    name, version = item["metadata"]["name"], item["metadata"]["version"]
    hashes = item["download_info"].get("archive_info", {}).get("hashes")
    if hashes:  # the project itself has none
        lines.append(f"{name}=={version} --hash=sha256:{hashes['sha256']}\n")
with open(out, "w", encoding="utf-8") as file:
    file.writelines(sorted(lines, key=str.lower))
print(f"{out}: {len(lines)} packages")
PYTHON
