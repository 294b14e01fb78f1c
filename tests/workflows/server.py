"""A ComfyUI server in its own process and folder, and the few HTTP calls that the tests need."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from retrace_tests.hosts import host_python

ROOT = Path(__file__).resolve().parents[2]
PACK = "retrace"  # the folder in custom_nodes, and so the name in /extensions/<name>/

# A cold import of the host takes 10 to 40 s on two busy cores.
START_SECONDS = 240.0
RUN_SECONDS = 240.0


class RefusedError(Exception):
    """The host refused a prompt before running it; `answer` is the JSON body: "error" and "node_errors"."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(json.dumps(answer)[:2000])
        self.answer = answer

    @property
    def sentences(self) -> list[str]:
        """What the front end shows at the nodes: the details of each error."""
        nodes = self.answer.get("node_errors") or {}
        return [error["details"] or error["message"] for node in nodes.values() for error in node["errors"]]


class Outcome:
    """The history entry of one finished prompt."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.entry = entry
        self.messages = {name: data for name, data in entry["status"]["messages"]}

    @property
    def succeeded(self) -> bool:
        return "execution_success" in self.messages

    @property
    def interrupted(self) -> bool:
        return "execution_interrupted" in self.messages

    @property
    def error(self) -> dict[str, Any] | None:
        """Data of the execution_error: exception_type, exception_message, node_type."""
        return self.messages.get("execution_error")

    @property
    def cached(self) -> list[str]:
        """Ids of the nodes that did not run again."""
        return self.messages.get("execution_cached", {}).get("nodes", [])

    @property
    def seconds(self) -> float:
        """Time from start to end on the server's clock."""
        ends = ("execution_success", "execution_error", "execution_interrupted")
        end = next(self.messages[name]["timestamp"] for name in ends if name in self.messages)
        return (end - self.messages["execution_start"]["timestamp"]) / 1000.0

    def files(self, node: str, kind: str = "images") -> list[dict[str, str]]:
        """Files that an output node wrote: dicts with filename, subfolder and type."""
        return self.entry["outputs"].get(node, {}).get(kind, [])


def free_port() -> int:
    """A port on the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Server:
    """One process of a ComfyUI checkout with the pack in its custom_nodes, in a folder of its own.

    `base` is the folder for input, output and custom_nodes; made and removed by the server when None.
    """

    def __init__(self, host: Path, base: Path | None = None, pack: Path = ROOT) -> None:
        self.host = host
        self.pack = pack
        self._own_base = base is None
        self.base = Path(tempfile.mkdtemp(prefix="comfyui-")) if base is None else base
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What the host printed so far."""
        path = self.base / "server.log"
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        return re.sub(r"\x1b\[\d*m", "", text)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it answers."""
        for name in ("custom_nodes", "input", "output", "temp", "user", "models"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        link = self.base / "custom_nodes" / PACK
        if not link.exists():
            link.symlink_to(self.pack, target_is_directory=True)
        command = [host_python(), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--disable-api-nodes", "--preview-method", "latent2rgb", "--base-directory", str(self.base)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        # By default the host's database lies in its checkout, where another running host locks it.
        command += ["--database-url", f"sqlite:///{self.base / 'user' / 'comfyui.db'}"]
        with (self.base / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.host, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended with {self.process.returncode}:\n{self.log[-4000:]}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        self.stop()
        raise RuntimeError(f"ComfyUI did not answer within {START_SECONDS:.0f} s:\n{self.log[-4000:]}")

    def stop(self, keep: bool = False) -> None:
        """End the process, by its own id, and remove the folder if the server made it and it is not to be kept."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(20)
        self.process = None
        if self._own_base and not keep:
            shutil.rmtree(self.base, ignore_errors=True)

    def restart(self) -> None:
        """Go on in a fresh process, in the same folder and on the same port."""
        self.stop(keep=True)
        self.start()

    def get(self, path: str, timeout: float = 30.0) -> Any:
        """GET; JSON is decoded, anything else comes as bytes."""
        with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:
            body = answer.read()
            return json.loads(body) if "json" in answer.headers.get("Content-Type", "") else body

    def post(self, path: str, data: Any) -> Any:
        """POST JSON; returns the decoded answer, None when it is empty."""
        body = json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
            return json.loads(text) if text else None

    def object_info(self) -> dict[str, Any]:
        """Every node the host knows."""
        info: dict[str, Any] = self.get("/object_info", timeout=120)
        return info

    def submit(self, prompt: dict[str, Any], client_id: str = "") -> str:
        """Queue a prompt in API format and return its id, unless the host's validation refuses it."""
        try:
            answer = self.post("/prompt", {"prompt": prompt, **({"client_id": client_id} if client_id else {})})
        except urllib.error.HTTPError as error:
            raise RefusedError(json.loads(error.read())) from None
        if answer.get("node_errors"):
            # The host runs what is valid and reports the rest; in a test that is a refusal too.
            raise RefusedError(answer)
        return str(answer["prompt_id"])

    def wait(self, prompt_id: str, seconds: float = RUN_SECONDS) -> Outcome:
        """Wait for the end of a prompt, good or bad."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return Outcome(entry)
            if self.process is None or self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended while it ran a prompt:\n{self.log[-4000:]}")
            time.sleep(0.1)
        raise TimeoutError(f"prompt did not end within {seconds:.0f} s:\n{self.log[-4000:]}")

    def run(self, prompt: dict[str, Any], seconds: float = RUN_SECONDS) -> Outcome:
        """Queue a prompt and wait for its end."""
        return self.wait(self.submit(prompt), seconds)

    def run_afresh(self, prompt: dict[str, Any], seconds: float = RUN_SECONDS) -> Outcome:
        """Drop the host's cached results, unload its models, and run a prompt from the start."""
        for pause in (0.3, 1.0, 3.0):
            self.post("/free", {"free_memory": True, "unload_models": True})
            # The worker obeys when it next looks at its queue, and does not tell when it has.
            time.sleep(pause)
            outcome = self.run(prompt, seconds)
            if not outcome.cached:
                return outcome
        raise RuntimeError(f"ComfyUI must compute everything again, got {outcome.cached} from its cache.")

    def view(self, file: dict[str, str]) -> bytes:
        """Content of a file that an output node named."""
        body: bytes = self.get("/view?" + urllib.parse.urlencode(file))
        return body
