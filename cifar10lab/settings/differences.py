"""How the settings of two runs differ, and settings in words."""

from __future__ import annotations

from cifar10lab.settings.experiment import EARLIER_VALUES


def differences(config: dict[str, object], stated: dict[str, object]) -> dict[str, object]:
    """The entries of `config` that `stated` has otherwise or not at all, if that isn't 0 or off."""
    config, stated = config | EARLIER_VALUES | config, EARLIER_VALUES | stated  # in the order of `config`
    return {name: value for name, value in config.items() if (stated.get(name) or None) != (value or None)}


def describe(config: dict[str, object]) -> str:
    """{"lr": 0.01, "epochs": 15} -> "lr=0.01,epochs=15"."""
    texts = {name: str(v).removesuffix(".0") if isinstance(v, float) else v for name, v in config.items()}
    return ",".join(f"{name}={text}" for name, text in texts.items())
