"""A model in one file: the transformer alone, as most are shared, or a whole pipeline.

The other parts, and the configuration of those in the file, come from the pipeline that `model.config` names.
"""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from ..models import ModelFiles, tensor_shapes

__all__ = ["load"]

# How the names of other parts than the transformer begin in files that hold more than that.
_OTHERS = ("vae.", "first_stage_model.", "text_encoder", "conditioner.", "cond_stage_model.")


def load(files: ModelFiles, pipeline: type[Any], given: dict[str, Any]) -> Any:
    """Load a pipeline with the transformer, or all parts, from one file.

    Args:
        files: The file, and the pipeline that it is of.
        pipeline: Class of the pipeline.
        given: Further arguments of ``from_pretrained``.

    Raises:
        InputError: The file holds something else.
    """
    import diffusers

    assert files.file is not None
    names = tensor_shapes(files.file) if files.file.suffix in (".safetensors", ".sft") else {}
    if any(name.startswith(_OTHERS) for name in names):
        return pipeline.from_single_file(str(files.file), config=files.source, **given)
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
