"""GraphQL, read-only, at `/graphql`: tasks → results → targets → probes, features and predictions in one query."""
