"""urlhealth: probe URLs, keep their features in Feast, predict which fail next.

Read :mod:`urlhealth.pipeline` first: it is one page, and tells how stored probes become features.
"""

__version__ = "0.1.0"
