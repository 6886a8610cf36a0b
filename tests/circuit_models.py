"""The old place of `grouped_query_biased`: test_clean_run.py and test_sites.py take it from here."""

from small_models import grouped_query_biased  # noqa: F401
