"""The REST endpoints, one file per resource; `service.app` mounts them under /v1."""
