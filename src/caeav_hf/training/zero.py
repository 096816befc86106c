"""
Training with DeepSpeed, which divides the optimizer's state among processes (ZeRO stage 1).

The loop owns the steps: backward passes leave their gradients where they are, `zero_step` does the rest.
"""

from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn

from ..errors import CaeAvError
from .sharding import check_names


# DeepSpeed's own default of 5e8 numbers takes 2 GB, more than all gradients of a model here.
_BUCKET_SIZE = 50_000_000


def uses_deepspeed(accelerator: Accelerator) -> bool:
    """Whether this run trains with DeepSpeed."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def plan_deepspeed(accelerator: Accelerator, model: Any, *, batch_size: int, max_grad_norm: float | None) -> None:
    """
    Tell DeepSpeed, where it is used, what it would else read off a loader of its own, and make the model one that it
    takes. The model is on its device.

    Raises:
        CaeAvError: the configuration of Accelerate asks for another stage or for offloading, or the recipe for fp16.
    """
    if not uses_deepspeed(accelerator):
        return
    config, precision = accelerator.state.deepspeed_plugin.deepspeed_config, accelerator.mixed_precision
    zero = config["zero_optimization"]
    stage, offload = zero["stage"], (zero.get("offload_optimizer") or {}).get("device", "none")
    if stage != 1 or offload != "none":
        # Stage 2 packs gradients in the order in which they come about. Where one process pads its clips and another
        # does not, that order differs, and it adds up gradients of different parameters without a word.
        raise CaeAvError(
            "DeepSpeed needs `zero_stage: 1` and `offload_optimizer_device: none` in the configuration of Accelerate, "
            f"got {stage} and {offload}; to divide weights and gradients too, use FSDP"
        )
    if precision == "fp16":
        raise CaeAvError("`mixed_precision` fp16 is not for training with DeepSpeed; use bf16 or no")
    zero.setdefault("reduce_bucket_size", _BUCKET_SIZE)
    config |= {
        # The loop says which batch is the last of a step, and weighs them.
        "train_batch_size": batch_size * accelerator.num_processes,
        "train_micro_batch_size_per_gpu": batch_size,
        "gradient_accumulation_steps": 1,
        # Left alone, Accelerate would have it clip to 1.
        "gradient_clipping": max_grad_norm or 0.0,
        # Its own bf16 would round the weights.
        "bf16": {"enabled": False},
    }
    if precision == "bf16":
        autocast = torch.autocast(accelerator.device.type, dtype=torch.bfloat16)
        model.forward = convert_outputs_to_fp32(autocast(model.forward))
    for parameter in model.parameters():
        if not parameter.ndim:
            # It cannot send single numbers, and leaves out what is marked so.
            parameter.ds_optim_param = True
            if accelerator.num_processes > 1:
                dist.broadcast(parameter.data, src=0)


def zero_step(engine: Any) -> bool:
    """
    Take the mean of the gradients over processes, clip it, and let the optimizer step; `False` where the gradient was
    not finite and nothing was done. All processes call it.
    """
    for parameter in engine.module.parameters():
        if parameter.requires_grad and parameter.grad is None:
            # All processes have to send the same.
            parameter.grad = torch.zeros_like(parameter)
    engine.allreduce_gradients()
    engine.step()
    return engine.was_step_applied()


def zero_optimizer_state(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """What `whole_optimizer_state` gives, of DeepSpeed's optimizer. All processes call it, and get it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    # All that is trained lies end to end in one tensor, of which each process has a part.
    (group,) = optimizer.param_groups
    (part,) = group["params"]
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    state: dict[str, dict[str, Tensor]] = {}
    if part in optimizer.state:
        values = optimizer.state[part]
        divided = [key for key, value in values.items() if value.shape == part.shape]
        for name, parameter in trained.items():
            whole = {key: safe_get_full_optimizer_state(parameter, key).cpu() for key in divided}
            state[name] = {**{key: value.clone() for key, value in values.items() if key not in divided}, **whole}
    return {"state": state, "param_groups": [{**group, "params": list(trained)}]}


def load_zero_optimizer_state(model: nn.Module, optimizer: Any, saved: dict[str, Any]) -> None:
    """
    Load what `whole_optimizer_state` gave into DeepSpeed's optimizer. It counts steps for all parameters together, and
    takes the largest count.

    Raises:
        ValueError: it is that of other parameters.
    """
    from deepspeed.utils import lazy_init_hp_params_optimizer_state, safe_set_full_optimizer_state

    (group,), (saved_group,), states = optimizer.param_groups, saved["param_groups"], saved["state"]
    (part,) = group["params"]
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    check_names(trained, saved_group["params"])
    group.update({key: value for key, value in saved_group.items() if key != "params"})
    if not states:
        return
    divided = {key for values in states.values() for key in values} - {"step"}
    optimizer.state[part] = {
        "step": max(values["step"] for values in states.values()).clone(),
        **{key: torch.zeros_like(part) for key in sorted(divided)},
    }
    lazy_init_hp_params_optimizer_state(list(trained.values()), part, optimizer.state)
    for name, values in states.items():
        for key in divided & values.keys():
            safe_set_full_optimizer_state(trained[name], values[key], key)
