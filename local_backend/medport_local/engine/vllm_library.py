"""The only importer of vLLM: its classes, and requests in its form."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medport import _extras
from medport.errors import ConfigError
from medport_local.engine.sequence import GenerationRequest
from medport_local.engine.torchvision_check import IMPORT_FAULTS, check_torchvision
from medport_local.engine.vllm_options import ENVIRONMENT, LOGGING


class Library:
    """vLLM, imported.

    Importing it sets ``ENVIRONMENT`` in this process, so that the processes that it starts inherit it.

    Raises:
        ConfigError: it is not installed, or it does not fit what is.
    """

    def __init__(self) -> None:
        os.environ.update(ENVIRONMENT)
        with tempfile.TemporaryDirectory(prefix="medport-vllm-") as folder, _logging(Path(folder)):
            vllm = _import("vllm")
            self._arguments = _import("vllm.engine.arg_utils").AsyncEngineArgs
            self._engine = _import("vllm.v1.engine.async_llm").AsyncLLM
            self._inputs = _import("vllm.inputs.engine")
            self._multimodal = _import("vllm.multimodal.inputs")
            parameters = _import("vllm.sampling_params")
            platform = _import("vllm.platforms").current_platform
            self.client_error: type[Exception] = _import("vllm.exceptions").VLLMClientError
        self._parameters = parameters.SamplingParams
        self._delta = parameters.RequestOutputKind.DELTA
        self.version = str(vllm.__version__)
        self.device = f"{platform.device_type} {platform.get_device_name()}"
        self.eager = platform.device_type == "cpu"
        """Without compiling, which on a CPU needs a C++ compiler and minutes, and changes the arithmetic."""

    def start(self, options: Mapping[str, object]) -> Any:
        """An ``AsyncLLM`` that is ready. Blocks while it loads; call it in the event loop's thread."""
        with tempfile.TemporaryDirectory(prefix="medport-vllm-") as folder, _logging(Path(folder)):
            return self._engine.from_engine_args(self._arguments(**options))

    def parameters(self, options: Mapping[str, object]) -> Any:
        """``SamplingParams`` that give each token as it comes."""
        return self._parameters(**options, output_kind=self._delta)

    def prompt(
        self, request: GenerationRequest, blocks: tuple[tuple[int, int], ...], *, shared: bool, dtype: torch.dtype
    ) -> Any:
        """The request in the form that needs no more preparation: our tokens and our pixels, as they are.

        Args:
            blocks: where the soft tokens of each image begin and end (one past).
            shared: whether later requests of the tenant may find this one's work. Otherwise its images have names
                that nobody else can ask for.
            dtype: of the pixels, the model's.
        """
        salt = f"tenant {request.tenant}" if shared else None
        if not request.images:
            return self._inputs.tokens_input(list(request.tokens), cache_salt=salt)
        pixels = torch.from_numpy(np.stack(request.images)).to(dtype)  # [images, 3, size, size]
        ones = torch.ones(len(blocks), dtype=torch.int64)
        field = self._multimodal.MultiModalFieldConfig
        items = self._multimodal.MultiModalKwargsItems.from_hf_inputs(
            {"pixel_values": pixels, "num_patches": ones},
            {
                "pixel_values": field.flat_from_sizes("image", ones),
                "num_patches": field.batched("image", keep_on_cpu=True),
            },
        )
        places = [self._multimodal.PlaceholderRange(offset=start, length=end - start) for start, end in blocks]
        names = [_name(image, request.tenant) if shared else secrets.token_hex(16) for image in request.images]
        return self._inputs.mm_input(
            list(request.tokens),
            mm_kwargs=items,
            mm_hashes={"image": names},
            mm_placeholders={"image": places},
            cache_salt=salt,
        )


def _import(name: str) -> Any:
    try:
        return _extras.load(name, extra="vllm")
    except IMPORT_FAULTS as fault:
        check_torchvision()
        raise ConfigError(
            f"vLLM cannot be imported ({type(fault).__name__})",
            field="engine",
            remedy="install torchvision and torchaudio as built for this torch, or neither",
        ) from fault


class _logging:
    """Lets vLLM and its processes set up their loggers as ``LOGGING`` says; they read it from a file."""

    _KEY = "VLLM_LOGGING_CONFIG_PATH"

    def __init__(self, folder: Path) -> None:
        self._path = folder / "logging.json"

    def __enter__(self) -> None:
        self._path.write_text(json.dumps(LOGGING))
        self._before = os.environ.get(self._KEY)
        os.environ[self._KEY] = str(self._path)

    def __exit__(self, *fault: object) -> None:
        if self._before is None:
            del os.environ[self._KEY]
        else:
            os.environ[self._KEY] = self._before


def _name(image: np.ndarray[Any, Any], tenant: str) -> str:
    return hashlib.sha256(tenant.encode() + b"\0" + image.tobytes()).hexdigest()
