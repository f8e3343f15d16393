"""`urlhealth serve` that keeps no log of what it served: what the log costs is the difference. Argument: port."""

import sys
from typing import Any

from urlhealth.cli import app
from urlhealth.platform import Platform


def forget(*_: Any, **__: Any) -> None:
    """In place of the log."""


setattr(Platform, Platform.log_predictions.__name__, forget)
app(["serve", "--port", sys.argv[1]])
