"""The whole gradient of a parameter, however a trainer has spread it."""

import contextlib

import torch


def _is_deepspeed(parameter):
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _fsdp1_modules(model):
    try:
        from torch.distributed.fsdp import FullyShardedDataParallel
    except ImportError:
        return []
    return FullyShardedDataParallel.fsdp_modules(model)


@contextlib.contextmanager
def gathered(model):
    """Within it, parameters and gradients are whole; all ranks must enter. Only FSDP 1 has to gather at once."""
    if not _fsdp1_modules(model):
        yield
        return
    from torch.distributed.fsdp import FullyShardedDataParallel

    with FullyShardedDataParallel.summon_full_params(model, with_grads=True, writeback=False):
        yield


def whole(parameter):
    """A parameter's gradient as a contiguous float tensor on the CPU; all ranks must call. None if it has none."""
    if _is_deepspeed(parameter):
        from deepspeed.utils import safe_get_full_grad

        gradient = safe_get_full_grad(parameter)
    else:
        gradient = parameter.grad
        if hasattr(gradient, "full_tensor"):  # A DTensor: FSDP 2, tensor parallelism.
            gradient = gradient.full_tensor()
    if gradient is None:
        return None
    return gradient.detach().to("cpu", torch.float32, copy=True).contiguous()


def unscale(optimizer):
    """Divides gradients by a loss scale, if one is used and nobody has."""
    scaler = getattr(optimizer, "scaler", None)
    inner = getattr(optimizer, "optimizer", optimizer)
    if scaler is None or not scaler.is_enabled():
        return
    try:
        scaler.unscale_(inner)
    except RuntimeError:
        pass  # Clipping has done so.


def _is_distributed():
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank():
    """This process's number among those that train together."""
    return torch.distributed.get_rank() if _is_distributed() else 0


def world_size():
    """How many processes train together."""
    return torch.distributed.get_world_size() if _is_distributed() else 1


def mean_over_ranks(value):
    """The mean of a number over all ranks; all must call."""
    if world_size() == 1:
        return value
    device = "cpu" if torch.distributed.get_backend() == "gloo" else torch.device("cuda", torch.cuda.current_device())
    total = torch.tensor([value], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return total.item() / world_size()
