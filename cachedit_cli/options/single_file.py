"""A transformer in one file, as most are shared; what else the file may hold is not used.

Its configuration and the other parts come from the pipeline that `model.config` names.
"""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from ..models import ModelFiles

__all__ = ["load"]


def load(files: ModelFiles, pipeline: type[Any], given: dict[str, Any]) -> Any:
    """Load a pipeline with the transformer from one file.

    Args:
        files: The file, and the pipeline that it is of.
        pipeline: Class of the pipeline.
        given: Further arguments of ``from_pretrained``.

    Raises:
        InputError: The file holds something else.
    """
    import diffusers

    assert files.file is not None
    known = files.transformers()
    if len(known) != 1:
        raise InputError(f"model.id: {files.id}: {files.source} has {len(known)} transformers, and a file holds one")
    ((part, cls),) = known.items()
    formats = given["torch_dtype"]
    settings: dict[str, Any] = {
        "torch_dtype": formats.get(part, formats["default"]) if isinstance(formats, dict) else formats
    }
    quantization = given.get("quantization_config")
    if quantization is not None and part in quantization.quant_mapping:
        settings["quantization_config"] = quantization.quant_mapping[part]
    try:
        own = getattr(diffusers, cls).from_single_file(str(files.file), config=files.source, subfolder=part, **settings)
    except (ValueError, LookupError, RuntimeError, TypeError, AttributeError) as error:  # whatever its converters meet
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"model.id: {files.id}: does not fit the {part} of {files.source}: {reason}") from error
    return pipeline.from_pretrained(files.source, **{part: own}, **given)
