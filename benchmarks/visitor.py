"""A visitor of the page of `caeav app` without a browser, who speaks the protocol of Gradio's front end over HTTP."""

import json
import secrets
from pathlib import Path
from typing import Any

import httpx


class RefusedError(Exception):
    """The page answers with an error instead of a result."""


class Visitor:
    """
    Args:
        address: The page's address.
        patience: Seconds to wait for an answer.
    """

    def __init__(self, address: str, patience: float = 120.0) -> None:
        self.address, self.session = address.rstrip("/"), secrets.token_hex(6)
        self.http = httpx.Client(base_url=f"{self.address}/gradio_api", timeout=patience, trust_env=False)
        self.config = self.http.get(f"{self.address}/config").json()
        self.components = {one["id"]: one for one in self.config["components"]}

    def __enter__(self) -> "Visitor":
        return self

    def __exit__(self, *error: Any) -> None:
        self.http.close()

    def upload(self, content: bytes, name: str) -> str:
        """Upload a file; return its path on the server."""
        answer = self.http.post("/upload", files={"files": (name, content)}, params={"upload_id": self.session})
        if answer.status_code != 200:
            raise RefusedError(f"{answer.status_code}: {answer.text[:200]}")
        return answer.json()[0]

    def file(self, path: str) -> httpx.Response:
        """Ask for a file of the server."""
        return self.http.get(f"/file={path}")

    def endpoint(self, element: str) -> dict[str, Any]:
        """Return what happens at a click on an element."""
        (number,) = (number for number, one in self.components.items() if one["props"].get("elem_id") == element)
        for one in self.config["dependencies"]:
            if [number, "click"] in [list(target) for target in one["targets"]]:
                return one
        raise RefusedError(f"nothing happens at a click on {element}")

    def click(self, element: str, values: dict[str, Any]) -> dict[str, Any]:
        """
        Click on an element with values of components, given by their element ids or labels.

        Returns:
            The last values of the components that it changes, by element id or number.

        Raises:
            RefusedError: The page answers with an error.
        """
        endpoint = self.endpoint(element)
        return self.ask(endpoint, self.values(endpoint, values))

    def ask(self, endpoint: dict[str, Any], data: list[Any]) -> dict[str, Any]:
        """Do what happens at a click with the values of all components that it reads; see [`click`]."""
        joined = self.join(endpoint["id"], data)
        if joined.status_code != 200:
            raise RefusedError(f"{joined.status_code}: {joined.text[:200]}")
        event = joined.json()["event_id"]
        found: dict[str, Any] = {}
        with self.http.stream("GET", "/queue/data", params={"session_hash": self.session}) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line[5:])
                if message.get("event_id") not in (event, None):
                    continue
                output = message.get("output") or {}
                if message["msg"] == "process_generating" and isinstance(output.get("data"), list):
                    found = self._applied(found, endpoint["outputs"], output["data"])
                elif message["msg"] == "process_completed":
                    if not message["success"]:
                        raise RefusedError(str(output.get("error")))
                    if output.get("data"):
                        found = self._applied(found, endpoint["outputs"], output["data"])
                    return found
                elif message["msg"] in ("unexpected_error", "server_stopped", "close_stream"):
                    raise RefusedError(str(message))
        raise RefusedError("the answer ended early")

    def join(self, function: Any, data: Any) -> httpx.Response:
        """Ask for a function of the page with any data."""
        request = {"data": data, "fn_index": function, "session_hash": self.session, "event_data": None}
        return self.http.post("/queue/join", json={**request, "trigger_id": None})

    def predict(self, path: str | None, name: str, **values: Any) -> dict[str, Any]:
        """Predict for an uploaded clip; return what the page shows."""
        clip = None if path is None else file_data(path, name)
        return self.click("caeav-predict", {"caeav-clip": clip, **values})

    def values(self, endpoint: dict[str, Any], values: dict[str, Any]) -> list[Any]:
        """Return the values of the components that an endpoint reads."""
        return [self._value(number, values) for number in endpoint["inputs"]]

    def choices(self, element: str) -> list[Any]:
        """Return the choices of an element."""
        (props,) = (one["props"] for one in self.components.values() if one["props"].get("elem_id") == element)
        return [choice[1] for choice in props["choices"]]

    def _value(self, number: int, values: dict[str, Any]) -> Any:
        props = self.components[number]["props"]
        for key in (props.get("elem_id"), props.get("label")):
            if key in values:
                return values[key]
        return props.get("value")

    def _applied(self, found: dict[str, Any], numbers: list[int], data: list[Any]) -> dict[str, Any]:
        found = dict(found)
        for number, value in zip(numbers, data, strict=True):
            name = self.components[number]["props"].get("elem_id") or str(number)
            # Later messages of a generator only say what differs from the one before.
            found[name] = value
        return found


def file_data(path: str, name: str) -> dict[str, Any]:
    """Return a file of the server as the front end describes it."""
    return {"path": path, "orig_name": Path(name).name, "meta": {"_type": "gradio.FileData"}}
