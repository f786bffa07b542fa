"""The table: which tests judge a mutant of which folder, and which mutants are drawn.

The keys of `TESTS` are patterns on paths inside fxenorm/; the first that matches decides. A mutant meets the files of its row
from left to right, so the sharp and fast ones stand first; one that lives through them meets `WIDER`.
"""

from __future__ import annotations

MIDDLE = [
    "test_ties",
    "test_groups",
    "test_pairs",
    "test_describe",
    "test_why",
    "test_reprs",
    "test_serialise",
    "test_objective",
    "test_folded",
    "test_existence",
    "test_plan_numeric",
    "test_canonical",
    "test_bind",
    "test_nothing_to_do",
    "test_edge_cases",
    "test_frozen_choice",
    "test_step_and_balance",
    "test_never_half_done",
    "test_torn",
    "test_track",
    "test_attach",
    "test_left_gradients",
    "test_repeated_steps",
    "test_ordinary_object",
    "test_mixed_precision",
    "test_kinds_of_memory",
    "test_bad_input",
    "test_original_enorm",
]

TESTS: dict[str, list[str]] = {
    "symmetry/*": [
        "test_values_nobody_uses",
        "test_express",
        "test_overlay",
        "test_picked",
        "test_replay",
        "test_groups",
        "test_activations",
        "test_kept_between_calls",
        "test_account",
        "test_why",
        "test_state",
        "test_experts",
        "test_offsets",
        "test_outputs",
        "test_ties",
        "test_own_rules",
        "test_unknown_operators",
        "test_folded",
        "test_existence",
        "test_unusual_weights",
        "test_repeated_copies",
        "test_second_size",
        "test_wrapped_models",
    ],
    "field/*": [
        "test_field",
        "test_parameter_fields",
        "test_overlay",
        "test_picked",
        "test_express",
        "test_account",
        "test_experts",
        "test_groups",
    ],
    "rules/*": [
        "test_rules",
        "test_unknown_operators",
        "test_own_rules",
        "test_offsets",
        "test_experts",
        "test_operators",
        "test_random_models",
    ],
    "solve/*": [
        "test_solve",
        "test_newton",
        "test_solvers",
        "test_solver_options",
        "test_range_of_p",
        "test_deep_models",
        "test_balance_models",
    ],
    "kernels/gpu/*": ["test_triton"],
    "kernels/cpu/structures*": ["test_native_structures", "test_compiled"],
    "kernels/cpu/native/*": ["test_native_structures", "test_whole_steps", "test_compiled", "test_range_of_p", "test_momentum"],
    "kernels/*": [
        "test_kernels",
        "test_executors",
        "test_compiled",
        "test_whole_steps",
        "test_momentum",
        "test_range_of_p",
        "test_kernel_cache",
        "test_repeated_steps",
        "test_torch_defaults",
        "test_device_waits",
        "test_balance_memory",
    ],
    "verify/compared*": ["test_verify", "test_second_size"],
    "verify/*": ["test_verify"],
    "weights/shared/*": ["test_distributed"],
    "rescale/agreeing*": ["test_agreement"],
    "plan/*": MIDDLE,
    "analysis/*": MIDDLE,
    "weights/*": MIDDLE,
    "rescale/*": MIDDLE,
    "picture/*": ["test_picture"],
    "text/*": ["test_repeats", *MIDDLE],
    "optim/*": [
        "test_optim",
        "test_optim_contracts",
        "test_optim_plan",
        "test_check_optimizer",
        "test_shared_state",
        "test_sparse_gradients",
        "test_momentum",
        "test_resume",
        "test_never_half_done",
    ],
    "trace/*": [
        "test_trace",
        "test_trace_inputs",
        "test_traced_path",
        "test_reasons",
        "test_guess_several",
        "test_second_size",
        "test_state",
        "test_outputs",
        "test_calls_within",
        "test_wrapped_models",
        "test_memory",
    ],
    "distributed/*": ["test_agreement", "test_distributed"],
    "inspect/*": ["test_inspect", "test_hostile_files", "test_targets", "test_command_options"],
    "integrations/*": ["test_averages", "test_lightning", "test_integrations"],
}

# The files that call native code: a native mutant meets the tests that reach one of them.
CALL_NATIVE = ["kernels/cpu/*.py"]

# What a survivor of its own row meets: networks of every structure, drawn networks, and the measured dimension.
WIDER = ["test_structures", "test_soundness", "test_completeness"]

# How many mutants of a sample belong to which folder at least; the others share the rest.
QUOTAS = {"symmetry": 0.21, "field": 0.21}

# Files that judge no mutant, with the reason.
NOT_FOR_MUTANTS: dict[str, str] = {
    "test_collection": "runs pytest on a module of its own",
    "test_bench": "runs a measuring program",
    "test_house": "reads the sources, runs none of them",
    "test_demo": "runs a measuring program",
    "test_notebooks": "executes notebooks in kernels of their own",
    "test_package": "builds and installs the package",
    "test_readme": "runs the README, not one folder",
    "test_reference": "builds the pages of the docstrings",
    "test_house_readme": "reads names, runs nothing",
    "test_interrupted": "kills whole training runs",
    "test_mutants": "tests the campaign",
    "test_graphs": "architectures of another library: minutes",
    "test_adapters": "architectures of another library: minutes",
    "test_timm": "architectures of another library: minutes",
    "test_torchvision": "architectures of another library: minutes",
    "test_large_models": "large architectures of other libraries",
    "test_torchvision_tasks": "architectures of another library: minutes",
    "test_transformers": "architectures of another library: minutes",
}

# Files whose work is done in other processes, where nothing sees which lines a test reaches: their tests always run.
IN_OTHER_PROCESSES = [
    "test_agreement",
    "test_distributed",
    "test_hostile_files",
    "test_kernel_cache",
    "test_memory",
    "test_triton",
]
