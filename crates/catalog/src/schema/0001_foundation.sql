-- What exists, who holds what, what was in flight. Described in docs/reference/catalogue.md.
-- A word in a CHECK is one that the type of that name in sistemo-model knows, or will soon: a
-- CHECK can only be changed by rebuilding its table.

CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE volumes (
    id         TEXT NOT NULL PRIMARY KEY CHECK (length(id) = 36),
    name       TEXT NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 63),
    size       INTEGER NOT NULL CHECK (size > 0),
    role       TEXT NOT NULL CHECK (role IN ('root', 'data')),
    pool       TEXT NOT NULL CHECK (length(pool) BETWEEN 1 AND 63),
    filesystem TEXT NOT NULL CHECK (filesystem IN ('ext4', 'xfs', 'btrfs', 'none')),
    kernel     TEXT CHECK (length(kernel) = 64),
    initrd     TEXT CHECK (length(initrd) = 64),
    lifecycle  TEXT NOT NULL CHECK (lifecycle IN ('creating', 'ready', 'deleting')),
    created    TEXT NOT NULL,
    modified   TEXT NOT NULL,
    CHECK (initrd IS NULL OR kernel IS NOT NULL)
) STRICT;

CREATE TABLE machines (
    id           TEXT NOT NULL PRIMARY KEY CHECK (length(id) = 36),
    name         TEXT NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 58),
    image        TEXT CHECK (length(image) BETWEEN 1 AND 63),
    vcpus        INTEGER NOT NULL CHECK (vcpus BETWEEN 1 AND 255),
    memory       INTEGER NOT NULL CHECK (memory > 0),
    vmm          TEXT NOT NULL CHECK (vmm IN ('qemu', 'firecracker')),
    mac          TEXT NOT NULL CHECK (length(mac) = 17),
    ssh_port     INTEGER NOT NULL UNIQUE CHECK (ssh_port BETWEEN 1 AND 65535),
    autostart    INTEGER NOT NULL CHECK (autostart IN (0, 1)),
    owns_root    INTEGER NOT NULL CHECK (owns_root IN (0, 1)),
    state        TEXT NOT NULL
                 CHECK (state IN ('starting', 'running', 'paused', 'stopping', 'stopped')),
    paused_why   TEXT CHECK (paused_why IN ('requested', 'disk-full', 'disk-error')),
    stopping_how TEXT CHECK (stopping_how IN ('clean', 'forced', 'crashed')),
    stopped_how  TEXT CHECK (stopped_how IN ('clean', 'forced', 'crashed')),
    vmm_pid      INTEGER CHECK (vmm_pid > 0),
    vmm_started  INTEGER CHECK (vmm_started >= 0),
    vmm_boot     TEXT CHECK (length(vmm_boot) > 0),
    accelerator  TEXT CHECK (accelerator IN ('kvm', 'tcg')),
    lifecycle    TEXT NOT NULL CHECK (lifecycle IN ('creating', 'ready', 'deleting')),
    created      TEXT NOT NULL,
    modified     TEXT NOT NULL,
    CHECK ((paused_why IS NOT NULL) = (state = 'paused')),
    CHECK ((stopping_how IS NOT NULL) = (state = 'stopping')),
    CHECK (stopped_how IS NULL OR state = 'stopped'),
    CHECK ((vmm_pid IS NULL) = (vmm_started IS NULL)),
    CHECK ((vmm_pid IS NULL) = (vmm_boot IS NULL)),
    CHECK ((vmm_pid IS NULL) = (accelerator IS NULL)),
    CHECK (vmm_pid IS NULL OR state <> 'stopped')
) STRICT;

CREATE TABLE exposures (
    machine  TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
    position INTEGER NOT NULL CHECK (position >= 0),
    host     TEXT NOT NULL,
    guest    INTEGER NOT NULL CHECK (guest BETWEEN 1 AND 65535),
    PRIMARY KEY (machine, position)
) STRICT;

-- A volume is the key: one machine at a time. A row goes with its machine, which frees the
-- volume; a volume does not go while it has one.
CREATE TABLE attachments (
    volume    TEXT NOT NULL PRIMARY KEY REFERENCES volumes (id) ON DELETE RESTRICT,
    machine   TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
    position  INTEGER NOT NULL CHECK (position BETWEEN 0 AND 25),
    read_only INTEGER NOT NULL CHECK (read_only IN (0, 1)),
    UNIQUE (machine, position)
) STRICT;

CREATE TABLE pools (
    name       TEXT NOT NULL PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 63),
    directory  BLOB NOT NULL CHECK (length(directory) > 0),
    first_seen TEXT NOT NULL
) STRICT;

CREATE TABLE intents (
    id      INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    intent  TEXT NOT NULL CHECK (json_valid(intent)),
    created TEXT NOT NULL
) STRICT;
