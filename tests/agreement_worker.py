"""What one of the two processes of `test_agreement` does: every case in turn, its findings written as JSON.

Run by ``python -m tests.agreement_worker FOLDER RANK``. The second process differs from the first in one thing at a time; what
should come of it is said in `test_agreement`. Whoever waits for the other in vain meets gloo's time-out, an error of its own.
"""

from __future__ import annotations

import datetime
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fxenorm.kernels.cpu import build
from tests import agreement_errors as errors
from tests import agreement_ways as ways

CASES = (
    ways.differences,
    ways.other_calls,
    ways.other_weights,
    ways.folded,
    ways.hooks,
    errors.injected,
    errors.before_the_writes,
    errors.in_the_middle,
    errors.collectives,
    errors.missed,
    errors.executors,
)


def main(folder: Path, rank: int, chosen: list[str]) -> None:
    """Runs every case."""
    torch.set_num_threads(1)
    build.kernels().wait()
    limit = datetime.timedelta(seconds=20)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=limit)
    found: dict[str, Any] = {}
    for case in CASES:
        if chosen and case.__name__ not in chosen:
            continue
        try:
            found[case.__name__] = case(folder)
        except BaseException:
            found[case.__name__] = {"error": traceback.format_exc()}
            break
    (folder / f"rank {rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
