"""A stream read by hand: ``content`` is taken from every chunk, without looking whether it is there."""

import json
import os

import requests

response = requests.post(
    f"{os.environ['HOST']}/v1beta1/{os.environ['ENDPOINT']}/chat/completions",
    headers={"Authorization": f"Bearer {os.environ['TOKEN']}", "Content-Type": "application/json"},
    json={
        "messages": [
            {"role": "system", "content": "You are a helpful medical assistant."},
            {"role": "user", "content": "How do you differentiate bacterial from viral pneumonia?"},
        ],
        "max_tokens": 1500,
        "temperature": 0,
        "stream": True,
    },
    stream=True,
    timeout=60,
)
response.raise_for_status()
pieces, done = [], False
for line in response.iter_lines():
    if not line:
        continue
    text = line.decode("utf-8").removeprefix("data: ")
    if text == "[DONE]":
        done = True
        break
    chunk = json.loads(text)
    pieces.append(chunk["choices"][0]["delta"]["content"])
print(json.dumps({"answer": "".join(pieces), "chunks": len(pieces), "done": done}))
