"""What OpenAI's clients send and what they understand: checked requests, and the shapes of answers and of errors."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

TYPES = {
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}
# More text is no prompt of anything that runs here.
LONGEST = 1_000_000


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.code}}


class StreamOptions(BaseModel):
    include_usage: bool = False


class Asked(BaseModel):
    """What completions and chats have in common. What would change the answer and is not done here is refused."""

    model_config = ConfigDict(extra="forbid")

    model: str
    temperature: float = Field(default=1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field(default=[], max_length=4)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = 1
    presence_penalty: Literal[0] | None = 0
    frequency_penalty: Literal[0] | None = 0
    logit_bias: dict[str, float] | None = Field(default=None, max_length=0)
    # Who asked is noted nowhere.
    user: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def several(cls, value: Any) -> Any:
        return [] if value is None else [value] if isinstance(value, str) else value

    @field_validator("temperature", "top_p", "stream", mode="before")
    @classmethod
    def default(cls, value: Any, about: Any) -> Any:
        """A client may send null for what it does not set."""
        return cls.model_fields[about.field_name].default if value is None else value

    def most(self) -> int | None:
        """Tokens that are wanted; None: as many as there are."""
        raise NotImplementedError

    def asked(self) -> str | list[dict[str, str]]:
        raise NotImplementedError


class Completion(Asked):
    """A text to go on with."""

    prompt: str = Field(max_length=LONGEST)
    # OpenAI's default, which clients rely on.
    max_tokens: int | None = Field(default=16, ge=1)
    echo: Literal[False] | None = False
    best_of: Literal[1] | None = 1
    logprobs: None = None
    suffix: Literal[""] | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def one(cls, value: Any) -> Any:
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    def most(self) -> int | None:
        return self.max_tokens

    def asked(self) -> str:
        return self.prompt


class Message(BaseModel):
    """One of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str = Field(max_length=LONGEST)
    name: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def text(cls, value: Any) -> Any:
        """Content may come in parts; only text is understood."""
        if isinstance(value, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in value):
            return "".join(str(part.get("text", "")) for part in value)
        return value


class Chat(Asked):
    """A chat to go on with."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: Literal[False] | None = False

    def most(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def asked(self) -> list[dict[str, str]]:
        return [{"role": message.role, "content": message.content} for message in self.messages]


@dataclass
class Usage:
    prompt: int = 0
    completion: int = 0

    def body(self) -> dict[str, int]:
        total = self.prompt + self.completion
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total}


@dataclass
class Answer:
    """The shapes of one answer, whole or in chunks."""

    model: str
    chat: bool
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {
            "id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model,
            "choices": choices,
        }  # fmt: skip

    def _choice(self, finish: str | None, **content: Any) -> dict[str, Any]:
        return {"index": 0, "finish_reason": finish, "logprobs": None, **content}

    def whole(self, text: str, finish: str | None, usage: Usage) -> dict[str, Any]:
        content: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._body(kind, [self._choice(finish, **content)]), "usage": usage.body()}

    def chunk(self, text: str, finish: str | None, first: bool) -> dict[str, Any]:
        if not self.chat:
            return self._body("text_completion", [self._choice(finish, text=text)])
        delta = {"role": "assistant", "content": text} if first else {"content": text}
        return self._body("chat.completion.chunk", [self._choice(finish, delta=delta)])

    def end(self, usage: Usage) -> dict[str, Any]:
        """The chunk of who asked for usage."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._body(kind, []), "usage": usage.body()}
