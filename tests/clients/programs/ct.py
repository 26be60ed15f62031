"""A CT series of 85 slices: named by its address, and windowed by the caller and sent as pictures."""

import base64
import io
import json
import os
import sys

import numpy as np
import PIL.Image
import pydicom
from google.cloud import aiplatform
from google.oauth2.credentials import Credentials

aiplatform.init(
    project=os.environ["PROJECT"],
    location=os.environ["LOCATION"],
    api_endpoint=os.environ["HOST"],
    api_transport="rest",
    credentials=Credentials(os.environ["TOKEN"]),
)

INSTRUCTION = "You are reading a CT series. The slices follow in order."
QUERY = "Is there an acute finding?"
HEADERS = {"Content-Type": "application/json"}
MAX_SLICES = 85


def norm(hounsfield, low, high):
    clipped = (np.clip(hounsfield, low, high) - low) / (high - low)
    return np.round(clipped * 255).astype(np.uint8)


def windowed(hounsfield):
    """Red shows the wide window, green the soft tissues, blue the brain."""
    return np.stack([norm(hounsfield, *each) for each in ((-1024, 1024), (-135, 215), (0, 80))], axis=-1)


def ask(endpoint, content):
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 40, "temperature": 0}
    response = endpoint.raw_predict(body=json.dumps(body).encode(), headers=HEADERS, timeout=300)
    response.raise_for_status()
    return response.json()


# The server reads, orders and windows the series.
by_address = ask(
    aiplatform.Endpoint(os.environ["DICOM_ENDPOINT"]),
    [
        {"type": "text", "text": INSTRUCTION},
        {"type": "image_dicom", "image_dicom": {"dicom_source": os.environ["SERIES_URI"]}},
        {"type": "text", "text": QUERY},
    ],
)

# The caller does it, and sends pictures with "SLICE n" after each.
slices = [pydicom.dcmread(path) for path in sys.argv[1:]]
slices.sort(key=lambda each: int(each.InstanceNumber))
if len(slices) > MAX_SLICES:
    last = len(slices) - 1
    slices = [slices[round(i / MAX_SLICES * last)] for i in range(1, MAX_SLICES + 1)]
content = [{"type": "text", "text": INSTRUCTION}]
for number, each in enumerate(slices, start=1):
    hounsfield = pydicom.pixels.apply_rescale(each.pixel_array, each)
    file = io.BytesIO()
    PIL.Image.fromarray(windowed(hounsfield)).save(file, format="PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content.append({"type": "image_url", "image_url": {"url": url}})
    content.append({"type": "text", "text": f"SLICE {number}"})
content.append({"type": "text", "text": QUERY})
by_pictures = ask(aiplatform.Endpoint(os.environ["ENDPOINT"]), content)

print(
    json.dumps(
        {
            "by_address": by_address["choices"][0]["message"]["content"],
            "by_pictures": by_pictures["choices"][0]["message"]["content"],
            "prompt_tokens": [by_address["usage"]["prompt_tokens"], by_pictures["usage"]["prompt_tokens"]],
        }
    )
)
