"""The tables. Times are seconds since 1970 (UTC), documents are JSON; the same on SQLite and PostgreSQL."""

import sqlalchemy as sa

metadata = sa.MetaData()
_json = sa.JSON(none_as_null=True)
_id = sa.String(40).with_variant(sa.String(40, collation="C"), "postgresql")  # ids sort by age, byte by byte

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", _id, primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("status", sa.String(20), nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("version", sa.Integer, nullable=False, server_default="1"),
    sa.Column("spec", _json, nullable=False),
    sa.Column("output", sa.Text, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("queued_at", sa.Float, nullable=False, server_default="0"),
    sa.Column("started_at", sa.Float),
    sa.Column("finished_at", sa.Float),
    sa.Column("updated_at", sa.Float, nullable=False),
    sa.Column("progress", _json),
    sa.Column("totals", _json),
    sa.Column("quarantined", _json),
    sa.Column("error", _json),
    sa.Column("owner", sa.String(80)),
    sa.Column("lease_until", sa.Float),
    sa.Column("relaunches", sa.Integer, nullable=False, server_default="0"),
    sa.Column("event_offset", sa.BigInteger, nullable=False, server_default="0"),
    sa.Index("jobs_of_tenant", "tenant", "id"),
    sa.Index("jobs_by_status", "status", "id"),
    sa.Index("jobs_waiting", "tenant", "status", "id"),
)

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("tenant", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("body_sha256", sa.String(64), nullable=False),
    sa.Column("job_id", _id, nullable=False),
    sa.Column("reserved_at", sa.Float, nullable=False),
    sa.Column("answer", _json),
)

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("scopes", _json, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float),
    sa.Column("revoked_at", sa.Float),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("key_id", sa.String(16), sa.ForeignKey("keys.id"), nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
)
