"""What pytest must not import."""

from importlib.util import find_spec

# The GPU kernels import Triton, which not every platform has.
collect_ignore = [] if find_spec("triton") else ["fxenorm/kernels/triton_kernels.py"]
