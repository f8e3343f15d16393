"""Alerts: rules on what probes and forecasts say, messages grouped by host, and their delivery."""
