"""A bot with our plugin, on Errbot's own test backend: run by a Python that has Errbot, driven over pipes.

Standard input: JSON lines `{"text": ..., "room": name or null}`. Standard output: JSON lines `{"text": ..., "to": ...}`
of what the bot says; the first one when it is up. It ends with its standard input.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from errbot.backends.base import Message
from errbot.backends.test import TestBot, TestOccupant


def main(plugin: str, home: str, settings: str) -> None:
    """`plugin`: its folder; `home`: of the bot's data; `settings`: the plugin's, as JSON."""
    out, sys.stdout = sys.stdout, sys.stderr

    def say(to: Any, text: str) -> None:
        print(json.dumps({"to": str(to), "text": text}), file=out, flush=True)

    config = {
        "BOT_DATA_DIR": home,
        "BOT_LOG_FILE": str(Path(home) / "errbot.log"),
        "STORAGE": "Shelf",
        "URLHEALTH": json.loads(settings),
    }
    test = TestBot(extra_plugin_dir=plugin, loglevel=logging.INFO, extra_config=config)
    test.start(timeout=30)
    bot = test.bot
    send = bot.send_message

    def send_and_say(message: Message) -> None:
        send(message)
        say(message.to, test.pop_message())

    bot.send_message = send_and_say
    say("", "up" if bot.plugin_manager.plugins["UrlHealth"].is_activated else "not active")
    for line in sys.stdin:
        given = json.loads(line)
        if given["room"] is None:
            test.push_message(given["text"])
        else:
            room = bot.query_room(given["room"])
            message = Message(given["text"], frm=TestOccupant("ann", room), to=room)
            bot.callback_message(message)
    test.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
