"""What vLLM is told: its environment, its settings, and each request's sampling options. Plain Python.

Source: docs.vllm.ai, ``EngineArgs``, ``SamplingParams`` and ``vllm.envs`` of 0.32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from medport.errors import InputError
from medport.wire.chat import MAX_TOP_LOGPROBS
from medport_local.engine.sequence import Sampling
from medport_local.snapshot import Snapshot

if TYPE_CHECKING:
    from medport_local.engine.engine import EngineLimits

VllmDtype = Literal["float32", "bfloat16"]

_COLDEST = 0.01
"""vLLM computes no lower temperature, and would log a remark for each request that asks for one."""

ENVIRONMENT: Mapping[str, str] = {
    # Nobody is told that it runs, or on what.
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    # The snapshot is all there is: nothing is fetched, and no other package's code joins in.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_PLUGINS": "",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "0",
    "VLLM_SERVER_DEV_MODE": "0",
    # Its processes talk over this machine's loopback alone.
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOOPBACK_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    # A fork would copy the locks of threads that are not there in the child.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
"""Set before vLLM is imported; its processes inherit it."""

LOGGING: Mapping[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stderr"}},
    "loggers": {
        "vllm": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
        # After a crash it would print the requests of the step, a summary of their pixels included.
        "vllm.logging_utils.dump_input": {"handlers": [], "level": 60, "propagate": False},
    },
}
"""In the form of ``logging.config.dictConfig``: to stderr, and never what a request holds."""


def engine_options(
    snapshot: Snapshot, limits: EngineLimits, *, dtype: VllmDtype, eager: bool
) -> dict[str, object]:
    """Keywords of ``AsyncEngineArgs``.

    The context is what fits into the KV memory, at most the model's. Tenants take turns by priority. An image's
    tokens are never divided over two steps: each sees all of its image.
    """
    reuse = limits.reuse_bytes > 0
    return {
        "model": str(snapshot.directory),
        # Token ids go in and come out; only the image models' input code insists on a tokenizer.
        "skip_tokenizer_init": not snapshot.takes_images,
        "trust_remote_code": False,
        "load_format": "safetensors",
        "config_format": "hf",
        "dtype": dtype,
        "enforce_eager": eager,
        "max_model_len": -1,
        "max_num_seqs": limits.max_running,
        "kv_cache_memory_bytes": limits.kv_bytes,
        "enable_prefix_caching": reuse,
        "mm_processor_cache_gb": 0,
        "limit_mm_per_prompt": {"image": limits.max_images} if snapshot.takes_images else {},
        "disable_chunked_mm_input": snapshot.takes_images,
        "scheduling_policy": "priority",
        "max_logprobs": MAX_TOP_LOGPROBS,
        "logprobs_mode": "raw_logprobs",
        "enable_log_requests": False,
        "disable_log_stats": True,
    }


def sampling_options(
    sampling: Sampling, *, eos_ids: frozenset[int], vocabulary: int, room: int
) -> dict[str, object]:
    """Keywords of ``SamplingParams``.

    Which tokens end the answer is said here in full, so that vLLM's own idea of an end token does not matter. Stop
    strings and text stay with our detokenizer.

    Args:
        eos_ids: the model's end tokens.
        vocabulary: rows of the model's output; vLLM refuses ids beyond, where ours do nothing.
        room: tokens that still fit into the context.
    """
    ends = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else eos_ids)
    bias: dict[int, float] = {}
    for token, add in sampling.logit_bias:
        if 0 <= token < vocabulary:
            bias[token] = bias.get(token, 0.0) + add
    most = min(sampling.max_tokens, room)
    return {
        "max_tokens": most,
        "min_tokens": min(sampling.min_tokens, most),
        "temperature": 0.0 if sampling.greedy else max(sampling.temperature, _COLDEST),
        "top_p": sampling.top_p,
        "top_k": max(sampling.top_k, 0),
        "min_p": sampling.min_p,
        # -1 would mean none.
        "seed": None if sampling.seed is None else sampling.seed % 2**63,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "logit_bias": bias or None,
        "ignore_eos": True,
        "stop_token_ids": sorted(token for token in ends if 0 <= token < vocabulary),
        "logprobs": sampling.logprobs,
        "detokenize": False,
        "skip_clone": True,
    }


def refuse_unsupported(sampling: Sampling, adapter: str | None) -> None:
    """Refuse what does not pass through the adapter.

    Raises:
        InputError: a grammar, a LoRA adapter, or more logprobs than vLLM was told to give.
    """
    if sampling.grammar is not None:
        raise InputError(
            "this server cannot hold an answer to a format", field="response_format", remedy="leave it out"
        )
    if adapter is not None:
        raise InputError("this server has no LoRA adapters", field="model", remedy="name the base model")
    if (sampling.logprobs or 0) > MAX_TOP_LOGPROBS:
        raise InputError(
            f"is more than {MAX_TOP_LOGPROBS}", field="top_logprobs", remedy=f"ask for at most {MAX_TOP_LOGPROBS}"
        )


def likely(position: Mapping[int, Any], count: int) -> list[tuple[int, float]]:
    """The ``count`` most likely tokens and their logprobs, best first, of vLLM's logprobs of one position.

    vLLM adds the chosen token with its true rank, which need not be among them.
    """
    ranked = sorted((entry.rank, token, entry.logprob) for token, entry in position.items() if entry.rank <= count)
    return [(token, logprob) for _, token, logprob in ranked]
