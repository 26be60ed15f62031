"""Patches of a whole slide in a bucket: the server cuts them out of the level that is asked for."""

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

SIDE = 448


def ask(image):
    content = [
        {"type": "text", "text": "These patches are from one slide."},
        {"type": "image_gcs", "image_gcs": {"gcs_source": os.environ["SLIDE_URI"], **image}},
        {"type": "text", "text": "What tissue is this?"},
    ]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 40, "temperature": 0}
    response = endpoint.raw_predict(
        body=json.dumps(body).encode(), headers={"Content-Type": "application/json"}, timeout=300
    )
    response.raise_for_status()
    return response.json()


def patches(across, down):
    return [
        {"x_origin": x * SIDE, "y_origin": y * SIDE, "width": SIDE, "height": SIDE}
        for y in range(down)
        for x in range(across)
    ]


eight = ask({"patch_coordinates_list": patches(4, 2)})
one = ask({"patch_coordinates_list": patches(1, 1)})
level = ask(
    {
        "openslide_pyramid_level": {"index": 1},
        "patch_coordinates_list": [{"x_origin": 0, "y_origin": 0, "width": 256, "height": 256}],
    }
)
outside = ask({"patch_coordinates_list": [{"x_origin": 4000, "y_origin": 0, "width": SIDE, "height": SIDE}]})
print(
    json.dumps(
        {
            "answers": [each["choices"][0]["message"]["content"] for each in (eight, one, level)],
            "prompt_tokens": [each["usage"]["prompt_tokens"] for each in (eight, one, level)],
            "outside": outside["error"]["message"],
        }
    )
)
