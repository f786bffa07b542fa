"""Many processes: which part of which tensor a process holds, and how processes agree.

In: tensors of one process, or words about its next step. Out: sums and agreements of all. Imports nothing of fxenorm but
`errors`.

Nothing here is loaded by `import fxenorm` alone, and nothing here imports torch's distributed tensors: a model that holds
some has imported them.

For users: you can call `fxenorm.analyze` before or after sharding. The training loop is the same on every process.

    plan = fxenorm.analyze(model)      # before or after fully_shard(model); of DDP, pass the wrapper
    plan.step(optimizer)               # after optimizer.step(), or once: plan.attach(optimizer)

- **DistributedDataParallel.** Replicas stay bit-identical if the plan knows of them: ``fxenorm.analyze(ddp_model)``, or
  ``plan.bind(ddp_model)`` for an older plan. They agree in one small all-reduce before each step writes.
  ``plan.step(optimizer, agree_every=10)`` does this less often. Then differences and errors are found later. Replicas use the
  compiled kernels as soon as all of them have them. With ``batchnorm="folded"`` all use the running statistics of the first
  process (one broadcast).
- **`fully_shard` (FSDP2), tensor parallelism, and both.** Parameters are DTensors placed by ``Shard`` (on any axis, also
  unevenly) or ``Replicate``, on one mesh or parts of one. Each process scales its own part of weights, gradients, optimizer
  state and tracked copies. Weights are never gathered. `step` needs less extra memory than one shard. Plain PyTorch does the
  work, whatever ``backend`` says.
- **All-reduces in a cycle of `step`:** one, of sums by channel. Some 35 in every 64th step with
  ``scales="pow2"`` or a dead band. One for each group with
  ``solver="gauss-seidel"``. One for each axis on a mesh of several axes that is not the whole world. `balance` needs one
  small all-reduce for each product of Newton's method.
- **Call on every process:** `norm`, `imbalance`, `held`, `step` and `balance` communicate. If only the process that logs calls
  them, the program hangs.
- **Errors.** Processes agree before any of them writes. An error on one is raised on all. A difference in the plan, the
  arguments, the optimizers, the tracked copies, the frozen parameters or the types of weights raises an `AgreementError` that
  names the ranks and the difference. On GPUs `step` does not wait: nothing moves, but the other processes say so at a later step.
  An error in the middle of the writes is made good by the next call or by ``plan.repair()``.
- **Checkpoints** of ``torch.distributed.checkpoint`` need nothing of fxenorm but ``handle.state_dict()``. They can be loaded on
  another number of processes.
- **Refused, with the reason:** ``FullyShardedDataParallel`` (FSDP1; use ``fully_shard``), parameters placed by ``Partial``,
  meshes of which none contains the others, the joint state of Adafactor and LBFGS on sharded parameters (``state="reset"`` or
  ``"keep"``), optimizers that step during the backward pass, and ``plan.verify`` of a sharded model (verify the whole one: equal
  fingerprints mean equal plans).

All this is tested against the run of a single process, on 1, 2 and 4 CPU processes with gloo. On GPUs with NCCL it has not run.
"""
