"""LAMB and LARS against other people's: equal where they compute the same thing, with what differs said beside each.

LAMB. Algorithm 2 of arXiv 1904.00962 with bias correction inside u: optax does exactly this. torch_optimizer and
pytorch_optimizer multiply the learning rate by their bias correction after the ratio was taken from uncorrected moments, so
they are compared without it (the paper's version 3 has none). Both clamp the weight norm to at most 10, which the papers do not.
LARS. pytorch_optimizer and torch_optimizer keep the learning rate outside the momentum, optax puts it inside. optax divides by
the norm of g + λw (trust_norm="decayed_gradient"), the paper by ‖g‖ + λ‖w‖: the same only without decay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_scale.optim import LAMB, LARS

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
torch_optimizer = pytest.importorskip("torch_optimizer")
pytorch_optimizer = pytest.importorskip("pytorch_optimizer")

# It moved between versions of jax.
enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else pytest.importorskip("jax.experimental").enable_x64

SHAPES = [(16, 8), (8, 3, 2, 2), (8,), (1,), ()]
STEPS = 8
# The same formulas in another order of operations, eight steps long; measured on a CPU: 3e-16 and 5e-7.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6}

Step = Callable[[list[Tensor], list[Tensor], float], list[Tensor]]


def rates(constant: bool) -> list[float]:
    return [0.05] * STEPS if constant else [0.05 * (1 + step % 3) / (1 + step) for step in range(STEPS)]


def starts(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) + 0.5 for shape in SHAPES]


def gradients(step: int, dtype: torch.dtype, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [(scale * torch.randn(s, generator=generator, dtype=torch.float64)).to(dtype) for s in SHAPES]


def matrices_and_vectors(tensors: list[Any]) -> tuple[list[Any], list[Any]]:
    return [t for t in tensors if t.ndim > 1], [t for t in tensors if t.ndim <= 1]


def run_torch(make: Callable[[list[nn.Parameter]], Any], dtype: torch.dtype, lrs: list[float]) -> list[Tensor]:
    """The weights after all steps of a torch optimizer."""
    parameters = [nn.Parameter(tensor) for tensor in starts(dtype)]
    optimizer = make(parameters)
    for step, lr in enumerate(lrs):
        for parameter, gradient in zip(parameters, gradients(step, dtype), strict=True):
            parameter.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    return [p.detach() for p in parameters]


def run_optax(make: Callable[[Any], Any], dtype: torch.dtype, lrs: list[float]) -> list[Tensor]:
    """The weights after all steps of an optax transformation; `make` is given the learning rate as a schedule."""
    with enable_x64(dtype == torch.float64):
        table = jax.numpy.asarray(lrs)
        transformation = make(lambda count: table[count])
        weights = [jax.numpy.asarray(t.numpy()) for t in starts(dtype)]
        state = transformation.init(weights)
        for step in range(len(lrs)):
            now = [jax.numpy.asarray(t.numpy()) for t in gradients(step, dtype)]
            updates, state = transformation.update(now, state, weights)
            weights = optax.apply_updates(weights, updates)
        return [torch.from_numpy(np.array(w)) for w in weights]


def assert_same(got: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    for ours, theirs, start in zip(got, expected, starts(dtype), strict=True):
        assert ours.dtype == theirs.dtype == dtype
        assert not torch.allclose(ours, start, rtol=1e-3, atol=0)  # both moved
        allowed = TOLERANCE[dtype] * float(torch.maximum(theirs.abs().max(), start.abs().max()))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=allowed)


dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
schedules = pytest.mark.parametrize("constant", [True, False])


@dtypes
@schedules
@pytest.mark.parametrize(("eps", "weight_decay"), [(1e-6, 0.01), (1e-2, 0.5), (1e-8, 0.0)])
def test_lamb_is_optax_lamb(dtype: torch.dtype, constant: bool, eps: float, weight_decay: float) -> None:
    """optax.lamb: bias correction on, a ratio for every parameter (its mask is for the decay only), no clips."""
    options = {"eps": eps, "weight_decay": weight_decay}
    ours = run_torch(lambda p: LAMB(p, exclude_1d=False, betas=(0.8, 0.95), **options), dtype, rates(constant))
    theirs = run_optax(lambda lr: optax.lamb(lr, b1=0.8, b2=0.95, **options), dtype, rates(constant))
    assert_same(ours, theirs, dtype)


@dtypes
def test_lamb_with_excluded_vectors_is_optax_lamb_and_adam(dtype: torch.dtype) -> None:
    """What exclude_1d leaves of LAMB is Adam: no decay, no ratio; the same ε. (optax has 1 − β2^t in float32, where it is off
    by 3e-5 for β2 = 0.999 and t = 1, and no ratio makes up for it: so β2 is smaller here.)"""
    betas = {"b1": 0.8, "b2": 0.95}

    def make(lr: Any) -> Any:
        parts = {"lamb": optax.lamb(lr, eps=1e-3, weight_decay=0.1, **betas), "adam": optax.adam(lr, eps=1e-3, **betas)}
        return optax.multi_transform(parts, ["lamb" if len(shape) > 1 else "adam" for shape in SHAPES])

    ours = run_torch(lambda p: LAMB(p, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1), dtype, rates(False))
    assert_same(ours, run_optax(make, dtype, rates(False)), dtype)


@dtypes
def test_lamb_with_decay_masked_but_ratios_kept_is_optax_lamb_with_a_mask(dtype: torch.dtype) -> None:
    """optax's mask keeps the ratio of what it does not decay: a group with weight_decay=0 and layer_adaptation=True."""

    def make(parameters: list[nn.Parameter]) -> LAMB:
        matrices, vectors = matrices_and_vectors(parameters)
        group = {"params": vectors, "weight_decay": 0.0, "layer_adaptation": True}
        return LAMB([{"params": matrices}, group], weight_decay=0.1)

    mask = [len(shape) > 1 for shape in SHAPES]
    theirs = run_optax(lambda lr: optax.lamb(lr, weight_decay=0.1, mask=mask), dtype, rates(False))
    assert_same(run_torch(make, dtype, rates(False)), theirs, dtype)


