"""The older form: a prompt without a chat template, an image beside it, the echo of the prompt or not."""

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

prompt = "You are an expert radiologist. Describe this X-ray <start_of_image>"
instance = {
    "prompt": prompt,
    "multi_modal_data": {"image": os.environ["IMAGE_URL"]},
    "max_tokens": 24,
    "temperature": 0,
    "raw_response": True,
}
(bare,) = endpoint.predict(instances=[instance]).predictions
(echoed,) = endpoint.predict(instances=[{**instance, "raw_response": False}]).predictions
print(json.dumps({"prompt": prompt, "bare": bare, "echoed": echoed}))
