"""Which language models are served, how many of each and where: checked before anything is deployed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ray_jobs import afar, guests
from ray_jobs.command import JobError, mistakes
from ray_jobs.library import code_hash

# The application in Serve, and where its paths begin.
APP = "llm"
ROUTE = f"/{APP}"
# A chat is put to a model that was not trained for it as its messages, a line each.
PLAIN = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def _named(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?", name):
        raise ValueError("letters, digits, dot, dash and underscore, and one slash at most")
    return name


class Checked(BaseModel):
    """A name that is not known is a mistake, not a hint."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Replicas(Checked):
    """How many there are: always `min`, up to `max` while requests wait."""

    min: int = Field(ge=1, le=1000)
    max: int = Field(ge=1, le=1000)

    @model_validator(mode="after")
    def ordered(self) -> Replicas:
        if self.min > self.max:
            raise ValueError(f"min={self.min} is more than max={self.max}")
        return self


class Model(Checked):
    """A model: where its weights are, what it may take, what one request may take of it."""

    name: Annotated[str, AfterValidator(_named)]
    path: str = Field(default="", description="folder on the shared storage, as from_pretrained loads it")
    hub: str = Field(default="", description="or the model's id at the hub")
    replicas: Replicas = Replicas(min=1, max=1)
    cpus: int = Field(default=1, ge=1, le=256, description="of each replica")
    gpus: int = Field(default=0, ge=0, le=64, description="of each replica; engine vllm only")
    queue: int = Field(default=32, ge=0, le=10_000, description="requests that wait when all replicas are full")
    batch: int = Field(default=8, ge=1, le=512, description="requests that a replica works on at once")
    max_tokens: int = Field(default=256, ge=1, le=131_072, description="the most that one request gets")
    seconds: float = Field(default=60, gt=0, le=3600, description="the longest that one request takes")
    chat: str = Field(default="plain", description="plain, template (the model's own), or a template in Jinja")
    engine: Literal["transformers", "vllm"] = "transformers"
    labels: dict[str, str] = Field(default={}, description="of the nodes that it may run on")

    @field_validator("replicas", mode="before")
    @classmethod
    def number(cls, value: Any) -> Any:
        """A number is as many, always."""
        return {"min": value, "max": value} if isinstance(value, int) else value

    @field_validator("chat")
    @classmethod
    def known(cls, value: str) -> str:
        if value not in ("plain", "template") and "{" not in value:
            raise ValueError("plain, template, or a template in Jinja, as {{ messages[0]['content'] }}")
        return value

    @model_validator(mode="after")
    def fits(self) -> Model:
        if bool(self.path) == bool(self.hub):
            raise ValueError(f"{self.name}: give either path, a folder, or hub, an id")
        if self.path and not self.path.startswith("/"):
            raise ValueError(f"{self.name}: path={self.path} must be absolute: it is looked for on other hosts")
        if self.engine == "vllm" and not self.gpus:
            raise ValueError(f"{self.name}: engine vllm needs gpus=1 or more")
        if self.engine == "transformers" and self.gpus:
            raise ValueError(f"{self.name}: engine transformers uses CPUs only; gpus={self.gpus} needs engine=vllm")
        if self.labels.get("node") == "head":
            raise ValueError(f"{self.name}: labels: models never run on the head")
        return self

    @property
    def source(self) -> str:
        return self.path or self.hub

    @property
    def deployment(self) -> str:
        """Its name in Serve, where slashes mean something else."""
        return f"model-{self.name.replace('/', '--')}"

    @property
    def most(self) -> int:
        """Requests that are there at once before the next is refused."""
        return self.replicas.max * self.batch + self.queue

    def scale(self) -> dict[str, Any]:
        """How many replicas, as Serve takes it."""
        if self.replicas.min == self.replicas.max:
            return {"num_replicas": self.replicas.min}
        return {
            "autoscaling_config": {
                "min_replicas": self.replicas.min,
                "max_replicas": self.replicas.max,
                "target_ongoing_requests": self.batch,
            }
        }

    def place(self) -> dict[str, str]:
        """The labels of nodes: servers that are not the head, unless it says otherwise."""
        return {**afar.SERVER, **self.labels, "node": self.labels.get("node", afar.SERVER["node"])}

    def actor(self) -> dict[str, Any]:
        """What a replica takes of its node. Laptops offer no CPUs but a resource of their own (guests.py)."""
        if self.labels.get("class") == guests.LAPTOP:
            return {"num_cpus": 0, "resources": {guests.LAPTOP: self.cpus}, "label_selector": self.place()}
        return {"num_cpus": self.cpus, "label_selector": self.place()}


class Config(Checked):
    """All that one application serves."""

    models: list[Model] = Field(min_length=1, max_length=100)

    @model_validator(mode="after")
    def once(self) -> Config:
        names = [model.deployment for model in self.models]
        if twice := sorted({name.removeprefix("model-") for name in names if names.count(name) > 1}):
            raise ValueError(f"the same name twice: {', '.join(twice)}")
        if len(engines := sorted({model.engine for model in self.models})) > 1:
            raise ValueError(f"one application has one engine, not {' and '.join(engines)}: leave one kind out")
        return self

    @property
    def digest(self) -> str:
        """All this with the code that serves it, as one word."""
        return hashlib.sha256(f"{code_hash()} {self.model_dump_json()}".encode()).hexdigest()[:12]


def check(values: Mapping[str, Any]) -> Config:
    """The configuration, or one line that says what is wrong with it."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise JobError(mistakes(error)) from error
