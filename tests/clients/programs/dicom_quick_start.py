"""A radiograph in a DICOM store, named by its address: raw_predict with a bare body, read as JSON."""

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


def ask(content):
    body = {
        "messages": [
            {"role": "system", "content": "You are an expert radiologist."},
            {"role": "user", "content": content},
        ],
        "max_tokens": 60,
        "temperature": 0,
    }
    response = endpoint.raw_predict(
        body=json.dumps(body).encode("utf-8"), headers={"Content-Type": "application/json"}
    )
    response.raise_for_status()
    return response.json()


question = {"type": "text", "text": "Describe this X-ray"}
by_address = ask([question, {"type": "image_dicom", "image_dicom": {"dicom_source": os.environ["DICOM_URI"]}}])
with open(os.environ["PICTURE"], "rb") as file:
    import base64

    data = base64.b64encode(file.read()).decode()
by_bytes = ask([question, {"type": "image_bytes", "image_bytes": {"input_bytes": data}}])
missing = ask([question, {"type": "image_dicom", "image_dicom": {"dicom_source": os.environ["DICOM_URI"] + ".1"}}])
print(
    json.dumps(
        {
            "by_address": by_address["choices"][0]["message"]["content"],
            "by_bytes": by_bytes["choices"][0]["message"]["content"],
            "prompt_tokens": by_address["usage"]["prompt_tokens"],
            "missing": missing["error"]["message"],
        }
    )
)
