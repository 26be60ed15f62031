"""Nothing of a patient reaches a log, an error, a printed line or a file that nobody asked for."""

from __future__ import annotations

import json
import os
import re
import ssl
from pathlib import Path

import httpx
import numpy as np
import pytest
from support import forked

import medport
from medport_local.phantom import draw, files

NAME, PROMPT, KEY = "CANARY-Name", "CANARY-Prompt", "CANARY-Key-7788"


@pytest.mark.parametrize("reuse", ["0", "64MiB"])
def test_no_canary_leaves_a_trace_on_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reuse: str
) -> None:
    caplog.set_level("DEBUG")
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    rng = np.random.default_rng(3)
    image = files.write_dicom(tmp_path / f"{NAME}.dcm", draw.render(draw.sample(rng), rng, 128).pixels)
    command = [
        "medport.cli", "serve", "--port", "0", "--json", "--api-key-env", "CANARY_KEY",
        "--tls-self-signed", str(tmp_path / "tls"), "--reuse", reuse,
    ]  # fmt: skip
    environment = {**os.environ, "CANARY_KEY": KEY, "TMPDIR": str(scratch)}
    said: list[str] = []
    with forked.Process(*command, env=environment) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        ready = json.loads(line)
        with medport.Client(url=ready["url"], ca_file=ready["ca_file"], api_key=KEY) as client:
            client.chat(f"{PROMPT}?", images=image, max_tokens=8)
            with client.chat_stream(f"{PROMPT}?", max_tokens=8) as stream:
                next(stream)
            client.classify(image, [PROMPT, "pneumothorax"])
            for bad in (
                lambda: client.chat(f"{PROMPT} " * 5_000),
                lambda: client.chat([{"role": "assistant", "content": PROMPT}]),
                lambda: client.chat(PROMPT, images=f"https://example.org/{NAME}.png"),
            ):
                with pytest.raises(medport.MedportError) as caught:
                    bad()
                said += [str(caught.value), repr(caught.value)]
        trusting = ssl.create_default_context(cafile=ready["ca_file"])
        with httpx.Client(
            base_url=ready["url"], verify=trusting, headers={"Authorization": f"Bearer {KEY}"}
        ) as http:
            asked = {"messages": [{"role": "user", "content": f"{PROMPT}, twice"}], "max_tokens": 8, "n": 2}
            for _ in range(2):
                assert http.post("/v1/chat/completions", json=asked, timeout=60).status_code == 200
            adapter = http.post("/v1/chat/completions", json={**asked, "model": "medgemma+CANARY-adapter"})
            assert adapter.status_code == 400
            metrics = http.get("/metrics").text
        said += [adapter.text, metrics]
        stranger = medport.Client(url=ready["url"], ca_file=ready["ca_file"], api_key="CANARY-Wrong")
        with stranger, pytest.raises(medport.AuthError) as refused:
            stranger.chat(PROMPT)
        said.append(str(refused.value))
        server.terminate()
        said += [line, *server.communicate(timeout=30), caplog.text]

    everything = "\n".join(said)
    assert "POST" in everything, "the access log is among what was searched"
    (used,) = re.findall(r'^medport_reuse_used_bytes\{model="medgemma"\} (\S+)$', metrics, re.M)
    assert (float(used) > 0) == (reuse != "0"), "kept, where the operator asked for it, and nowhere else"
    assert "CANARY" not in everything
    assert [p for p in scratch.rglob("*") if p.is_file()] == []
