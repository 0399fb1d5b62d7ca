"""A walk through PostgreSQL's catalogue: everything by which one tenant could reach another's rows, as sentences.

It says what there may be, and finds fault with all else: a table nobody thought of is one.
"""

from __future__ import annotations

from asyncpg.connection import Connection

TENANT, SERVICE = "omninode_bridge_tenant", "omninode_bridge_service"

# What the tenant's role may do to a table; `name(column)` for a column alone.
TENANTS = {
    "metadata_stamps": {"SELECT", "INSERT"},
    "event_log": {"SELECT", "INSERT"},
    "fsm_states": {"SELECT", "INSERT", "UPDATE"},
    "file_facts": {"SELECT", "INSERT", "UPDATE"},
    "workflow_inputs": {"SELECT", "INSERT", "DELETE"},
    "bridge_state": {"SELECT"},
    "log_heads": {"SELECT", "INSERT", "UPDATE"},
    "state_generations(generation)": {"SELECT"},
    "state_generations(status)": {"SELECT"},
    "state_generations(fingerprint)": {"SELECT"},
}
ALL = {"SELECT", "INSERT", "UPDATE", "DELETE"}
SERVICES = {
    "admin_log": {"SELECT", "INSERT"},
    "transport_key": {"SELECT"},
    **dict.fromkeys(
        [
            "metadata_stamps", "event_log", "fsm_states", "file_facts", "workflow_inputs", "bridge_state", "log_heads",
            "state_generations", "consumer_positions", "dead_letters", "api_tokens", "token_usage",
        ],
        ALL,
    ),
}  # fmt: skip

BY_NAMESPACE = {"metadata_stamps", "event_log", "fsm_states", "file_facts", "workflow_inputs", "bridge_state"}
"""Tables whose rows are seen by those who may see their namespace."""
GUARDED = BY_NAMESPACE | {
    "state_generations",
    "dead_letters",
    "api_tokens",
    "token_usage",
    "admin_log",
    "transport_key",
}
UNGUARDED = {"log_heads", "consumer_positions", "schema_migrations"}
"""They say nothing of any tenant."""

_RELATIONS = """
SELECT c.oid, c.relname AS name, c.relkind::text AS kind, c.relrowsecurity AS enabled, c.relforcerowsecurity AS forced,
    pg_get_userbyid(c.relowner) AS owner,
    EXISTS (
        SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname LIKE 'namespace%' AND NOT a.attisdropped
    ) AS has_namespace
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
"""
_POLICIES = """
SELECT p.polrelid AS oid, p.polname AS name, p.polcmd::text AS command, p.polpermissive AS permissive,
    ARRAY(SELECT CASE r WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(r) END FROM unnest(p.polroles) AS r) AS roles,
    pg_get_expr(p.polqual, p.polrelid) AS using, pg_get_expr(p.polwithcheck, p.polrelid) AS check
FROM pg_policy AS p
"""
_GRANTS = """
SELECT name, CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee) END AS role,
    a.privilege_type AS privilege
FROM (
    SELECT c.relname::text AS name, c.relacl AS acl, c.relnamespace FROM pg_class AS c
    UNION ALL
    SELECT c.relname || '(' || t.attname || ')', t.attacl, c.relnamespace
    FROM pg_attribute AS t JOIN pg_class AS c ON c.oid = t.attrelid
) AS granted
JOIN pg_namespace AS n ON n.oid = granted.relnamespace CROSS JOIN LATERAL aclexplode(acl) AS a
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
"""
_ROLES = """
SELECT r.rolname AS name,
    rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication OR rolcanlogin AS powerful,
    EXISTS (SELECT FROM pg_auth_members AS m WHERE m.member = r.oid) AS is_member,
    EXISTS (SELECT FROM pg_shdepend AS d WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid
        AND d.deptype = 'o') AS owns,
    (SELECT bool_or(has_schema_privilege(r.oid, n.oid, 'CREATE')) FROM pg_namespace AS n) AS creates
FROM pg_roles AS r WHERE r.rolname IN ('omninode_bridge_tenant', 'omninode_bridge_service')
"""
_FUNCTIONS = """
SELECT p.proname AS name FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
"""


