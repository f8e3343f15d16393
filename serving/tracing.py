"""Traces: FastAPI makes a span of each request, and each stage of an answer is one; a collector gets them."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import quote, unquote

from fastapi.routing import APIRoute

from urlhealth.prediction.stages import Span
from urlhealth.settings import Settings, redacted

_QUERY: Final = "url.query"


def started(settings: Settings) -> tuple[Span, Callable[[], None]] | None:
    """What opens the span of a stage, and what sends the last spans and ends it; None if nobody wants traces.

    The provider is the process's, so that it is started once.
    """
    if not settings.otlp_endpoint:
        return None
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    class Redacting(SpanProcessor):
        """URLs in queries may hold passwords."""

        def on_start(self, span: Any, parent_context: Any = None) -> None:  # noqa: ARG002
            if query := span.attributes.get(_QUERY):
                span.set_attribute(_QUERY, quote(redacted(unquote(query)), safe="=&:/?%+*@"))

    resource = Resource.create({"service.name": "urlhealth", "service.version": version("urlhealth")})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(Redacting())
    exporter = OTLPSpanExporter(endpoint=f"{settings.otlp_endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider.get_tracer("urlhealth").start_as_current_span, provider.shutdown


def name_span(method: str, route: APIRoute) -> None:
    """Name the request's span by its route, where FastAPI has not found it."""
    from opentelemetry import trace

    span = trace.get_current_span()
    if span.is_recording():
        span.update_name(f"{method} {route.path}")
        span.set_attribute("http.route", route.path)
