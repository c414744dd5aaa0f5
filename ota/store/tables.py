"""The tables, as SQLAlchemy sees them; `migrations/` makes them. Times are milliseconds since 1970, UTC (`*_ms`)."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()

Identity = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite gives numbers by itself only to an INTEGER PRIMARY KEY."""


def _id() -> Column[int]:
    return Column("id", Identity, primary_key=True)


def _ref(name: str, target: str, *, null: bool = False, key: bool = False) -> Column[int]:
    return Column(name, Identity, ForeignKey(target), nullable=null and not key, primary_key=key, autoincrement=False)


devices = Table(
    "devices", metadata, _id(),
    Column("controller_id", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("token_hash", Text),
    Column("attributes", JSON, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("last_seen_ms", BigInteger),
    Column("address", Text, nullable=False),
    Column("update_status", Text, nullable=False),
    Column("ask_attributes", Boolean, nullable=False),
    Column("auto_confirm_by", Text),
    Column("auto_confirm_remark", Text),
    Column("auto_confirm_ms", BigInteger),
)  # fmt: skip
"""auto_confirm_*: null while nobody said yes to everything. update_status: `UpdateStatus` of rows.py."""

releases = Table(
    "releases", metadata, _id(),
    Column("slot", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("target", Text, nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("sha1", Text, nullable=False),
    Column("md5", Text, nullable=False),
    Column("custom", JSON, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("available", Boolean, nullable=False),
    UniqueConstraint("target", "sha256"),
)  # fmt: skip
"""available: false once the signed targets name it no longer. sha1, md5: empty where the bytes are not on this machine."""

rollouts = Table(
    "rollouts", metadata, _id(),
    Column("name", Text, nullable=False),
    _ref("release_id", "releases.id"),
    Column("filter", Text, nullable=False),
    Column("plan", JSON, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("changed_ms", BigInteger, nullable=False),
    Column("started_ms", BigInteger),
    Column("ended_ms", BigInteger),
)  # fmt: skip

rollout_groups = Table(
    "rollout_groups", metadata,
    _ref("rollout_id", "rollouts.id", key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("state", Text, nullable=False),
    Column("approved_by", Text),
    Column("started_ms", BigInteger),
    Column("met_ms", BigInteger),
)  # fmt: skip

actions = Table(
    "actions", metadata, _id(),
    _ref("device_id", "devices.id"),
    _ref("release_id", "releases.id"),
    _ref("previous_release_id", "releases.id", null=True),
    _ref("rollout_id", "rollouts.id", null=True),
    Column("state", Text, nullable=False),
    Column("open", Boolean, nullable=False),
    Column("forced", Boolean, nullable=False),
    Column("detail", Text, nullable=False),
    Column("code", BigInteger),
    Column("created_by", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    Index("actions_by_device", "device_id", "id"),
    Index("actions_by_rollout", "rollout_id"),
    Index("actions_open", "device_id", sqlite_where=text("open"), postgresql_where=text("open")),
)  # fmt: skip
"""previous_release_id: in that slot when the action was made; of a finished one: just before its end. state: `ActionState`; open: not yet at an end; detail: the device's last words."""

rollout_members = Table(
    "rollout_members", metadata,
    _ref("rollout_id", "rollouts.id", key=True),
    _ref("device_id", "devices.id", key=True),
    Column("position", Integer, nullable=False),
    _ref("action_id", "actions.id", null=True),
    _ref("back_action_id", "actions.id", null=True),
)  # fmt: skip
"""position: of the group; back_action_id: gives the device its previous release back."""

installed = Table(
    "installed", metadata,
    _ref("device_id", "devices.id", key=True),
    Column("slot", Text, primary_key=True),
    _ref("release_id", "releases.id"),
    _ref("action_id", "actions.id"),
    Column("at_ms", BigInteger, nullable=False),
)  # fmt: skip
"""What serves each slot of a device, by its own report of success, or by what it says of itself since."""

feedback = Table(
    "feedback", metadata, _id(),
    _ref("action_id", "actions.id"),
    Column("at_ms", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("execution", Text, nullable=False),
    Column("finished", Text, nullable=False),
    Column("code", BigInteger),
    Column("details", JSON, nullable=False),
    Column("progress", JSON, nullable=False),
    Index("feedback_by_action", "action_id", "id"),
)  # fmt: skip
"""Everything a device said about an action; kind: deployment, cancel, confirmation."""

users = Table(
    "users", metadata, _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    Column("token_hash", Text, nullable=False, unique=True),
    Column("active", Boolean, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)  # fmt: skip

audit = Table(
    "audit", metadata, _id(),
    Column("at_ms", BigInteger, nullable=False),
    Column("who", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("what", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", JSON, nullable=False),
)  # fmt: skip

settings = Table(
    "settings", metadata,
    Column("key", Text, primary_key=True),
    Column("value", JSON, nullable=False),
)  # fmt: skip