@dtypes
@pytest.mark.parametrize("limit", [0.5, 12.0, 1e4])
def test_max_grad_norm_is_optax_clip_by_global_norm(dtype: torch.dtype, limit: float) -> None:
    """Both scale by limit/norm where the norm is larger (torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm)."""

    def make(lr: Any) -> Any:
        return optax.chain(optax.clip_by_global_norm(limit), optax.lamb(lr, eps=1e-1, weight_decay=0.1))

    options = {"eps": 1e-1, "weight_decay": 0.1, "exclude_1d": False, "max_grad_norm": limit}
    ours = run_torch(lambda p: LAMB(p, **options), dtype, rates(False))
    assert_same(ours, run_optax(make, dtype, rates(False)), dtype)


@dtypes
@schedules
@pytest.mark.parametrize("clamp", [1.0, 10.0, 1e9])
def test_lamb_is_torch_optimizer_lamb(dtype: torch.dtype, constant: bool, clamp: float) -> None:
    """torch_optimizer.Lamb with debias=False; its clamp of the weight norm, [0, 10] by default, is weight_norm_clip."""
    options = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    ours = run_torch(
        lambda p: LAMB(p, bias_correction=False, exclude_1d=False, weight_norm_clip=(0.0, clamp), **options),
        dtype,
        rates(constant),
    )
    theirs = run_torch(
        lambda p: torch_optimizer.Lamb(p, debias=False, clamp_value=clamp, **options), dtype, rates(constant)
    )
    assert_same(ours, theirs, dtype)


class PytorchOptimizerLamb(pytorch_optimizer.Lamb):  # type: ignore[misc]
    """Without the clamp of the weight norm to 10, which is a class attribute there."""

    clamp = 1e9


