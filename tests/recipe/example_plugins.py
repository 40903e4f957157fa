"""Plug-ins that live outside the package."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, field_validator

from smarttrim_cli import registry


class Backbone:
    class Options(BaseModel, extra="forbid"):
        width: int = Field(64, ge=1)
        layers: list[int] = [2, 2]


class Data:
    class Options(BaseModel, extra="forbid"):
        images: int = 100


class Task:
    class Options(BaseModel, extra="forbid"):
        data: dict[str, Any]
        max_length: int | str = 16

        @field_validator("data")
        @classmethod
        def _data_is_valid(cls, value: dict[str, Any]) -> dict[str, Any]:
            registry.options("data", value)
            return value


class Trimmer:
    class Options(BaseModel, extra="forbid"):
        hidden_dim: int = 96


class NotAPlugin:
    pass


class WithPlainOptions:
    class Options:
        pass
