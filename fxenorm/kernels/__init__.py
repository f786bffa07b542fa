"""Executors, which read |w|^p into sums by channel and multiply weights and state in place.

In: a program of index tensors and the tensors of a model. Out: logarithms of N and P, and weights that have moved. Imports
nothing of fxenorm but `errors`; nobody else names an executor.

For users: weights are read and written by C++ kernels on CPUs, and by plain PyTorch elsewhere.

- The first `analyze` starts the system's C++ compiler in the background. The result is kept in ``~/.cache/fxenorm``. Until it is
  there, steps run in plain PyTorch. ``python -m fxenorm.kernels`` compiles ahead, for images and clusters.
- Factors are rounded to float32 for weights of 32 and 16 bits. So weights agree with ``backend="eager"`` to a few units in the
  last place. The same run gives the same bits with any number of threads.
- To repeat a run bit for bit, the speed of the compiler must not decide where kernels change. ``backend="compiled"`` and
  ``torch.use_deterministic_algorithms(True)`` wait for the compiler.
- These options are 8 to 30 times slower: ``grads=True``, ``scales="pow2"``, ``solver="gauss-seidel"``, p above 8.
- A layer larger than the last-level cache is limited by the speed of memory.
- ``backend="triton"``, for GPUs, is opt-in. It is tested under Triton's interpreter; no GPU has run or timed it yet.
"""

from .backend import BACKEND_NAMES, BackendName, get_backend, register_backend
from .cpu import executor as compiled  # the executors register themselves
from .gpu import executor as triton
from .reference import executor as eager

__all__ = ["BACKEND_NAMES", "BackendName", "compiled", "eager", "get_backend", "register_backend", "triton"]