@schedules
@pytest.mark.parametrize(
    ("dtype", "max_grad_norm"), [(torch.float64, None), (torch.float32, None), (torch.float32, 3.0)]
)
def test_lamb_is_pytorch_optimizer_lamb(dtype: torch.dtype, constant: bool, max_grad_norm: float | None) -> None:
    """pytorch_optimizer.Lamb: adam_debias=True turns its bias correction of the step size off (it corrects the first moment
    alone), weight_decouple=False is what puts λw into u, pre_norm clips the global norm, and ε is added to ‖u‖ and to the
    global norm too, so that it is next to nothing here. The global norm is rounded to float32 whatever the gradients are."""
    options = {"betas": (0.8, 0.95), "eps": 1e-30, "weight_decay": 0.1}
    ours = run_torch(
        lambda p: LAMB(p, bias_correction=False, exclude_1d=False, max_grad_norm=max_grad_norm, **options),
        dtype,
        rates(constant),
    )
    theirs = run_torch(
        lambda p: PytorchOptimizerLamb(
            p,
            weight_decouple=False,
            adam_debias=True,
            pre_norm=max_grad_norm is not None,
            max_grad_norm=max_grad_norm or 0.0,
            **options,
        ),
        dtype,
        rates(constant),
    )
    assert_same(ours, theirs, dtype)


@dtypes
@schedules
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, False), (0.9, True), (0.0, False)])
def test_lars_is_pytorch_optimizer_lars(dtype: torch.dtype, constant: bool, momentum: float, nesterov: bool) -> None:
    """pytorch_optimizer.LARS: no ε; vectors and scalars get neither decay nor ratio, as with exclude_1d; lr is outside the
    momentum. (Where ‖g‖ is 0 it uses the ratio η/λ, and it writes into the gradients: neither is compared here.)"""
    options = {"momentum": momentum, "weight_decay": 0.1, "nesterov": nesterov, "trust_coefficient": 0.3}
    ours = run_torch(lambda p: LARS(p, 0.1, eps=0.0, lr_in_momentum=False, **options), dtype, rates(constant))
    theirs = run_torch(lambda p: pytorch_optimizer.LARS(p, **options), dtype, rates(constant))
    assert_same(ours, theirs, dtype)


@dtypes
@schedules
@pytest.mark.parametrize("eps", [1e-8, 0.5])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, False), (0.9, True), (0.0, False)])
def test_lars_is_torch_optimizer_lars(
    dtype: torch.dtype, constant: bool, momentum: float, nesterov: bool, eps: float
) -> None:
    """torch_optimizer.LARS: the paper's denominator with ε; lr is outside the momentum; what is not decayed gets no ratio,
    so vectors are in a group without decay. (Where a norm is 0 it leaves λw out: not compared here.)"""
    options = {"momentum": momentum, "nesterov": nesterov, "trust_coefficient": 0.3, "eps": eps}

    def theirs(parameters: list[nn.Parameter]) -> Any:
        matrices, vectors = matrices_and_vectors(parameters)
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        return torch_optimizer.LARS(groups, **options)

    ours = run_torch(lambda p: LARS(p, 0.1, weight_decay=0.1, lr_in_momentum=False, **options), dtype, rates(constant))
    assert_same(ours, run_torch(theirs, dtype, rates(constant)), dtype)


@dtypes
@schedules
@pytest.mark.parametrize("eps", [0.0, 1e-8, 0.5])
@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_without_decay_is_optax_lars(dtype: torch.dtype, constant: bool, nesterov: bool, eps: float) -> None:
    """optax.lars scales by lr before the momentum (lr_in_momentum=True). Its ratio has ‖g + λw‖ below the line, the paper's
    ‖g‖ + λ‖w‖, so they are one only for λ = 0."""
    options = {"momentum": 0.8, "nesterov": nesterov, "trust_coefficient": 0.3, "eps": eps}
    ours = run_torch(lambda p: LARS(p, 0.1, exclude_1d=False, **options), dtype, rates(constant))
    theirs = run_optax(lambda lr: optax.lars(lr, weight_decay=0.0, **options), dtype, rates(constant))
    assert_same(ours, theirs, dtype)


