"""Every optimizer of this package, once, with what a program has to know to go through them all.

A row names the class, the algorithm (the name of its file in each folder of `lightning_scale.optim.backends`), the moments that
it keeps, the options that make other forms of its kernels, and what its passes read and write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_scale.optim.adamw import AdamW8bit
from lightning_scale.optim.base import OptimizerBase
from lightning_scale.optim.lamb import LAMB, LAMB8bit
from lightning_scale.optim.lars import LARS, LARS8bit
from lightning_scale.optim.sgd import SGD8bit


@dataclass(frozen=True)
class Pass:
    """One run over all elements: what it reads and writes, of w(eights), g(radients), and the moments m and v."""

    reads: str
    writes: str


@dataclass(frozen=True)
class Form:
    """Options with which an optimizer takes other kernels, or the same with other constants.

    Args:
        options: Of the constructor, beside those that every form of the optimizer has.
        passes: Where they are not the optimizer's.
    """

    options: Mapping[str, Any]
    passes: tuple[Pass, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One optimizer.

    Args:
        kind: Its class, whose name is its name.
        algorithm: The file in each backend's folder, and the function in it.
        moments: Their keys in the state.
        passes: Over all elements. A ratio needs whole norms before the first weight moves, so what is layer-wise takes two,
            unless a layer's elements stay in a cache between them; the second computes the update again, where writing and
            reading it would cost more. Moments in 8 bits are written by the last one.
        options: That the constructor needs.
        forms: By name; "" is what users get who write nothing.
    """

    kind: type[OptimizerBase]
    algorithm: str
    moments: tuple[str, ...]
    passes: tuple[Pass, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    forms: Mapping[str, Form] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.kind.__name__

    @property
    def eight_bit(self) -> bool:
        """Whether its moments are in 8 bits."""
        return self.kind._in_order

    def every_form(self) -> dict[str, dict[str, Any]]:
        """The constructor's options of each form, by name."""
        own = {"": Form({}), **self.forms}
        return {name: {**self.options, **form.options} for name, form in own.items()}

    def passes_of(self, form: str) -> tuple[Pass, ...]:
        """Of one of the forms."""
        return (self.forms[form].passes if form else ()) or self.passes


_ADAM = ("exp_avg", "exp_avg_sq")
_MOMENTUM = ("momentum_buffer",)
_LARS_FORMS = {
    "nesterov": Form({"nesterov": True, "lr_in_momentum": False}),
    "memoryless": Form({"momentum": 0.0}, (Pass("wg", ""), Pass("wg", "w"))),
    "decayed": Form({"trust_norm": "decayed_gradient", "lr_in_momentum": False}),
    "dampened": Form({"dampening": 0.3, "trust_clip": "larc", "trust_coefficient": 0.03}),
}
_LAMB_FORMS = {
    "uncorrected": Form({"bias_correction": False, "trust_ratio_clip": (0.01, 0.5)}),
    "uphill": Form({"maximize": True, "weight_norm_clip": (0.1, 2.0)}),
}

REGISTRY: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(LAMB, "lamb", _ADAM, (Pass("wgmv", "mv"), Pass("wmv", "w")), forms=_LAMB_FORMS),
        Entry(
            LARS,
            "lars",
            _MOMENTUM,
            (Pass("wg", ""), Pass("wgm", "wm")),
            {"lr": 0.1},
            {**_LARS_FORMS, "momentum": Form({"trust_norm": "momentum"}, (Pass("wgm", "m"), Pass("wm", "w")))},
        ),
        Entry(AdamW8bit, "adamw", _ADAM, (Pass("wgmv", "wmv"),), forms={"uphill": Form({"maximize": True})}),
        Entry(LAMB8bit, "lamb", _ADAM, (Pass("wgmv", ""), Pass("wgmv", "wmv")), forms=_LAMB_FORMS),
        Entry(
            LARS8bit,
            "lars",
            _MOMENTUM,
            (Pass("wg", ""), Pass("wgm", "wm")),
            {"lr": 0.1},
            {**_LARS_FORMS, "momentum": Form({"trust_norm": "momentum"}, (Pass("wgm", ""), Pass("wgm", "wm")))},
        ),
        Entry(
            SGD8bit,
            "sgd",
            _MOMENTUM,
            (Pass("wgm", "wm"),),
            forms={
                "nesterov": Form({"nesterov": True}),
                "dampened": Form({"dampening": 0.3, "maximize": True}),
                "memoryless": Form({"momentum": 0.0}, (Pass("wg", "w"),)),
            },
        ),
    )
}
