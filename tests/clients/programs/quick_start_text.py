"""Text with the Vertex AI SDK: a medical question, with a system prompt."""

import json
import os

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

thinking = os.environ.get("THINKING") == "1"
system = "You are a helpful medical assistant."
if thinking:
    system = f"SYSTEM INSTRUCTION: think silently if needed. {system}"
messages = [
    {"role": "system", "content": system},
    {"role": "user", "content": "How do you differentiate bacterial from viral pneumonia?"},
]
instances = [
    {
        "@requestFormat": "chatCompletions",
        "messages": messages,
        "max_tokens": 2000 if thinking else 1000,
        "temperature": 0,
    }
]
response = endpoint.predict(instances=instances)
answer = response.predictions["choices"][0]["message"]["content"]
thought = None
if thinking and "<unused95>" in answer:
    thought, answer = answer.split("<unused95>", 1)
    thought = thought.replace("<unused94>thought\n", "")
print(json.dumps({"answer": answer, "thought": thought}))
