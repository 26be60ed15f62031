"""An X-ray with the Vertex AI SDK: once as a data URL, once as an address that the server fetches."""

import base64
import json
import os
import urllib.request

from google.cloud import aiplatform
from google.oauth2.credentials import Credentials

aiplatform.init(
    project=os.environ["PROJECT"],
    location=os.environ["LOCATION"],
    api_endpoint=os.environ["HOST"],
    api_transport="rest",
    credentials=Credentials(os.environ["TOKEN"]),
)
endpoint = aiplatform.Endpoint(os.environ["ENDPOINT"])

image_url = os.environ["IMAGE_URL"]
with urllib.request.urlopen(image_url) as file:
    data = base64.b64encode(file.read()).decode()

answers, prompt_tokens = [], []
for url in (image_url, f"data:image/png;base64,{data}"):
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "You are an expert radiologist."}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Describe this X-ray"},
                {"type": "image_url", "image_url": {"url": url}},
            ],
        },
    ]
    instances = [{"@requestFormat": "chatCompletions", "messages": messages, "max_tokens": 500, "temperature": 0}]
    completion = endpoint.predict(instances=instances).predictions
    answers.append(completion["choices"][0]["message"]["content"])
    prompt_tokens.append(completion["usage"]["prompt_tokens"])
print(json.dumps({"answers": answers, "prompt_tokens": prompt_tokens}))
