"""The baseline of a space: its canonical form, and the settings that it selects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mbcl.config.components import COMPONENTS, registry_of
from mbcl.errors import ConfigError
from mbcl.orchestration.search_space.controls import Configured
from mbcl.orchestration.search_space.domains import short
from mbcl.orchestration.search_space.schema import Space, check_key
from mbcl.study.settings import fits, flatten, singled_out


def value_at(dump: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key in plain data; None if there is none."""
    value: Any = dump
    for part in key.split("."):
        value = value[part] if isinstance(value, Mapping) and part in value else None
    return value


def resolved_baseline(space: Space) -> dict[str, Any]:
    """Return the baseline with aliases replaced by canonical names: ``{sampler: {name: shuffle}}``."""
    result: dict[str, Any] = {}
    for key, value in space.baseline.items():
        part, _, parameter = key.partition(".")
        if part in COMPONENTS and parameter == "name" and isinstance(value, str):
            result[key] = registry_of(part).canonical(value)
            continue
        block = {"name": value} if key in COMPONENTS and isinstance(value, str) else value
        if key in COMPONENTS and isinstance(block, Mapping) and "name" in block:
            block = {**block, "name": registry_of(key).canonical(str(block["name"]))}
        result[key] = block
    return result


def check_baseline(space: Space, settings: Sequence[Configured]) -> str:
    """Refuse a baseline that is none of the settings.

    Returns:
        A note if the baseline is every setting; otherwise empty.

    Raises:
        ConfigError: naming the value that no setting has, and the settings' values; or if the baseline selects settings
            by keys that are not swept.
    """
    try:
        baseline = resolved_baseline(space)
    except ConfigError as error:
        raise ConfigError(f"baseline: {error}") from error
    dumps = [setting.experiment.model_dump(mode="json") for setting in settings]
    full = [flatten(dump) for dump in dumps]
    for key, value in baseline.items():
        check_key(key, space.kind, "baseline")
        if not any(fits(columns, {key: value}) for columns in full):
            existing = [short(value_at(dump, key)) for dump in dumps]
            raise ConfigError(
                f"baseline.{key}: found {short(space.baseline[key])}, which is none of the settings: "
                f"{', '.join(dict.fromkeys(existing))}"
            )
    matching = [fits(columns, baseline) for columns in full]
    if not any(matching):
        raise ConfigError(f"baseline: no setting matches all of {short(space.baseline)}")
    if baseline and all(matching) and len(matching) > 1:
        return f"baseline {short(space.baseline)} is every setting, so nothing is compared with it and none is spared"
    # The report knows only the swept keys, so they alone must select the same settings.
    columns = [setting.columns for setting in settings]
    if baseline and len(matching) > 1 and singled_out(columns, baseline) != matching:
        raise ConfigError(
            f"baseline: found {short(space.baseline)}, which settings have by what is not swept; "
            f"allowed: swept keys, which are {', '.join(space.space)}"
        )
    return ""
