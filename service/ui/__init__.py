"""The dashboard: templates, static files and what the templates show."""
