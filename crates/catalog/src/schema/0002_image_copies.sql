-- Images that stand in pools, for root volumes to be cloned from. Each is a volume to its pool and
-- to the locks, and none to a user: so it has a table of its own.

CREATE TABLE image_copies (
    id        TEXT NOT NULL PRIMARY KEY CHECK (length(id) = 36),
    image     TEXT NOT NULL CHECK (length(image) = 36),
    name      TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 63),
    pool      TEXT NOT NULL CHECK (length(pool) BETWEEN 1 AND 63),
    size      INTEGER NOT NULL CHECK (size > 0),
    lifecycle TEXT NOT NULL CHECK (lifecycle IN ('creating', 'ready', 'deleting')),
    created   TEXT NOT NULL,
    UNIQUE (image, pool)
) STRICT;

-- What one driver has made, another does not find: NULL for a pool that was remembered before.
ALTER TABLE pools ADD COLUMN driver TEXT CHECK (length(driver) > 0);
