"""srun, sbatch, scancel and squeue as scripts that start real processes here: put their folder first in PATH."""

from __future__ import annotations

import sys
from pathlib import Path

SRUN = """
import os, signal, subprocess, sys

words, values = sys.argv[1:], {"-n": "2", "-N": "1"}
while words[0].startswith("-"):
    values[words.pop(0)] = words.pop(0)
tasks, nodes = int(values["-n"]), int(values["-N"])
local = tasks // nodes
common = {
    **os.environ,
    "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_NTASKS": values["-n"], "SLURM_STEP_NUM_TASKS": values["-n"],
    "SLURM_STEP_NUM_NODES": values["-N"], "SLURM_STEP_TASKS_PER_NODE": f"{local}(x{nodes})", "SLURM_CPUS_PER_TASK": "1",
    "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
}
children = []
for task in range(tasks):
    place = {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task % local), "SLURM_NODEID": str(task // local)}
    children.append(subprocess.Popen(words, env={**common, **place}))
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda found, frame: [child.send_signal(found) for child in children])
codes = [child.wait() for child in children]
print("task codes", *codes, file=sys.stderr)
sys.exit(max(abs(code) for code in codes))
"""

SBATCH = """
import re, subprocess, sys
from pathlib import Path

script = Path(sys.argv[-1]).read_text()
if "#SBATCH -p nosuch" in script:
    sys.exit("sbatch: error: invalid partition specified: nosuch")
out, err = (re.search(rf"#SBATCH -{key} (\\S+)", script)[1].replace("%J", "1") for key in "oe")
kept = Path(__file__).with_name(f"job-{len(list(Path(__file__).parent.glob('job-*')))}.sh")
kept.write_text(script)
with open(out, "a") as output, open(err, "a") as errors:
    job = subprocess.Popen(["bash", str(kept)], stdout=output, stderr=errors, stdin=subprocess.DEVNULL, start_new_session=True)
print(f"Submitted batch job {job.pid}")
"""

SCANCEL = """
import os, signal, sys
from pathlib import Path

for word in sys.argv[1:]:
    with Path(__file__).with_name("cancelled").open("a") as file:
        print(word, file=file)
    try:
        os.killpg(int(word), signal.SIGTERM)
    except ProcessLookupError:
        pass
"""

SQUEUE = """
import sys
from pathlib import Path

for job in sys.argv[sys.argv.index("-j") + 1].split(","):
    try:
        state = Path(f"/proc/{job}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        continue
    if state != "Z":
        print(job)
"""


def write_stubs(folder: Path) -> Path:
    """Write the four commands. Returns their folder."""
    folder.mkdir()
    for name, text in (("srun", SRUN), ("sbatch", SBATCH), ("scancel", SCANCEL), ("squeue", SQUEUE)):
        file = folder / name
        file.write_text(f"#!{sys.executable}\n{text}")
        file.chmod(0o755)
    return folder
