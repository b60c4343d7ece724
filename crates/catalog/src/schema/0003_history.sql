-- What is known of a volume's past, the trash, and machines that do not last. A CHECK and a UNIQUE
-- can only be changed by rebuilding the table; attachments refers to it and is rebuilt along.

CREATE TABLE volumes_rebuilt (
    id         TEXT NOT NULL PRIMARY KEY CHECK (length(id) = 36),
    name       TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 63),
    size       INTEGER NOT NULL CHECK (size > 0),
    role       TEXT NOT NULL CHECK (role IN ('root', 'data')),
    pool       TEXT NOT NULL CHECK (length(pool) BETWEEN 1 AND 63),
    filesystem TEXT NOT NULL CHECK (filesystem IN ('ext4', 'xfs', 'btrfs', 'none')),
    kernel     TEXT CHECK (length(kernel) = 64),
    initrd     TEXT CHECK (length(initrd) = 64),
    history    TEXT NOT NULL DEFAULT '{}' CHECK (json_type(history) = 'object'),
    lifecycle  TEXT NOT NULL CHECK (lifecycle IN ('creating', 'ready', 'trashed', 'deleting')),
    created    TEXT NOT NULL,
    modified   TEXT NOT NULL,
    CHECK (initrd IS NULL OR kernel IS NOT NULL)
) STRICT;

INSERT INTO volumes_rebuilt (id, name, size, role, pool, filesystem, kernel, initrd, lifecycle,
                             created, modified)
SELECT id, name, size, role, pool, filesystem, kernel, initrd, lifecycle, created, modified
FROM volumes;

CREATE TABLE attachments_rebuilt (
    volume    TEXT NOT NULL PRIMARY KEY REFERENCES volumes_rebuilt (id) ON DELETE RESTRICT,
    machine   TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
    position  INTEGER NOT NULL CHECK (position BETWEEN 0 AND 25),
    read_only INTEGER NOT NULL CHECK (read_only IN (0, 1)),
    UNIQUE (machine, position)
) STRICT;

INSERT INTO attachments_rebuilt (volume, machine, position, read_only)
SELECT volume, machine, position, read_only FROM attachments;

DROP TABLE attachments;
DROP TABLE volumes;
ALTER TABLE volumes_rebuilt RENAME TO volumes;
ALTER TABLE attachments_rebuilt RENAME TO attachments;

-- What is in the trash, or on its way out, gives its name to whoever wants it.
CREATE UNIQUE INDEX volumes_by_name ON volumes (name)
WHERE lifecycle <> 'trashed' AND lifecycle <> 'deleting';

-- Every command looks whether something in there has had its time.
CREATE INDEX volumes_in_trash ON volumes (history ->> '$.trashed.until')
WHERE lifecycle = 'trashed';

-- The volume that a disposable root volume is cloned from at each start.
ALTER TABLE machines ADD COLUMN template TEXT CHECK (length(template) = 36);
ALTER TABLE machines ADD COLUMN ephemeral INTEGER NOT NULL DEFAULT 0 CHECK (ephemeral IN (0, 1));
