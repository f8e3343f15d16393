"""Models as files: what may be loaded, and whether it is what was registered. Nothing of them is ever run."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from urlhealth.errors import ModelMismatch
from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names
from urlhealth.prediction.estimators import HealthForecaster, difference

#: Classes that a saved model may consist of, beside NumPy arrays and plain values. A file with any other is refused.
TRUSTED_TYPES: Final = (
    "urlhealth.prediction.estimators.Forest",
    "urlhealth.prediction.estimators.HealthForecaster",
    "urlhealth.prediction.estimators.LogitMean",
)


def load_forecaster(folder: Path) -> HealthForecaster:
    """The forecaster in a local MLflow model folder; raises as :func:`skops_file` and :func:`read_forecaster` do."""
    return read_forecaster(skops_file(folder))


def require_digest(folder: Path, digest: str | None) -> None:
    """Make sure that the model in a local MLflow model folder is the one that was registered.

    Args:
        digest: what :func:`digest_of` gave when it was registered; None where that was not noted.

    Raises:
        ModelMismatch: it is another.
        OSError: it cannot be read (now).
    """
    if digest is not None and digest_of(folder) != digest:
        raise ModelMismatch(
            f"{skops_file(folder)} is not what was registered: its digest is another. Restore it, or train anew"
        )


def digest_of(folder: Path) -> str:
    """Digest of the model in a local MLflow model folder, hexadecimal; raises as :func:`skops_file`."""
    try:
        return hashlib.sha256(skops_file(folder).read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise ModelMismatch(f"{folder} is no MLflow folder of a scikit-learn model: {error!r}") from error


def skops_file(folder: Path) -> Path:
    """The file of the scikit-learn model in a local MLflow model folder, read without MLflow.

    Raises:
        ModelMismatch: it is no such folder, or the model is kept as something else, such as a pickle.
        OSError: it cannot be read (now).
    """
    import yaml

    try:
        flavor = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))["flavors"]["sklearn"]
        serialization, file = flavor["serialization_format"], Path(str(flavor["pickled_model"])).name
    except (FileNotFoundError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ModelMismatch(f"{folder} is no MLflow folder of a scikit-learn model: {error!r}") from error
    if serialization != "skops":
        raise ModelMismatch(f"the model in {folder} was saved as {serialization}: only skops is loaded, so save it so")
    return folder / file


def read_skops(file: Path, *, trusted: Sequence[str] = TRUSTED_TYPES) -> Any:
    """What a skops file holds, made of these types, and of those that skops knows to be harmless.

    The list of types that a model proposes to trust is not heeded.

    Raises:
        ModelMismatch: it cannot be loaded so.
        OSError: it cannot be read (now).
    """
    import skops.io

    try:
        return skops.io.load(file, trusted=list(trusted))
    except OSError:
        raise
    except Exception as error:  # skops raises whatever a bad file makes it meet.
        raise ModelMismatch(f"{file} cannot be loaded: {error}") from error


def read_forecaster(file: Path) -> HealthForecaster:
    """The forecaster in a skops file.

    Raises:
        ModelMismatch: it holds none, or one that was trained for other features than this version has.
        OSError: it cannot be read (now).
    """
    forecaster = read_skops(file)
    if not isinstance(forecaster, HealthForecaster):
        raise ModelMismatch(f"{file} holds a {type(forecaster).__name__}, not a HealthForecaster")
    trained = [str(name) for name in forecaster.feature_names_in_]
    if trained != list(names(VECTOR)):
        raise ModelMismatch(f"{difference(trained, list(names(VECTOR)))}; train anew with `urlhealth train`")
    return forecaster
