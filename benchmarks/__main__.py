"""Side-by-side measurements, as ratios within one run: `make bench`."""

from benchmarks import probing

if __name__ == "__main__":
    probing.main()
