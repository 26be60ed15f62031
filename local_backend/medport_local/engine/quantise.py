"""A MedGemma snapshot → another one, whose language model has int8 weights.

Every linear of the language model, its embedding and its head become int8, each output row with a float32 scale;
norms, vision tower and projector stay as they are, in bfloat16. The result is a snapshot of its own, with its own
name, sha256 and parent: nobody gets it who did not ask for it. Before it appears, it is loaded as a server would
load it and compared with its parent.

Source: Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", 2022, section 2
(symmetric, one scale a row). The activations are not quantised; see ``kernels.Int8``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from medport.errors import ConfigError, VerificationError
from medport_local.engine.assembly import canonical
from medport_local.engine.drift import MAX_PERPLEXITY_RATIO, Baseline, Drift
from medport_local.engine.int8_weights import SCALE, is_quantised
from medport_local.engine.loading import DtypeRule, Gemma, load_gemma
from medport_local.engine.shard_writer import ShardWriter
from medport_local.model_identity import INT8_FORMAT, int8_marker
from medport_local.safetensors_header import INDEX
from medport_local.snapshot import INT8_SUFFIX, MANIFEST, Snapshot, open_snapshot

NOTICE = "Derived by medport: int8 weights in place of the published ones. Check it for your purpose before use."
_LEVELS = 127
_SPARE_BYTES = 64 * 2**20

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """What was made."""

    snapshot: Snapshot
    drift: Drift


def quantise(
    source: Snapshot,
    to: Path,
    *,
    accept_drift: bool = False,
    device: str | None = None,
    progress: Progress = lambda doing, done, of: None,
) -> Quantised:
    """Write the int8 snapshot of a verified MedGemma snapshot.

    It is made in a directory beside ``to`` and renamed when all is done: what fails, or is interrupted, leaves
    nothing.

    Memory: the source's weights and at most 2 GB more; afterwards half of the source's weights and its head.

    Args:
        to: the new directory; its parent exists.
        accept_drift: write it although the perplexity on the probes rises by more than 2 %.
        device: where the two are compared, as ``devices.choose`` takes it.

    Raises:
        ConfigError: the source is no MedGemma with weights as published, ``to`` exists already or lies inside the
            source, or there is no room for it.
        VerificationError: the source changed meanwhile, or the drift is above the bound and not accepted.
    """
    _check(source, to)
    with _appearing(to) as folder:
        progress("loading", 0, 1)
        base = load_gemma(source, device=device)
        dtype: DtypeRule = "float32" if base.model.dtype == torch.float32 else "bfloat16"
        _write_weights(base, folder, progress)
        _write_small_files(source, folder)
        baseline = Baseline(base, lambda done, of: progress("reading the probes", done, of))
        del base
        made = open_snapshot(folder, defer_weights=True)
        drift = baseline.compare(
            load_gemma(made, device=device, dtype=dtype), lambda done, of: progress("comparing", done, of)
        )
        if not drift.acceptable and not accept_drift:
            raise VerificationError(
                f"the perplexity on the probes is {drift.perplexity_ratio:.3f} times that of the base, and "
                f"{MAX_PERPLEXITY_RATIO} is the most",
                field="drift",
                remedy="serve the base, or accept it with --accept-drift",
            )
        _write_manifest(source, made, drift)
    return Quantised(open_snapshot(to, defer_weights=True), drift)


def rows_to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``[out, in]`` → int8 ``[out, in]`` in -127 … 127, and float32 ``[out]``, what one step of a row is worth.

    ``weight`` and ``int8 * scale`` differ by half a scale at most. A row of zeros gets the scale 1. A scale is a
    number that bfloat16 has too, as the fast forms of ``kernels.Int8`` need it, unless it is below the smallest
    normal one.
    """
    wide = weight.float()
    exact = wide.abs().amax(dim=1) / _LEVELS
    # 1/256 off at most, so the largest of a row is 127.5 steps at most, and stays within half a step of 127.
    short = exact.to(torch.bfloat16).float()
    scale = torch.where(exact >= torch.finfo(torch.bfloat16).tiny, short, exact)
    scale = torch.where(scale > 0, scale, 1.0)
    return (wide / scale[:, None]).round().clamp(-_LEVELS, _LEVELS).to(torch.int8), scale


