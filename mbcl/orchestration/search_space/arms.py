"""The settings of a space without their nuisance keys, called arms: each is tuned over equally many candidates."""

from __future__ import annotations

from collections.abc import Sequence

from mbcl.errors import ConfigError, pluralize
from mbcl.orchestration.search_space.controls import Configured
from mbcl.study.settings import labels


def check_arms(settings: Sequence[Configured]) -> dict[str, int]:
    """Number the arms of all settings, by their text, in the order of their first settings.

    Raises:
        ConfigError: if arms have different numbers of candidates, or one candidate each.
    """
    first: dict[str, Configured] = {}
    counts: dict[str, int] = {}
    for setting in settings:
        first.setdefault(setting.arm, setting)
        counts[setting.arm] = counts.get(setting.arm, 0) + 1
    names = labels([setting.columns_of_arm for setting in first.values()])
    numbers = [f"{name} {count}" for name, count in zip(names, counts.values(), strict=True)]
    if len(set(counts.values())) > 1:
        raise ConfigError(
            f"nuisance: settings have unequal numbers of candidates ({', '.join(numbers)}); allowed: equal numbers, as "
            "keys give that every setting has, or that are tied to one by same_as"
        )
    if settings and min(counts.values()) == 1:
        raise ConfigError(
            f"nuisance.keys: {pluralize(len(counts), 'setting')} {'has' if len(counts) == 1 else 'have'} one candidate "
            "each, so there is nothing to choose; allowed: several values"
        )
    return {arm: number for number, arm in enumerate(first)}
