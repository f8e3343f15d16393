"""Histories that come from elsewhere, and go there: files of ours, Upptime repositories, Uptime Kuma's database."""
