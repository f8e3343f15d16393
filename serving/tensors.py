"""The bodies of the Open Inference Protocol V2: JSON, with tensors in it or in binary behind it."""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from serving.inference import FEATURES, Answer, Matrix, Question, json_object, matrix_of_columns
from urlhealth.errors import InvalidRequest

#: Where the JSON ends and the binary tensors begin.
HEADER_LENGTH: Final = "Inference-Header-Content-Length"

_DTYPES: Final = {"FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8"}


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """What is asked, and how the answer is wanted."""

    request_id: str
    #: By name: numbers in their shape, texts as a list.
    tensors: dict[str, Any]
    #: Names of the outputs wanted, and whether each is wanted in binary; None: all.
    outputs: dict[str, bool] | None
    #: Whether outputs for which nothing is said are wanted in binary.
    binary: bool


def read_request(body: bytes, header_length: str | None) -> InferRequest:
    """The request in a body; `header_length` is the value of the header `HEADER_LENGTH`.

    Raises:
        InvalidRequest: saying what is wrong, and in which tensor.
    """
    split = len(body)
    if header_length is not None:
        if not header_length.isdecimal() or int(header_length[:20]) > len(body):
            raise InvalidRequest(f"{HEADER_LENGTH} is {header_length[:80]!r}, and the body has {len(body)} bytes")
        split = int(header_length)
    said = json_object(body[:split])
    if not isinstance(said, dict) or not isinstance(said.get("inputs"), list):
        raise InvalidRequest("the body is not a JSON object with the list 'inputs'")
    binary = memoryview(body)[split:]
    tensors: dict[str, Any] = {}
    for spec in said["inputs"]:
        name, values, binary = _read_tensor(spec, binary)
        if name in tensors:
            raise InvalidRequest(f"the input {name!r} is there twice")
        tensors[name] = values
    if len(binary):
        raise InvalidRequest(f"{len(binary)} bytes follow the last tensor")
    outputs = None
    parameters = _parameters(said)
    by_default = parameters.get("binary_data_output") is True
    if said.get("outputs"):
        outputs = dict(_wanted(said["outputs"], by_default=by_default))
    return InferRequest(request_id=str(said.get("id", "")), tensors=tensors, outputs=outputs, binary=by_default)


def write_answer(answer: Answer, request: InferRequest) -> tuple[bytes, int | None]:
    """The body of the reply, and the length of its JSON where binary tensors follow.

    Raises:
        InvalidRequest: an output was asked for that the model does not have.
    """
    columns = {**answer.numbers, **answer.texts}
    wanted = dict.fromkeys(columns, request.binary) if request.outputs is None else request.outputs
    outputs, binaries = [], []
    for name, binary in wanted.items():
        if name not in columns:
            raise InvalidRequest(f"there is no output {name[:80]!r}: choose among {', '.join(columns)}")
        values = columns[name]
        text = name in answer.texts
        spec: dict[str, Any] = {"name": name, "datatype": "BYTES" if text else "FP64", "shape": [len(answer)]}
        if binary:
            data = _packed(answer.texts[name]) if text else answer.numbers[name].astype("<f8").tobytes()
            spec["parameters"] = {"binary_data_size": len(data)}
            binaries.append(data)
        else:
            spec["data"] = values if text else answer.numbers[name].tolist()
        outputs.append(spec)
    said = {"model_name": answer.model, "model_version": answer.model_version, "outputs": outputs}
    if request.request_id:
        said["id"] = request.request_id
    head = orjson.dumps(said)
    return (head + b"".join(binaries), len(head)) if binaries else (head, None)


def _parameters(said: dict[str, Any]) -> dict[str, Any]:
    parameters = said.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidRequest("'parameters' is not a JSON object")
    return parameters


def _wanted(outputs: Any, *, by_default: bool) -> Iterator[tuple[str, bool]]:
    if not isinstance(outputs, list):
        raise InvalidRequest("'outputs' is not a list")
    for spec in outputs:
        if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
            raise InvalidRequest("each of 'outputs' is an object with a 'name'")
        yield spec["name"], _parameters(spec).get("binary_data", by_default) is True