async def faults(connection: Connection) -> list[str]:
    """Return what is not as it should be; nothing is the good answer. The connection is a superuser's."""
    return [
        *await _table_faults(connection),
        *await _grant_faults(connection),
        *await _role_faults(connection),
        *[f"there is a function {row['name']}: may it see more?" for row in await connection.fetch(_FUNCTIONS)],
    ]


async def _table_faults(connection: Connection) -> list[str]:
    found = []
    policies: dict[int, list[tuple[object, ...]]] = {}
    tenant_rules = set()
    for row in await connection.fetch(_POLICIES):
        oid, name, *rest = row.values()
        policies.setdefault(oid, []).append((name, *rest))
    for table in await connection.fetch(_RELATIONS):
        name, kind = table["name"], table["kind"]
        if kind == "S":
            continue
        own = {str(policy[0]): policy[1:] for policy in policies.get(table["oid"], [])}
        if kind != "r":
            found.append(f"{name} is no plain table: its reader may see what its owner sees")
        if name not in GUARDED | UNGUARDED:
            found.append(f"nobody has said whether {name} is to be guarded")
        if name in UNGUARDED and table["has_namespace"]:
            found.append(f"{name} has a namespace, and is not guarded")
        if name not in GUARDED:
            continue
        if not table["enabled"] or not table["forced"]:
            found.append(f"{name}: row-level security is not enabled and forced")
        if own.pop("service", None) != ("*", True, [SERVICE], "true", "true"):
            found.append(f"{name}: the service's policy is not as it was")
        tenants = own.pop("tenant", None)
        if name in BY_NAMESPACE and tenants is not None and tenants[:3] == ("*", True, [TENANT]):
            tenant_rules.add(tuple(str(rule).replace(f"{name}.", "") for rule in tenants[3:]))
        elif name == "state_generations" and tenants == ("*", True, [TENANT], "(status = 'live'::text)", None):
            pass
        elif name in BY_NAMESPACE or name == "state_generations" or tenants is not None:
            found.append(f"{name}: the tenant's policy is not as it was")
        found += [f"{name}: there is a policy {other}" for other in own]
    if len(tenant_rules) != 1:
        found.append(f"the tenant's policies differ: {tenant_rules}")
    return found


async def _grant_faults(connection: Connection) -> list[str]:
    owners = {row["owner"] for row in await connection.fetch(_RELATIONS)}
    granted: dict[str, dict[str, set[str]]] = {}
    for row in await connection.fetch(_GRANTS):
        granted.setdefault(row["role"], {}).setdefault(row["name"], set()).add(row["privilege"])
    found = [f"{role} may use tables" for role in granted.keys() - owners - {TENANT, SERVICE}]
    for role, expected in ((TENANT, TENANTS), (SERVICE, SERVICES)):
        real = granted.get(role, {})
        found += [
            f"{role} may {sorted(real.get(name, set()))} {name}, not {sorted(expected.get(name, set()))}"
            for name in real.keys() | expected.keys()
            if real.get(name, set()) != expected.get(name, set())
        ]
    return found


async def _role_faults(connection: Connection) -> list[str]:
    roles = await connection.fetch(_ROLES)
    found = [f"{row['name']} has an attribute that it should not have" for row in roles if row["powerful"]]
    found += [f"{row['name']} is a member of another role" for row in roles if row["is_member"]]
    found += [f"{row['name']} owns something" for row in roles if row["owns"]]
    found += [f"{row['name']} may create things in a schema" for row in roles if row["creates"]]
    if {row["name"] for row in roles} != {TENANT, SERVICE}:
        found.append("a role is missing")
    return found
