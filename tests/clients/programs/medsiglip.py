"""MedSigLIP: texts and images from three places, scored zero-shot, and compared with the model run right here."""

import base64
import json
import math
import os

import numpy as np
import PIL.Image
import torch
import transformers
from google.cloud import aiplatform
from google.oauth2.credentials import Credentials
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

aiplatform.init(
    project=os.environ["PROJECT"],
    location=os.environ["LOCATION"],
    api_endpoint=os.environ["HOST"],
    api_transport="rest",
    credentials=Credentials(os.environ["TOKEN"]),
)
endpoint = aiplatform.Endpoint(os.environ["ENDPOINT"])

TEXTS = ["a chest X-ray with a nodule", "a chest X-ray with normal lungs"]
with open(os.environ["PICTURE"], "rb") as file:
    data = base64.b64encode(file.read()).decode()
instances = [
    *({"text": text} for text in TEXTS),
    {"image": {"input_bytes": data}},
    {"image": {"gcs_uri": os.environ["GCS_URI"]}},
    {"image": {"dicomweb_uri": os.environ["DICOM_URI"]}},
]
predictions = endpoint.predict(instances=instances).predictions
served = np.array([each["embedding"] for each in predictions])

# softmax over exp(temperature) · cosine + bias, as the model's own head computes it
temperature, bias = predictions[0]["model_temperature"], predictions[0]["model_bias"]
logits = math.exp(temperature) * served[2:] @ served[:2].T + bias
exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
shares = exponents / exponents.sum(axis=1, keepdims=True)

snapshot = os.environ["SNAPSHOT"]
model = transformers.SiglipModel.from_pretrained(snapshot, dtype=torch.float32).eval()
tokenizer = transformers.SiglipTokenizer.from_pretrained(snapshot)
processor = SiglipImageProcessorPil.from_pretrained(snapshot)
files = [os.environ["PICTURE"], os.environ["PICTURE"], os.environ["RADIOGRAPH"]]
images = [PIL.Image.open(path).convert("RGB") for path in files]
with torch.inference_mode():
    # The model was trained without an attention mask: padding is part of a text.
    tokens = tokenizer(TEXTS, padding="max_length", max_length=64, truncation=True, return_tensors="pt")
    here = model(
        input_ids=tokens.input_ids,
        pixel_values=processor(images=images, return_tensors="pt").pixel_values,
    )
own = torch.cat([here.text_embeds, here.image_embeds]).numpy()
cosines = (served * own).sum(axis=1) / np.linalg.norm(served, axis=1) / np.linalg.norm(own, axis=1)
print(
    json.dumps(
        {
            "cosines": cosines.tolist(),
            "shares": shares.tolist(),
            "own_shares": here.logits_per_image.softmax(dim=1).tolist(),
        }
    )
)
