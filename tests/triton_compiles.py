"""Run by `test_triton.py` in a process of its own: compiles every kernel for a GPU; prints their names. No GPU is needed."""

from __future__ import annotations

import inspect
from typing import Any

KINDS = {
    "*i64": "tiles terms starts slots",
    "*i32": "ids positions held",
    "*fp64": "weights row_factors factors work settings parts extra rooms into ends divisors log_scales",
    "i32": "count",
}


def variants(kernels: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Kernels and the constants that they are launched with; Triton makes constants of integers that are 1."""
    shape, language = {"ROWS": 8, "COLUMNS": 256}, kernels.tl
    types = [language.float32, language.float64, language.bfloat16, language.float16]
    found: list[tuple[Any, dict[str, Any]]] = [(kernels.fill_factors, {"ENTRIES": 1024})]
    for kind in types:
        found += [(kernels.find_rooms, {"TYPE": kind, **shape}), (kernels.scale_tiles, {"TYPE": kind, **shape})]
    found.append((kernels.find_rooms, {"TYPE": types[0], "count": 1, **shape}))
    for power in (-1, 0, 1, 2, 3, 4):
        constants = {"TYPE": types[power % 4], "POWER": power, "RESCALED": power % 2 == 0, **shape}
        found.append((kernels.reduce_tiles, constants))
    for largest in (False, True):
        single = {"count": 1} if largest else {}
        found.append((kernels.combine, {"LARGEST": largest, "SEGMENTS": 16, "LANES": 64}))
        constants = {"LARGEST": largest, "FIRST": not largest, "LAST": largest, "VARIABLES": 32, "LANES": 32, **single}
        found.append((kernels.settle, constants))
    return found


def main() -> None:
    """Compiles them all."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fxenorm.kernels.gpu import kernels

    kinds = {name: kind for kind, names in KINDS.items() for name in names.split()}
    for kernel, constants in variants(kernels):
        signature = {name: "constexpr" if name in constants else kinds[name] for name in kernel.arg_names}
        if "constexprs" in inspect.signature(ASTSource).parameters:
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        else:  # Triton 3.2, of torch 2.6
            plain = {name: kind for name, kind in signature.items() if kind != "constexpr"}
            source = ASTSource(fn=kernel, signature=plain, constants=constants)
        options = {"num_warps": 4, "enable_fp_fusion": False}
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert compiled.asm["cubin"]
        print(kernel.__name__)


if __name__ == "__main__":
    main()
