"""The tables of the first schema, as release 0.1.0 made them."""

TABLES = (
    """
    CREATE TABLE runs (
        no INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        revision INTEGER NOT NULL,
        fence INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        head BLOB NOT NULL,
        status TEXT NOT NULL,
        settled INTEGER NOT NULL,
        version TEXT NOT NULL,
        due_at INTEGER,
        worker TEXT,
        attention INTEGER NOT NULL,
        paused INTEGER NOT NULL,
        dead_lettered INTEGER NOT NULL,
        waiting INTEGER NOT NULL,
        quarantined INTEGER NOT NULL,
        workflow TEXT NOT NULL,
        priority INTEGER NOT NULL,
        tenant TEXT,
        user TEXT,
        parent TEXT,
        created_at INTEGER NOT NULL
    )
    """,
    "CREATE INDEX runs_due ON runs (workflow, version, priority, due_at, id) WHERE due_at IS NOT NULL",
    "CREATE INDEX runs_leased ON runs (worker, attention, id) WHERE worker IS NOT NULL",
    "CREATE INDEX runs_created ON runs (created_at, id)",
    "CREATE INDEX runs_status ON runs (status, created_at, id)",
    "CREATE INDEX runs_settled ON runs (status, updated_at, id) WHERE settled",
    "CREATE INDEX runs_children ON runs (parent, created_at, id) WHERE parent IS NOT NULL",
    """
    CREATE TABLE parts (
        run_id TEXT NOT NULL, part TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (run_id, part)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE keys (
        kind TEXT NOT NULL, key TEXT NOT NULL, run_id TEXT NOT NULL, PRIMARY KEY (kind, key)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX keys_of_run ON keys (run_id)",
    """
    CREATE TABLE labels (
        label BLOB NOT NULL, run_id TEXT NOT NULL, PRIMARY KEY (label, run_id)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX labels_of_run ON labels (run_id)",
    """
    CREATE TABLE rows (
        run_id TEXT NOT NULL, kind TEXT NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (run_id, kind, seq)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE sides (
        kind TEXT NOT NULL, key TEXT NOT NULL, revision INTEGER NOT NULL, body BLOB NOT NULL, due_at INTEGER,
        PRIMARY KEY (kind, key)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX sides_due ON sides (kind, due_at) WHERE due_at IS NOT NULL",
)
