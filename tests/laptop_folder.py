"""The agent's side of the directory in which it and the services of a laptop meet."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class LaptopFolder:
    """Says what is wanted, and reads what one service answers."""

    folder: Path
    service: str

    def want(self, work: bool, within: float = 0) -> None:
        fresh = self.folder / "want.new"
        fresh.write_text(json.dumps({"work": work, "within": within, "why": "a test", "at": time.time()}))
        fresh.replace(self.folder / "want")

    @property
    def said(self) -> dict[str, Any]:
        path = self.folder / "said" / f"{self.service}.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def rests(self) -> bool:
        return self.said.get("work") is False
