"""Embeddings in a file: whole or not at all, and nothing replaced unasked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
import typer

from medport.errors import InputError
from medport.results import Embeddings

_KINDS = (".npz", ".npy")


def check(path: Path, *, force: bool) -> None:
    """Refuse a file that could not be written, before anything is asked.

    Raises:
        InputError: it exists and ``force`` is not given.
    """
    if path.suffix not in _KINDS:
        raise typer.BadParameter("the file must end in .npz or .npy")
    if path.exists() and not force:
        raise _exists()


def write(path: Path, result: Embeddings, inputs: Sequence[str], *, force: bool) -> None:
    """Write ``.npy`` (float32 ``[n, d]``, failed rows NaN) or ``.npz``.

    The latter holds vectors, inputs (str ``[n]``), failed (positions), logit_scale, logit_bias, and notice and
    provenance (str, the second in JSON); ``numpy.load`` reads it without pickle.

    Raises:
        InputError: the file cannot be written, or exists and ``force`` is not given.
    """
    partial: str | None = None
    try:
        # Readable by its owner alone, as temporary files are: embeddings are data about patients.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
            partial = stream.name
            if path.suffix == ".npy":
                np.save(stream, result.vectors, allow_pickle=False)
            else:
                envelope = result.to_dict()
                np.savez(
                    stream, vectors=result.vectors, inputs=np.array(inputs),
                    failed=np.array(list(result.errors), int),
                    logit_scale=result.logit_scale, logit_bias=result.logit_bias, notice=envelope["notice"],
                    provenance=orjson.dumps(envelope["provenance"]).decode(),
                )  # fmt: skip
            stream.flush()
            os.fsync(stream.fileno())
        _place(partial, path, force=force)
    except FileExistsError:
        raise _exists() from None
    except OSError as fault:
        raise InputError(
            f"the file cannot be written ({type(fault).__name__})", field="output", remedy="choose another place"
        ) from fault
    finally:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)


def _place(partial: str, path: Path, *, force: bool) -> None:
    if not force:
        try:
            os.link(partial, path)  # unlike a rename this fails if the file has come to be meanwhile
            return
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if path.exists():
                raise FileExistsError from None
    os.replace(partial, path)


def _exists() -> InputError:
    return InputError("the file exists", field="output", remedy="give --force to replace it")
