"""What one process of `test_distributed` does: every check of one world size, its findings written as JSON.

Run by ``python -m torch.distributed.run --nproc-per-node N -m tests.distributed_worker FOLDER [CHECK ...]``. Checks measure and
compare; what the numbers should be is said in `test_distributed`.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import fxenorm
from tests import (  # noqa: F401  (add their checks)
    distributed_meshes,
    distributed_objectives,
    distributed_observations,
    distributed_shards,
    distributed_training,
)
from tests.distributed_harness import CHECKS


def main(folder: Path) -> None:
    """Runs every check, or those that are named."""
    torch.set_num_threads(1)
    warnings.simplefilter("error", fxenorm.errors.FxenormWarning)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=100))
    found: dict[str, Any] = {}
    for name in sys.argv[2:] or CHECKS:
        begun = time.monotonic()
        try:
            found[name] = CHECKS[name](folder)
            found[name]["seconds"] = time.monotonic() - begun
        except Exception:
            # Others may wait for this process in vain, so the run is over.
            found[name] = {"error": traceback.format_exc()}
            break
    path = folder / f"world {dist.get_world_size()} rank {dist.get_rank()}.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    if not any("error" in result for result in found.values()):
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