def _read_tensor(spec: Any, binary: memoryview) -> tuple[str, Any, memoryview]:
    """Name and values of a tensor, in its shape, and what follows of the binary part."""
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise InvalidRequest("each of 'inputs' is an object with a 'name'")
    name, datatype, shape = spec["name"][:80], spec.get("datatype"), spec.get("shape")
    if datatype not in ("BYTES", *_DTYPES):
        raise InvalidRequest(f"input {name!r}: the datatype must be BYTES, {', '.join(_DTYPES)}")
    if not isinstance(shape, list) or len(shape) not in (1, 2) or not all(map(_is_size, shape)):
        raise InvalidRequest(f"input {name!r}: the shape must be a list of one or two sizes")
    count = math.prod(shape)
    size_bytes = _parameters(spec).get("binary_data_size")
    if size_bytes is None:
        return name, _from_json(name, spec.get("data"), datatype, shape, count), binary
    if type(size_bytes) is not int or not 0 <= size_bytes <= len(binary):
        raise InvalidRequest(f"input {name!r}: its {str(size_bytes)[:40]} bytes are not all there")
    data, rest = binary[:size_bytes], binary[size_bytes:]
    if datatype == "BYTES":
        return name, _unpacked(name, data, count), rest
    dtype = np.dtype(_DTYPES[datatype])
    if count * dtype.itemsize != size_bytes:
        raise InvalidRequest(
            f"input {name!r}: the shape {shape} needs {count * dtype.itemsize} bytes, not {size_bytes}"
        )
    return name, np.frombuffer(data, dtype).reshape(shape), rest


def _is_size(size: Any) -> bool:
    return type(size) is int and 0 <= size < 1 << 31


def _from_json(name: str, data: Any, datatype: str, shape: list[int], count: int) -> Any:
    if not isinstance(data, list):
        raise InvalidRequest(f"input {name!r} has no data: shared memory is not supported")
    flat = data
    for _ in shape[1:]:
        if flat and all(isinstance(part, list) for part in flat):
            flat = [value for part in flat for value in part]
    if len(flat) != count:
        raise InvalidRequest(f"input {name!r}: the shape {shape} needs {count} values, not {len(flat)}")
    if datatype == "BYTES":
        return flat
    if not set(map(type, flat)) <= {float, int, type(None)}:
        raise InvalidRequest(f"input {name!r}: {datatype} data are numbers, or null where unknown")
    try:
        whole = datatype.startswith("INT") and None not in flat and float not in map(type, flat)
        return np.array(flat, dtype=np.int64 if whole else np.float64).reshape(shape)
    except OverflowError:
        raise InvalidRequest(f"input {name!r}: a number is too large") from None


def question_of(tensors: dict[str, Any]) -> Question:
    """URLs or features, as the names of the inputs say.

    Raises:
        InvalidRequest: saying what is wrong, and in which tensor.
    """
    if "url" in tensors or "features" in tensors:
        if len(tensors) > 1:
            raise InvalidRequest("send 'url' alone, 'features' alone, or features by name")
        ((name, values),) = tensors.items()
        if (name == "url") != isinstance(values, list):
            raise InvalidRequest(f"input {name!r}: the datatype must be {'BYTES' if name == 'url' else 'FP32'}")
        if isinstance(values, list):
            return values
        if values.ndim != 2 or values.shape[1] != len(FEATURES):
            raise InvalidRequest(f"input 'features': the shape must be [n, {len(FEATURES)}], not {list(values.shape)}")
        return _single(values)
    if not tensors:
        raise InvalidRequest("there is no input: send 'url', 'features', or features by name")
    columns = {}
    for name, values in tensors.items():
        if isinstance(values, list) or values.ndim not in (1, 2) or values.size != len(values):
            raise InvalidRequest(f"input {name!r}: send numbers in the shape [n], or [n, 1]")
        columns[name] = values.ravel().tolist()
    return matrix_of_columns(columns)


def entities_of(tensors: dict[str, Any]) -> dict[str, list[Any]]:
    """Values by join key.

    Raises:
        InvalidRequest: a tensor is no list of them.
    """
    for name, values in tensors.items():
        if not isinstance(values, list) and (values.ndim > 2 or values.size != len(values)):
            raise InvalidRequest(f"input {name!r}: send the values in the shape [n], or [n, 1]")
    return {name: values if isinstance(values, list) else values.ravel().tolist() for name, values in tensors.items()}


def _single(values: Any) -> Matrix:
    with np.errstate(over="ignore"):  # What does not fit is infinite, and found to be so.
        return np.asarray(values, dtype=np.float32)


def _packed(texts: Sequence[str]) -> bytes:
    parts = (text.encode() for text in texts)
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def _unpacked(name: str, data: memoryview, count: int) -> list[str]:
    texts, start = [], 0
    while start < len(data):
        if start + 4 > len(data) or start + 4 + (size := int.from_bytes(data[start : start + 4], "little")) > len(data):
            raise InvalidRequest(f"input {name!r}: its bytes break off within a text")
        try:
            texts.append(str(data[start + 4 : start + 4 + size], "utf-8"))
        except UnicodeDecodeError:
            raise InvalidRequest(f"input {name!r}: text {len(texts)} is not UTF-8") from None
        start += 4 + size
    if len(texts) != count:
        raise InvalidRequest(f"input {name!r}: its shape needs {count} texts, not {len(texts)}")
    return texts
