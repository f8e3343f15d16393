"""`urlhealth serve` that keeps no log of what it served: what the log costs is the difference. Argument: port."""

import sys
from collections.abc import Sequence

import uvicorn

from serving.app import create_app
from urlhealth.platform import Platform
from urlhealth.settings import load_settings
from urlhealth.vocabulary import Prediction


class Unlogged(Platform):
    """The platform without its log."""

    def log_predictions(self, request_id: str, predictions: Sequence[Prediction], *, owner: str) -> None:
        """Forget them."""


with Unlogged(load_settings()) as platform:
    platform.start()
    uvicorn.run(create_app(platform), host="127.0.0.1", port=int(sys.argv[1]), access_log=False)
