"""Compare the recorded results with what the code computes, by a tiny run of every experiment.

python tools/records.py [ID ...]

A record without a tiny run gets one. Where numbers moved, the record says which, and so does the
ledger: run the experiment anew, or undo what moved them.
"""

import sys
import time

from companion import records
from companion.experiments import find
from companion.experiments.freshness import checked, tiny
from companion.listing import entries


def main(ids: list[str]) -> int:
    """Check the records of these experiments, or of all, and return the exit status."""
    status = 0
    for id in ids or entries():
        entry, start = find(id), time.process_time()
        now = tiny(entry)
        seconds = time.process_time() - start
        for tier in (tier for name, tier in records.names() if name == id):
            recorded = records.load(id, tier)
            assert recorded is not None
            result = checked(recorded, entry, now)
            if result != recorded:
                result.save(records.folder() / f"{id}.{tier}.json")
            said = f"moved: {', '.join(result.moved)}" if result.moved else "current"
            print(f"{id}.{tier} {said} ({seconds:.1f} s)", flush=True)
            status = max(status, bool(result.moved))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
