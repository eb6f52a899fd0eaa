"""Triton's client asks a server about one picture, in both encodings. Runs in that client's own environment; prints what came back as JSON."""

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton

url, image, token, model = sys.argv[1:]
headers = {"Authorization": f"Bearer {token}"}
client = triton.InferenceServerClient(url)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model, headers=headers)
found = {"metadata": client.get_model_metadata(model, headers=headers)}
files = np.array([Path(image).read_bytes()], dtype=np.object_)
for binary in (True, False):
    asked = triton.InferInput("files", [1], "BYTES")
    asked.set_data_from_numpy(files, binary_data=True)
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("probabilities", "decision", "sha256")]
    answer = client.infer(model, [asked], outputs=wanted, headers=headers, request_id="7")
    assert answer.get_response()["id"] == "7"
    found["binary" if binary else "json"] = {
        "probabilities": answer.as_numpy("probabilities").tolist(),
        **{name: [text.decode() if isinstance(text, bytes) else text for text in answer.as_numpy(name).tolist()] for name in ("decision", "sha256")}}
try:
    client.infer(model, [triton.InferInput("x", [1], "UINT8").set_data_from_numpy(np.zeros(1, np.uint8))], headers=headers)
except triton.InferenceServerException as e:
    found["refused"] = [e.status(), e.message()]
print(json.dumps(found))
