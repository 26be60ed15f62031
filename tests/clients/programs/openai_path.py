"""The OpenAI SDK against the endpoint: its base URL is the endpoint resource, its key the access token."""

import json
import os

import openai

client = openai.OpenAI(
    base_url=f"{os.environ['HOST']}/v1beta1/{os.environ['ENDPOINT']}", api_key=os.environ["TOKEN"]
)
messages = [
    {"role": "system", "content": "You are a helpful medical assistant."},
    {"role": "user", "content": "How do you differentiate bacterial from viral pneumonia?"},
]
completion = client.chat.completions.create(model="", messages=messages, temperature=0, max_completion_tokens=1000)
print(json.dumps({"answer": completion.choices[0].message.content}))
