"""One command for a machine with a GPU: tests of the core there, and tables of memory and time.

python tools/gpu.py [--device cuda] [--out build/gpu] [--limit 275] [--short]

Nothing is installed: the Python that runs this has torch, scipy, scikit-learn, torchdiffeq and
pytest. Each stage is a process of its own with a time limit. One that fails, or is stopped, is
reported, and the next one runs. The exit status is 0 if all went well; it always ends in time.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SHARES = {"images": 0.15, "solves": 0.18, "memory": 0.27, "tests": 1.0}
"""The stages, and the most of the whole limit that each may take; the tests take what is left."""
SHORT = ("tests/core/test_reversible.py",)


class Ended(NamedTuple):
    """How a process ended: its status, `None` if it was stopped, and what it printed."""

    status: int | None
    output: str
    seconds: float


def run(command: list[str], limit: float) -> Ended:
    """Run a command, and stop it with all its children after `limit` seconds."""
    start = time.monotonic()
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=max(limit, 0))
        status: int | None = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        try:
            output, _ = process.communicate(timeout=5)  # a hung driver keeps even a killed process
        except subprocess.TimeoutExpired:
            output = ""
        status = None
    return Ended(status, output, round(time.monotonic() - start, 1))


def table(stage: str, options: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Run one stage of `benchmarks.gpu`; its table lies in a file of its own."""
    path = options.out / f"{stage}.json"
    path.unlink(missing_ok=True)  # no table of an earlier run in this one's place
    command = [sys.executable, "-m", "benchmarks.gpu", stage, "--device", options.device]
    command += ["--out", str(path), *(["--short"] if options.short else [])]
    ended = run(command, limit)
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return {
        "stage": stage,
        "result": verdict(ended.status),
        "seconds": ended.seconds,
        "rows": len(rows),
        "failed rows": sum("error" in row for row in rows),
        **({"tail": tail(ended.output)} if ended.status else {}),
    }


def tests(options: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Run the tests of the core on the device, some files at a time."""
    every = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/core/test_*.py"))
    files = list(SHORT) if options.short else every
    end = time.monotonic() + limit
    flags = ["-q", "--no-header", "-rfE", "--tb=line", "-p", "no:cacheprovider", "-m", "not slow"]

    def one(file: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "pytest", *flags, f"--device={options.device}", file]
        left = end - time.monotonic()
        if left < 1:
            return {"file": file, "result": "no time left"}
        ended = run(command, left)
        return {"file": file, "seconds": ended.seconds, **counts(ended)}

    workers = max(1, min(8, (os.cpu_count() or 1) // 2))
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(one, files))
    (options.out / "tests.json").write_text(json.dumps(found, indent=1) + "\n")
    bad = [part for part in found if part["result"] not in ("passed", "no tests")]
    return {
        "stage": "tests",
        "result": "failed" if bad else "passed",
        "seconds": round(limit - (end - time.monotonic()), 1),
        "passed": sum(part.get("passed", 0) for part in found),
        "failed": sum(part.get("failed", 0) for part in found),
        "files not passed": [f"{part['file']}: {part['result']}" for part in bad],
    }


def counts(ended: Ended) -> dict[str, Any]:
    """Read the last lines of pytest, or the progress of a run that was stopped."""
    number = {
        kind: int(count)
        for count, kind in re.findall(r"\b(\d+) (passed|failed|error|skipped)", ended.output)
    }
    if ended.status is None:  # one character a test, in lines that may end in a percentage
        progress = "".join(re.findall(r"^[.FEsxX]+", ended.output, re.MULTILINE))
        number = {"passed": progress.count("."), "failed": progress.count("F")}
    failures = re.findall(r"^(?:FAILED|ERROR) .*", ended.output, re.MULTILINE)
    found = {"result": "no tests" if ended.status == 5 else verdict(ended.status), **number}
    if failures:
        found["failures"] = [line[:300] for line in failures[:40]]
    elif ended.status not in (0, 5):
        found["tail"] = tail(ended.output)
    return found


def verdict(status: int | None) -> str:
    """Return what the status of a process says."""
    return "stopped at its limit" if status is None else "failed" if status else "passed"


def tail(output: str) -> list[str]:
    """Return the last lines of an output."""
    return output.strip().splitlines()[-8:]


def main(arguments: list[str] | None = None) -> int:
    """Run all stages within the limit and return an exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="where to run (default cuda)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="folder for JSON")
    parser.add_argument("--limit", type=float, default=275, help="seconds for everything")
    parser.add_argument("--short", action="store_true", help="tiny sizes, to rehearse")
    options = parser.parse_args(arguments)
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.limit
    stages = []
    for name, share in SHARES.items():
        limit = min(share * options.limit, end - time.monotonic())
        try:
            stage = tests(options, limit) if name == "tests" else table(name, options, limit)
        except Exception as error:  # the next stage runs, whatever happened to this one
            stage = {"stage": name, "result": f"failed: {type(error).__name__}: {error}"}
        stages.append(stage)
        print(" ".join(f"{key}={value}" for key, value in stage.items()), flush=True)
        content = {"device": options.device, "short": options.short, "stages": stages}
        (options.out / "summary.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"written to {options.out}", flush=True)
    return 0 if all(stage["result"] == "passed" for stage in stages) else 1


if __name__ == "__main__":
    sys.exit(main())