def _check(source: Snapshot, to: Path) -> None:
    if source.family != "medgemma":
        raise ConfigError("only MedGemma is quantised", field="from", remedy="serve MedSigLIP in bfloat16")
    if source.int8:
        raise ConfigError(
            "these weights are int8 already", field="from", remedy="give the snapshot they came from"
        )
    if os.path.lexists(to):
        raise ConfigError(f"{to} exists already", field="to", remedy="give a new directory")
    if not to.parent.is_dir():
        raise ConfigError(f"there is no directory {to.parent}", field="to", remedy="make it first")
    if to.resolve().is_relative_to(source.directory.resolve()):
        raise ConfigError("lies inside the source", field="to", remedy="give a directory beside it")
    weights = sum(source.files[name].size_bytes for name in source.shards)
    others = sum(entry.size_bytes for name, entry in source.files.items() if name not in source.shards)
    # Those of a tower stay, so half is the least; a source in float32 makes less of it.
    needed = weights // 2 + others + _SPARE_BYTES
    if shutil.disk_usage(to.parent).free < needed:
        raise _no_room(to)


def _no_room(to: Path) -> ConfigError:
    return ConfigError(f"there is no room in {to.parent}", field="to", remedy="free some, or give another place")


@contextmanager
def _appearing(to: Path) -> Iterator[Path]:
    """A directory that becomes ``to`` if all goes well, and else goes."""
    folder = to.with_name(f".{to.name}.{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        yield folder
        # A directory that appeared there meanwhile stays: only an empty one is replaced by the renaming.
        os.rename(folder, to)
    except OSError as fault:
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(to) from fault
        if fault.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise ConfigError(f"{to} exists already", field="to", remedy="give a new directory") from fault
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_weights(base: Gemma, folder: Path, progress: Progress) -> None:
    # Not "pt": transformers before 5 refuses a file of a format that it does not know.
    writer = ShardWriter(folder, {"format": INT8_FORMAT})
    named = list(base.model.named_parameters())  # one that is tied has one name here
    for done, (name, parameter) in enumerate(named):
        progress("writing", done, len(named))
        if is_quantised(canonical(name)):
            weight, scale = rows_to_int8(parameter)
            writer.add(name, weight)
            writer.add(name + SCALE, scale)
        else:
            writer.add(name, parameter.to(torch.bfloat16))
    writer.close()
    progress("writing", len(named), len(named))


def _write_small_files(source: Snapshot, folder: Path) -> None:
    for name in source.files:
        if name in source.shards or name in (INDEX, "config.json", MANIFEST):
            continue
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read(name))
    config = json.loads(source.read("config.json"))
    config["quantization_config"] = int8_marker()
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_manifest(source: Snapshot, made: Snapshot, drift: Drift) -> None:
    files = {name: made.files[name].model_dump() for name in sorted(made.files)}
    # In the form of a commit, so that it stands wherever a hub's revision does.
    lines = "".join(f"{entry['sha256']} {name}\n" for name, entry in files.items())
    manifest = {
        "repo_id": source.model_id + INT8_SUFFIX,
        "revision": hashlib.sha1(lines.encode(), usedforsecurity=False).hexdigest(),
        "family": source.family,
        "notice": f"{source.notice} {NOTICE}" if source.notice else NOTICE,
        "files": files,
        "snapshot_sha256": made.snapshot_sha256,
        "parent": {
            "model_id": source.model_id,
            "revision": source.revision,
            "snapshot_sha256": source.snapshot_sha256,
        },
        "quantisation": {
            **int8_marker(),
            "weights": "int8, symmetric, nearest, one float32 scale for each output row",
            "activations": "not quantised",
            "torch": torch.__version__,
        },
        "drift": {**asdict(drift), "perplexity_ratio": drift.perplexity_ratio},
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (made.directory / MANIFEST).write_text(text, encoding="utf-8")
