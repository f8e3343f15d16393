"""Side-by-side measurements, as ratios within one run: `make bench`, or `python -m benchmarks NAME...` for some."""

import sys

from benchmarks import (
    crawl,
    feast,
    features,
    history,
    monitors,
    pages,
    polling,
    probing,
    scale,
    served,
    service,
    serving,
)

BENCHMARKS = {
    "feast": feast.main,
    "features": features.main,
    "probing": probing.main,
    "crawl": crawl.main,
    "service": service.main,
    "scale": scale.main,
    "monitors": monitors.main,
    "history": history.main,
    "pages": pages.main,
    "polling": polling.main,
    "served": served.main,
    "serving": serving.main,
}


def main(names: list[str]) -> None:
    """Run the benchmarks of these names, or all."""
    if unknown := [name for name in names if name not in BENCHMARKS]:
        sys.exit(f"no benchmark is called {', '.join(unknown)}: there are {', '.join(BENCHMARKS)}")
    for name in names or BENCHMARKS:
        print(f"== {name}", flush=True)
        BENCHMARKS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
