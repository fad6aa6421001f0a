"""On a machine whose encoding is not UTF-8: names, files and the report are intact, and the terminal's encoding is enough.

File names are UTF-8 (as on Windows); a text that is read or written in the machine's own encoding is an error here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from egd.runs.summaries import signed

RECIPE = """
experiment: toy2d
tasks: [moons]
denoiser: {width: 8, blocks: 1, steps: 2, batch: 16}
calibration: {samples: 32, grid: 3}
energy_network: {width: 8, layers: 1, steps: 2, batch: 8}
estimators: {größe: mse}
betas: [3]
sampler: {steps: 2}
evaluation: {samples: 20, reference: 40, draws: 200, projections: 4}
"""
SCRIPT = """
import sys, warnings
from egd.cli.main import entry
warnings.filterwarnings("error", category=EncodingWarning, module=r"(egd|rl)\\.")  # text in the machine's own encoding
for arguments in (
    ["run", "größe.yaml", "-o", "läufe", "--device", "cpu"],
    ["run", "größe.yaml", "-o", "läufe", "--device", "cpu", "--resume"],
    ["report", "fertig", "-o", "bericht", "--title", "Größe", "--reference", "bücher.csv"],
    ["run", "größe.yaml", "-o", "läufe", "--device", "cpu", "--resume", "--set", "estimators.nö=dps"],
):
    sys.argv = ["egd", *arguments]
    try:
        entry()
    except SystemExit as end:
        print(arguments[0], end.code)
"""


@pytest.mark.slow
def test_a_run_and_a_report_on_a_machine_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "größe.yaml").write_bytes(b"\xef\xbb\xbf" + RECIPE.encode())
    (tmp_path / "script.py").write_bytes(SCRIPT.encode())
    (tmp_path / "bücher.csv").write_bytes("\ufeffsource,task,method,score\r\nMüller,tür,größe,3.5\r\n".encode())
    run = tmp_path / "fertig"
    run.mkdir()
    (run / "config.yaml").write_bytes(yaml.safe_dump({"task": "tür", "seed": 0, "note": "ß"}, allow_unicode=True).encode())
    policies = {"p": {"mean": 1.0, "episodes": 3}}
    summary = {"task": "tür", "method": "größe 価", "seed": 0, "headline": "p", "policies": policies, "remarks": ["naïve"]}
    (run / "summary.json").write_bytes(json.dumps(signed(summary), ensure_ascii=False).encode())

    kept = {"PATH", "HOME", "OMP_NUM_THREADS", "TMPDIR", "VIRTUAL_ENV"}
    environment = {k: v for k, v in os.environ.items() if k in kept} | {
        "LC_ALL": "C.UTF-8",
        "EGD_STORE": "",
    }
    environment |= {"PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252", "MPLCONFIGDIR": str(tmp_path / "mpl")}
    ended = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "script.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
        timeout=300,
    )
    shown = ended.stdout.decode("cp1252") + ended.stderr.decode("cp1252")
    assert [line for line in shown.splitlines() if line.endswith((" 0", " 2", " 1")) and line.startswith("r")] == [
        "run 0", "run 0", "report 0", "run 2",
    ], shown  # fmt: skip
    assert "größe" in shown and "läufe/" in shown and "Traceback" not in shown
    names = {p.name for p in (tmp_path / "läufe" / "moons" / "seed-0" / "checkpoints").iterdir()}
    assert "energy_größe_beta3.safetensors" in names
    assert "größe:" in (tmp_path / "läufe/moons/seed-0/config.yaml").read_bytes().decode()
    page = (tmp_path / "bericht" / "index.html").read_bytes().decode()
    assert '<meta charset="utf-8">' in page and "größe 価" in page and "Müller" in page and "naïve" in page
    assert "größe 価" in (tmp_path / "bericht" / "table.md").read_bytes().decode()
    assert "größe 価" in (tmp_path / "bericht" / "scores.csv").read_bytes().decode()
