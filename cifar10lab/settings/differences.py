"""How the settings of two runs differ, and settings in words."""

from __future__ import annotations

import dataclasses

from cifar10lab.settings.experiment import FIELDS, RECORDED


def differences(config: dict[str, object], other: dict[str, object]) -> dict[str, object]:
    """The settings in `config` that differ from `other`. Absent ones have their default; 0, off and None are alike."""
    defaults = {name: FIELDS[name].default for name in RECORDED if FIELDS[name].default is not dataclasses.MISSING}
    config, other = config | defaults | config, defaults | other  # in the order of `config`
    return {name: value for name, value in config.items() if (other.get(name) or None) != (value or None)}


def describe(config: dict[str, object]) -> str:
    """{"lr": 0.01, "epochs": 15} -> "lr=0.01,epochs=15"."""
    texts = {name: str(v).removesuffix(".0") if isinstance(v, float) else v for name, v in config.items()}
    return ",".join(f"{name}={text}" for name, text in texts.items())
