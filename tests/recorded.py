"""CUDA graphs on a CPU: what is recorded is replayed operation by operation, on tensors that stay where they are."""

from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def storages(tree):
    return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}


class Recorder(TorchDispatchMode):
    """Stands for `torch.cuda.CUDAGraph`: a list of operations on tensors that stay where they are.

    As of a graph that is recorded, no number is changed by recording, neither in a tensor nor in the generator.
    """

    def __init__(self):
        super().__init__()
        self.operations, self.before = [], []

    def __enter__(self):
        self.generator = torch.get_rng_state()
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        for tensor, value in reversed(self.before):
            tensor.copy_(value)
        self.before.clear()
        torch.set_rng_state(self.generator)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert function is not torch.ops.aten._local_scalar_dense.default, "a graph cannot read numbers back"
        alters = function._schema.is_mutable
        # It also moves running statistics, which its schema does not say.
        changes = alters or function is torch.ops.aten.native_batch_norm.default
        if changes:
            changed = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            self.before += [(leaf.detach(), leaf.detach().clone()) for leaf in changed]
        found = function(*args, **kwargs)
        if alters or not storages(found) & storages((args, kwargs)):  # a view shows what its tensor becomes
            self.operations.append((function, args, kwargs, None if alters else found))
        return found

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, recorded in self.operations:
            if function is torch.ops.aten.unsqueeze_.default:
                continue  # the tensor has had its new shape since the recording
            found = function(*args, **kwargs)
            if recorded is not None:
                for old, new in zip(tree_leaves(recorded), tree_leaves(found), strict=True):
                    if isinstance(old, torch.Tensor):
                        old.copy_(new.view_as(old) if new.numel() == old.numel() else new)


class NoStream:
    def __init__(self, *_):
        pass

    def wait_stream(self, _):
        pass


def pretend(monkeypatch):
    """Let torch's interface to CUDA graphs record on the CPU."""
    monkeypatch.setattr(torch.cuda, "Stream", NoStream)
    monkeypatch.setattr(torch.cuda, "current_stream", NoStream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorder)
    monkeypatch.setattr(torch.cuda, "graph", lambda recorder, **_: recorder)
