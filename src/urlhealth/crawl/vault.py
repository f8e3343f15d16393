"""Secrets in probe options and alert channels, encrypted where they are stored (Fernet: AES-128-CBC, HMAC-SHA-256)."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from urlhealth.errors import StoreUnavailable
from urlhealth.vocabulary import DEFAULT_OPTIONS, ProbeOptions

log = logging.getLogger(__name__)

#: The options that may be secret: those that are not shown in `repr` either.
SECRETS: Final = tuple(option.name for option in fields(ProbeOptions) if not option.repr)
_SEALED: Final = "sealed"
#: In place of what cannot be decrypted: nothing is asked without the credentials, and the outcome is `self`.
_UNREADABLE: Final = "http://encrypted-with-another-key.invalid"


class Vault:
    """Turns what is secret into what is stored, and back. Without a key it is stored as it is."""

    def __init__(self, keys: Callable[[], Sequence[str]] = tuple) -> None:
        """`keys`: gives Fernet keys when they are first needed; the first encrypts, all decrypt."""
        self._keys = keys

    @cached_property
    def _fernet(self) -> Any:
        # Imported late: most have no secrets.
        from cryptography.fernet import Fernet, MultiFernet

        return MultiFernet([Fernet(key) for key in keys]) if (keys := self._keys()) else None

    def seal(self, text: str) -> str | None:
        """The text encrypted; None without a key."""
        return None if self._fernet is None else self._fernet.encrypt(text.encode()).decode()

    def unseal(self, token: str) -> str | None:
        """The inverse of :meth:`seal`; None where no key fits."""
        from cryptography.fernet import InvalidToken

        with suppress(InvalidToken):
            if self._fernet is not None:
                return str(self._fernet.decrypt(token).decode())
        return None

    def stored(self, options: ProbeOptions) -> dict[str, Any]:
        """The options as JSON, those that may be secret encrypted in one."""
        shown = asdict(options)
        secret = {name: shown[name] for name in SECRETS if getattr(options, name) != getattr(DEFAULT_OPTIONS, name)}
        token = self.seal(json.dumps(secret)) if secret else None
        if token is None:
            return shown
        return {name: value for name, value in shown.items() if name not in secret} | {_SEALED: token}

    def options(self, stored: Mapping[str, Any]) -> ProbeOptions:
        """The inverse of :meth:`stored`."""
        if _SEALED not in stored:
            return ProbeOptions(**stored)
        shown = {name: value for name, value in stored.items() if name != _SEALED}
        secret = self.unseal(stored[_SEALED])
        if secret is not None:
            return ProbeOptions(**shown, **json.loads(secret))
        log.error("secrets in the options of a task or monitor cannot be decrypted: see URLHEALTH_SECRET_KEY")
        return replace(ProbeOptions(**shown), proxy=_UNREADABLE)


def key_of_file(path: Path) -> str:
    """The key in a file that only its owner may read, which is made where it is missing.

    Raises:
        StoreUnavailable: it cannot be read or made.
    """
    from cryptography.fernet import Fernet

    try:
        with suppress(FileNotFoundError):
            return path.read_text().strip()
        new = path.with_name(f"{path.name}.{os.getpid()}")
        new.touch(0o600)
        new.write_bytes(Fernet.generate_key())
        with suppress(FileExistsError):  # another process was quicker: its key counts
            os.link(new, path)
        new.unlink()
        return path.read_text().strip()
    except OSError as error:
        raise StoreUnavailable(
            f"the key in {path} cannot be used ({error.strerror}): set URLHEALTH_SECRET_KEY, or URLHEALTH_HOME"
        ) from error
