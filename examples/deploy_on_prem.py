"""Deploy on this machine with Google's client for Vertex AI, unmodified: python examples/deploy_on_prem.py FILE"""

import json
import os
import subprocess
import sys
import tempfile

from google.cloud import aiplatform
from google.oauth2.credentials import Credentials

import medport
from medport_local import phantom

PROJECT, LOCATION, KEY = "radiology", "europe-west4", "a-key-of-your-own"
MANIFEST = json.loads((phantom.weights_dir("medgemma") / "manifest.json").read_text())
PINS = {"MODEL_ID": MANIFEST["repo_id"], "MEDPORT_SNAPSHOT_SHA256": MANIFEST["snapshot_sha256"]}


def deploy(url: str, ca_file: str, image: str) -> None:
    os.environ["REQUESTS_CA_BUNDLE"] = ca_file  # whom Google's client trusts
    aiplatform.init(
        project=PROJECT,
        location=LOCATION,
        api_endpoint=url,
        api_transport="rest",
        credentials=Credentials(token=KEY),
    )
    model = aiplatform.Model.upload(
        model_id="reader",
        display_name="reader",
        serving_container_image_uri="medport",  # this server is the container; the pins say which weights
        serving_container_environment_variables=PINS,
    )
    endpoint = aiplatform.Endpoint.create(
        endpoint_id="chest", display_name="chest", dedicated_endpoint_enabled=True
    )
    endpoint.deploy(model, deployed_model_display_name="reader", machine_type="g2-standard-24")

    with medport.Client(
        backend="local", url=url, ca_file=ca_file, api_key=KEY, medgemma=endpoint.resource_name
    ) as client:
        answer = client.chat("Describe this chest radiograph.", images=image)
    print(answer)
    print("answered by", answer.provenance.endpoint, answer.provenance.snapshot_sha256)

    endpoint.undeploy_all()
    endpoint.delete()
    model.delete()


with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "medport_local.cli", "serve", "--json", "--port", "0"]
    command += ["--control-plane", f"{folder}/plane", "--project", PROJECT, "--location", LOCATION]
    command += ["--tls-self-signed", f"{folder}/tls", "--api-key-env", "PLANE_KEY"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PLANE_KEY": KEY}) as server:
        try:
            ready = json.loads(server.stdout.readline())
            deploy(ready["url"], ready["ca_file"], sys.argv[1])
        finally:
            server.terminate()
