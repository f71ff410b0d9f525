"""What all parts of a scale file have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, NonNegativeInt, StringConstraints

# Names become folders, so they are kept to what every file system takes.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


Checkpoint = NonNegativeInt | Literal["last"]


class ConfigError(ValueError):
    """A scale file is wrong; the message names the key, the value and what is allowed."""


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def listed(values: Any) -> str:
    return ", ".join(str(value) for value in sorted(values, key=lambda v: (isinstance(v, str), v)))


def read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