@dtypes
@schedules
@pytest.mark.parametrize("eps", [0.0, 0.5])
@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_on_the_decayed_gradient_is_optax_lars(
    dtype: torch.dtype, constant: bool, nesterov: bool, eps: float
) -> None:
    options = {"momentum": 0.8, "nesterov": nesterov, "trust_coefficient": 0.3, "eps": eps, "weight_decay": 0.2}
    ours = run_torch(
        lambda p: LARS(p, 0.1, trust_norm="decayed_gradient", exclude_1d=False, **options), dtype, rates(constant)
    )
    theirs = run_optax(lambda lr: optax.lars(lr, **options), dtype, rates(constant))
    assert_same(ours, theirs, dtype)


@dtypes
@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_with_decay_and_no_ratio_is_optax_lars_with_a_mask(dtype: torch.dtype, nesterov: bool) -> None:
    """Decay is comparable where there is no ratio: trust_ratio_mask=False is layer_adaptation=False."""
    options = {"momentum": 0.8, "nesterov": nesterov, "weight_decay": 0.2}
    ours = run_torch(
        lambda p: LARS([{"params": p, "exclude_1d": False, "layer_adaptation": False}], 0.1, **options),
        dtype,
        rates(False),
    )
    theirs = run_optax(lambda lr: optax.lars(lr, trust_ratio_mask=False, **options), dtype, rates(False))
    assert_same(ours, theirs, dtype)


@dtypes
@schedules
@pytest.mark.parametrize("coefficient", [None, 0.3])
def test_lars_by_the_norm_of_the_momentum_is_a_chain_of_optax(
    dtype: torch.dtype, constant: bool, coefficient: float | None
) -> None:
    """No library has the 2019 form as one piece; optax's pieces in the order of Algorithm 1 of arXiv 1904.00962 are it."""

    def make(lr: Any) -> Any:
        return optax.chain(
            optax.add_decayed_weights(0.1),
            optax.ema(0.8, debias=False),
            optax.scale_by_trust_ratio(trust_coefficient=1.0 if coefficient is None else coefficient),
            optax.scale_by_learning_rate(lr),
        )

    ours = run_torch(
        lambda p: LARS(
            p,
            0.1,
            momentum=0.8,
            weight_decay=0.1,
            trust_norm="momentum",
            trust_coefficient=coefficient,
            exclude_1d=False,
        ),
        dtype,
        rates(constant),
    )
    assert_same(ours, run_optax(make, dtype, rates(constant)), dtype)


@dtypes
@pytest.mark.parametrize("more", [{"nesterov": True}, {"dampening": 0.3}], ids=["nesterov", "dampening"])
def test_lars_without_ratios_is_sgd_of_torch(more: dict[str, Any], dtype: torch.dtype) -> None:
    """torch.optim.SGD keeps lr outside the momentum."""
    options: dict[str, Any] = {"momentum": 0.8, "weight_decay": 0.2, **more}
    ours = run_torch(
        lambda p: LARS(
            [{"params": p, "exclude_1d": False, "layer_adaptation": False}], 0.1, lr_in_momentum=False, **options
        ),
        dtype,
        rates(False),
    )
    assert_same(ours, run_torch(lambda p: torch.optim.SGD(p, 0.1, **options), dtype, rates(False)), dtype)


@dtypes
def test_lamb_without_ratios_is_adam_of_torch(dtype: torch.dtype) -> None:
    ours = run_torch(
        lambda p: LAMB([{"params": p, "layer_adaptation": False}], weight_decay=0.0, eps=1e-2), dtype, rates(False)
    )
    assert_same(ours, run_torch(lambda p: torch.optim.Adam(p, eps=1e-2), dtype, rates(False)), dtype)
